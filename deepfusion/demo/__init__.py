"""``deepfusion demo``: train two small T5s on real text, decide when to grow, fuse, compare, report."""

from deepfusion.demo.run import run_demo as run_demo
from deepfusion.demo.settings import PRESETS as PRESETS
from deepfusion.demo.settings import DemoSettings as DemoSettings
