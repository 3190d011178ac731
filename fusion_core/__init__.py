"""Fusion operators, lean T5s and decoders, its data pipeline and a minimal trainer."""

from fusion_core.decoder import GPT2Config as GPT2Config
from fusion_core.decoder import Llama3Rope as Llama3Rope
from fusion_core.decoder import LlamaConfig as LlamaConfig
from fusion_core.errors import InputError as InputError
from fusion_core.fusion import ConvConfig as ConvConfig
from fusion_core.fusion import FusionMap as FusionMap
from fusion_core.fusion import MLPConfig as MLPConfig
from fusion_core.fusion import calibrate as calibrate
from fusion_core.fusion import fuse as fuse
from fusion_core.fusion import fusion_map as fusion_map
from fusion_core.fusion import rate_factors as rate_factors
from fusion_core.growth_operators import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth_operators import grow as grow
from fusion_core.growth_operators import growth_map as growth_map
from fusion_core.growth_operators import growth_rate_factors as growth_rate_factors
from fusion_core.pretrained import load_pretrained as load_pretrained
from fusion_core.pretrained import save_pretrained as save_pretrained
from fusion_core.t5 import T5Config as T5Config
from fusion_core.t5 import forward as forward
