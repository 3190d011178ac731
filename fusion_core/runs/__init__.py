"""Growth plans: a run as a graph of nodes, read from a file, checked and priced, then trained and fused."""

from fusion_core.runs.cost import Cost as Cost
from fusion_core.runs.cost import costs as costs
from fusion_core.runs.execute import run_plan as run_plan
from fusion_core.runs.graph import Resolved as Resolved
from fusion_core.runs.graph import resolve as resolve
from fusion_core.runs.read import read_plan as read_plan
from fusion_core.runs.schema import FuseNode as FuseNode
from fusion_core.runs.schema import Plan as Plan
from fusion_core.runs.schema import TrainNode as TrainNode
