"""Fusion operators, lean T5s and decoders, its data pipeline and a minimal trainer."""

from fusion_core.checkpoints.pretrained import load_pretrained as load_pretrained
from fusion_core.checkpoints.pretrained import save_pretrained as save_pretrained
from fusion_core.errors import InputError as InputError
from fusion_core.growth import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth import ConvConfig as ConvConfig
from fusion_core.growth import FusionMap as FusionMap
from fusion_core.growth import MLPConfig as MLPConfig
from fusion_core.growth import calibrate as calibrate
from fusion_core.growth import fuse as fuse
from fusion_core.growth import fusion_map as fusion_map
from fusion_core.growth import grow as grow
from fusion_core.growth import growth_map as growth_map
from fusion_core.growth import growth_rate_factors as growth_rate_factors
from fusion_core.growth import rate_factors as rate_factors
from fusion_core.models.decoder import GPT2Config as GPT2Config
from fusion_core.models.decoder import Llama3Rope as Llama3Rope
from fusion_core.models.decoder import LlamaConfig as LlamaConfig
from fusion_core.models.t5 import T5Config as T5Config
from fusion_core.models.t5 import forward as forward
