"""What a rule says: when to grow, and with which learning rates to go on."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax

from fusion_core import atomic
from fusion_core.checked import checked
from fusion_core.errors import InputError
from fusion_core.text.json_files import read_json

Params = Any


@dataclasses.dataclass(frozen=True)
class GrowthDecision:
    """When to grow, and the learning rates after it.

    Attributes:
      step: small steps before the growth; None if there is none within the budget.
      learning_rate: rate of the grown network's arrays whose factor is 1, in the optimizer's unit; None if step is None.
      factors: factors on that rate other than 1, by the name of the array.
      reason: sentences with the numbers that decided.
      rule: name of the rule, ``"online"`` or ``"greedy"``.
    """

    step: int | None
    learning_rate: float | None
    factors: dict[str, float]
    reason: str
    rule: str

    @classmethod
    def of(cls, rule: str, step: int | None, reason: str, learning_rate: float, factors: Params) -> GrowthDecision:
        """Return the decision of a rule; after growth each array goes on at ``learning_rate`` times its factor."""
        if step is None:
            return cls(None, None, {}, reason, rule)
        return cls(step, learning_rate, factors_by_name(factors), reason, rule)

    def save(self, path: pathlib.Path) -> None:
        """Write the decision as JSON."""
        atomic.write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: pathlib.Path) -> GrowthDecision:
        """Read a decision.

        Raises:
          InputError: the file is missing, or holds something else.
        """
        try:
            found = checked(cls, read_json(path))
            positive = (*found.factors.values(), *(() if found.step is None else (found.learning_rate or 0.0,)))
            if (found.step or 0) < 0 or not all(value > 0 for value in positive):
                raise ValueError("its step is negative, or a rate or a factor is not above 0")
            return found
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no growth decision ({error}); let the run write it again") from None


def factors_by_name(factors: Params) -> dict[str, float]:
    """Return the factors other than 1 by the array's name (``q``, ``wi``, ``lm_head``), in a list by its whole path."""
    named = {}
    for path, factor in jax.tree_util.tree_flatten_with_path(factors)[0]:
        if abs(factor - 1) > 1e-9:
            parent = getattr(path[-2], "key", None) or jax.tree_util.keystr(path, simple=True, separator=".")
            named[parent] = round(factor, 6)
    return named


def rate_sentence(learning_rate: float, factors: Params) -> str:
    """Return the learning rate after growth as a sentence."""
    named = factors_by_name(factors)
    grouped = {value: ", ".join(n for n, v in named.items() if v == value) for value in named.values()}
    shown = " and ".join(f"{factor:.3g} in {names}" for factor, names in grouped.items())
    return (
        f"Learning rate after it: {learning_rate:.3g} as before{', times ' if shown else ''}{shown}, with which the function "
        "goes on at its velocity."
    )
