"""Backward error analysis: the modified fields and losses that discrete training follows."""

from bea.fields import directional_derivative as directional_derivative
from bea.fields import gradient_field as gradient_field
from bea.fields import lie_bracket as lie_bracket
