"""Growth: networks fused into one, or one network grown; each by a linear map of the parameters."""

from fusion_core.growth.fuse import calibrate as calibrate
from fusion_core.growth.fuse import fuse as fuse
from fusion_core.growth.fuse import fused_config as fused_config
from fusion_core.growth.fuse import fusion_map as fusion_map
from fusion_core.growth.maps import GrowthMap as GrowthMap
from fusion_core.growth.maps import Rule as Rule
from fusion_core.growth.noise import OFF_DIAGONAL as OFF_DIAGONAL
from fusion_core.growth.norms import NORM_MODES as NORM_MODES
from fusion_core.growth.operators import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth.operators import GrowthOperator as GrowthOperator
from fusion_core.growth.operators import Properties as Properties
from fusion_core.growth.operators import copied_units as copied_units
from fusion_core.growth.operators import grow as grow
from fusion_core.growth.operators import growth_map as growth_map
from fusion_core.growth.properties import Measured as Measured
from fusion_core.growth.properties import Velocity as Velocity
from fusion_core.growth.properties import measure as measure
from fusion_core.growth.rates import growth_rate_factors as growth_rate_factors
from fusion_core.growth.rates import rate_factors as rate_factors
from fusion_core.models.conv import ConvConfig as ConvConfig
from fusion_core.models.mlp import MLPConfig as MLPConfig
