"""Ways to grow one network, under one interface: baselines for fusion, with what each does to function and training."""

from fusion_core.growth_operators.maps import GrowthMap as GrowthMap
from fusion_core.growth_operators.operators import GROWTH_OPERATORS as GROWTH_OPERATORS
from fusion_core.growth_operators.operators import GrowthOperator as GrowthOperator
from fusion_core.growth_operators.operators import Properties as Properties
from fusion_core.growth_operators.operators import copied_units as copied_units
from fusion_core.growth_operators.operators import grow as grow
from fusion_core.growth_operators.operators import growth_map as growth_map
from fusion_core.growth_operators.properties import Measured as Measured
from fusion_core.growth_operators.properties import Velocity as Velocity
from fusion_core.growth_operators.properties import measure as measure
from fusion_core.growth_operators.rates import growth_rate_factors as growth_rate_factors
