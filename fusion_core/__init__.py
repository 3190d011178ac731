"""Fusion operators, a lean T5, its data pipeline and a minimal trainer."""

from fusion_core.errors import InputError as InputError
from fusion_core.fusion import FusionMap as FusionMap
from fusion_core.fusion import MLPConfig as MLPConfig
from fusion_core.fusion import fuse as fuse
from fusion_core.fusion import fusion_map as fusion_map
from fusion_core.fusion import rate_factors as rate_factors
from fusion_core.growth_operators import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth_operators import grow as grow
from fusion_core.growth_operators import growth_map as growth_map
from fusion_core.growth_operators import growth_rate_factors as growth_rate_factors
from fusion_core.t5 import T5Config as T5Config
from fusion_core.t5 import forward as forward
from fusion_core.t5 import load_pretrained as load_pretrained
from fusion_core.t5 import save_pretrained as save_pretrained
