"""Backward error analysis: the modified fields and losses that discrete training follows."""

from bea import symbolic as symbolic
from bea.differentials import elementary_differential as elementary_differential
from bea.fields import directional_derivative as directional_derivative
from bea.fields import gradient_field as gradient_field
from bea.fields import lie_bracket as lie_bracket
from bea.flow import FlowError as FlowError
from bea.flow import MeasuredOrder as MeasuredOrder
from bea.flow import flow as flow
from bea.flow import measured_order as measured_order
from bea.growth import GrowthEvent as GrowthEvent
from bea.integrability import IntegrabilityDefect as IntegrabilityDefect
from bea.integrability import integrability_defect as integrability_defect
from bea.modified import log_map as log_map
from bea.modified import modified_field as modified_field
from bea.modified import modified_loss as modified_loss
from bea.order import order_scores as order_scores
from bea.phases import Phase as Phase
from bea.phases import compose as compose
from bea.pytrees import Field as Field
from bea.schedule import GrowthDecision as GrowthDecision
from bea.schedule import QuadraticModel as QuadraticModel
from bea.schedule import best_step_size as best_step_size
from bea.schedule import greedy_growth_step as greedy_growth_step
from bea.schedule import predicted_decrease as predicted_decrease
from bea.schedule import quadratic_model as quadratic_model
