"""Every figure by its name.

A figure is a module. Its docstring is the caption, with a paragraph on what one should see. It has

* ``SEED``: the seed of all its random numbers;
* ``DEPENDS``: the packages of ours whose code its numbers depend on;
* ``compute(preset) -> Results``, where preset is one of ``PRESETS``;
* ``draw(results) -> Figure``, which computes nothing;
* ``finding(results) -> str``: one sentence on whether the numbers are as the caption predicts.
"""

from types import ModuleType

from paper_figures import growth_event, growth_prediction, order_of_accuracy, switching_function

PRESETS = ("smoke", "full")

FIGURES: dict[str, ModuleType] = {
    "order_of_accuracy": order_of_accuracy,
    "growth_event": growth_event,
    "switching_function": switching_function,
    "growth_prediction": growth_prediction,
}
