"""The notebook on when to grow runs from nothing and prints what it shows, up to the rounding of another machine."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "notebooks" / "when_to_grow.ipynb"
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def printed(notebook):
    """What all code cells print, in order."""
    outputs = [out for cell in notebook["cells"] if cell["cell_type"] == "code" for out in cell["outputs"]]
    return "".join("".join(out["text"]) for out in outputs if out.get("name") == "stdout")


def test_the_notebook_grows_a_network_where_its_forecasts_say(tmp_path):
    pytest.importorskip("nbconvert", reason="nbconvert is not installed: pip install 'deepfusion[docs]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'deepfusion[docs]'")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, str(NOTEBOOK)], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    now = printed(json.loads((tmp_path / NOTEBOOK.name).read_text(encoding="utf-8")))
    committed = printed(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    # the decisions first: words, and every line
    assert NUMBER.sub("#", now) == NUMBER.sub("#", committed)
    numbers = [np.array([float(n) for n in NUMBER.findall(text)]) for text in (now, committed)]
    np.testing.assert_allclose(*numbers, rtol=0.12, atol=2e-6)
    end, best = re.search(r"it ends at (\S+); the best of the grid is (\S+)", now).groups()
    assert float(end) < 1.15 * float(best)
