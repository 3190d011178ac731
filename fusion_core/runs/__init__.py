"""The engine: plans as graphs of nodes, read from a file, checked and priced, then trained, fused, grown and compared."""

from fusion_core.runs.compare import compare_arms as compare_arms
from fusion_core.runs.cost import Cost as Cost
from fusion_core.runs.cost import arm_flops as arm_flops
from fusion_core.runs.cost import costs as costs
from fusion_core.runs.graph import Resolved as Resolved
from fusion_core.runs.graph import resolve as resolve
from fusion_core.runs.law import fit_runs as fit_runs
from fusion_core.runs.law import text_of as text_of
from fusion_core.runs.law_cases import LawCase as LawCase
from fusion_core.runs.law_cases import PlanForecast as PlanForecast
from fusion_core.runs.law_cases import law_cases as law_cases
from fusion_core.runs.law_cases import plan_forecast as plan_forecast
from fusion_core.runs.plan import FuseNode as FuseNode
from fusion_core.runs.plan import GrowNode as GrowNode
from fusion_core.runs.plan import Plan as Plan
from fusion_core.runs.plan import TrainNode as TrainNode
from fusion_core.runs.plan_file import read_plan as read_plan
from fusion_core.runs.run import run_plan as run_plan
