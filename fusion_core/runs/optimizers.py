"""The optimizer of a node, with its schedule counted through the nodes before it."""

from __future__ import annotations

import optax

from fusion_core.runs.schema import OptimizerSettings, ScheduleSettings
from fusion_core.train.learning_rate import Schedule, jump_schedule
from fusion_core.train.optimizer import adafactor, adamw, clipped


def optimizer_of(settings: OptimizerSettings, schedule: Schedule) -> optax.GradientTransformation:
    """Adafactor or AdamW, after clipping; ``schedule`` is a function of the optimizer's own count."""
    if settings.name == "adafactor":
        optimizer = adafactor(schedule)
    else:
        optimizer = adamw(schedule, b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay)
    return clipped(optimizer, settings.clip or None)


def schedule_of(settings: ScheduleSettings, start: int, steps: int) -> Schedule:
    """The schedule, of the run's step, of a node that trains ``steps`` from step ``start`` on."""
    if not settings.restart:
        return settings.function(start + steps)
    # what was before the jump does not matter to a node that begins at it
    return jump_schedule(settings.function(steps), start, settings.function(steps), settings.factor)
