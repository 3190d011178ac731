"""When to grow: the rule of trials that runs follow, laws fitted to short runs, and the greedy rule with its meter.

Also how copies part. It uses ``bea``.
"""

from fusion_core.schedule.curves import Plateaus as Plateaus
from fusion_core.schedule.curves import RunCurves as RunCurves
from fusion_core.schedule.curves import run_curves as run_curves
from fusion_core.schedule.decision import GrowthDecision as GrowthDecision
from fusion_core.schedule.decision import factors_by_name as factors_by_name
from fusion_core.schedule.greedy import GrowthMeter as GrowthMeter
from fusion_core.schedule.greedy import NetworkMeter as NetworkMeter
from fusion_core.schedule.greedy import TrainedNetwork as TrainedNetwork
from fusion_core.schedule.greedy import greedy_decision as greedy_decision
from fusion_core.schedule.law import GrowthForecast as GrowthForecast
from fusion_core.schedule.law import Interval as Interval
from fusion_core.schedule.law import LawFacts as LawFacts
from fusion_core.schedule.law import LawPlan as LawPlan
from fusion_core.schedule.law import SavedLaw as SavedLaw
from fusion_core.schedule.law import fit_law as fit_law
from fusion_core.schedule.noise import NoiseChoice as NoiseChoice
from fusion_core.schedule.noise import choose_noise as choose_noise
from fusion_core.schedule.noise import choose_noise_on_text as choose_noise_on_text
from fusion_core.schedule.separation import Push as Push
from fusion_core.schedule.separation import push_apart as push_apart
from fusion_core.schedule.separation import separation_of as separation_of
from fusion_core.schedule.trials import Trial as Trial
from fusion_core.schedule.trials import TrialRule as TrialRule
from fusion_core.schedule.trials import follow_rule as follow_rule
from fusion_core.schedule.trials import stops_of as stops_of
