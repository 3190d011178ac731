"""Fusion: one network that outputs the weighted mean of several."""

from fusion_core.fusion.conv import ConvConfig as ConvConfig
from fusion_core.fusion.linear import FusionMap as FusionMap
from fusion_core.fusion.linear import Rule as Rule
from fusion_core.fusion.mlp import MLPConfig as MLPConfig
from fusion_core.fusion.networks import calibrate as calibrate
from fusion_core.fusion.networks import fuse as fuse
from fusion_core.fusion.networks import fused_config as fused_config
from fusion_core.fusion.networks import fusion_map as fusion_map
from fusion_core.fusion.rates import rate_factors as rate_factors
