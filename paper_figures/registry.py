"""Every figure by its name.

A figure is a module. Its docstring is the caption, with a paragraph on what one should see. It has

* ``SEED``: the seed of all its random numbers;
* ``DEPENDS``: the packages of ours whose code its numbers depend on;
* ``RECORDS``, if it has them: the experiments whose committed records it reads at the preset "full";
* ``SLOW``, if its numbers take more than some minutes: how long;
* ``compute(preset) -> Results``, where preset is one of ``PRESETS``;
* ``draw(results) -> Figure``, which computes nothing;
* ``finding(results) -> str``: one sentence on whether the numbers are as the caption predicts;
* ``predicted(results) -> list[Claim]``, if the README's table of predicted against measured has rows of it.
"""

from types import ModuleType

from paper_figures import (
    after_growth,
    finetune,
    growth_event,
    growth_law,
    growth_operators,
    growth_prediction,
    growth_saves,
    growth_step,
    order_of_accuracy,
    separation,
    switching_function,
    t5_large,
    t5_medium,
)

PRESETS = ("smoke", "full")

FIGURES: dict[str, ModuleType] = {
    "order_of_accuracy": order_of_accuracy,
    "growth_event": growth_event,
    "switching_function": switching_function,
    "growth_prediction": growth_prediction,
    "separation": separation,
    "growth_saves": growth_saves,
    "t5_medium": t5_medium,
    "t5_large": t5_large,
    "growth_operators": growth_operators,
    "after_growth": after_growth,
    "growth_step": growth_step,
    "growth_law": growth_law,
    "finetune": finetune,
}
