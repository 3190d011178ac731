"""Property-based tests for architectures and fusion rules of one's own (docs/testing.md); needs the extra ``testing``."""

from fusion_core.testing.architecture import CHECKS as CHECKS
from fusion_core.testing.architecture import Case as Case
from fusion_core.testing.architecture import Check as Check
from fusion_core.testing.architecture import check_architecture as check_architecture
from fusion_core.testing.architecture import checks as checks
from fusion_core.testing.maps import assert_close as assert_close
from fusion_core.testing.maps import check_linear_map as check_linear_map
from fusion_core.testing.maps import check_map as check_map
from fusion_core.testing.maps import inner as inner
from fusion_core.testing.maps import random_like as random_like
from fusion_core.testing.records import check_table as check_table
from fusion_core.testing.rules import check_rule as check_rule
from fusion_core.testing.strategies import Network as Network
from fusion_core.testing.strategies import Sources as Sources
from fusion_core.testing.strategies import mlp_sources as mlp_sources
from fusion_core.testing.strategies import networks as networks
from fusion_core.testing.strategies import random_params as random_params
from fusion_core.testing.strategies import sources as sources
from fusion_core.testing.strategies import tried as tried
from fusion_core.testing.strategies import weights as weights
