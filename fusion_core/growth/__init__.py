"""Growth: networks fused into one, or one network grown; each by a linear map of the parameters."""

from fusion_core.growth.grow import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth.grow import GrowthOperator as GrowthOperator
from fusion_core.growth.grow import Properties as Properties
from fusion_core.growth.grow import copied_units as copied_units
from fusion_core.growth.grow import grow as grow
from fusion_core.growth.grow import growth_map as growth_map
from fusion_core.growth.growth_rates import growth_rate_factors as growth_rate_factors
from fusion_core.growth.linear import FusionMap as FusionMap
from fusion_core.growth.linear import Rule as Rule
from fusion_core.growth.maps import GrowthMap as GrowthMap
from fusion_core.growth.networks import calibrate as calibrate
from fusion_core.growth.networks import fuse as fuse
from fusion_core.growth.networks import fused_config as fused_config
from fusion_core.growth.networks import fusion_map as fusion_map
from fusion_core.growth.properties import Measured as Measured
from fusion_core.growth.properties import Velocity as Velocity
from fusion_core.growth.properties import measure as measure
from fusion_core.growth.rates import rate_factors as rate_factors
from fusion_core.models.conv import ConvConfig as ConvConfig
from fusion_core.models.mlp import MLPConfig as MLPConfig
