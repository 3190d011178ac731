"""Measurements of growth that several tests judge, made once a session: most of their time is compilation."""

import copy
import functools
from collections.abc import Callable
from typing import Any

from toy_models.when_to_grow import derivative, measure, problems

_compute, _measure = derivative.compute, measure.measure


@functools.cache
def derivative_at(largest: float, halvings: int, seed: int) -> dict[str, Any]:
    """``toy_models.when_to_grow.derivative.compute``."""
    return _compute(largest, halvings, seed)


@functools.cache
def _smoke_record() -> dict[str, Any]:
    return _measure(problems.draw(problems.SMOKE, problems.TUNING), 2, 2, 1)


def measure_smoke(
    problem: problems.Problem,
    runs: int,
    truth_runs: int,
    costate_runs: int,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """``toy_models.when_to_grow.measure.measure`` of the first smoke problem with two runs; at most one with the costate."""
    assert (problem, runs, truth_runs) == (problems.draw(problems.SMOKE, problems.TUNING), 2, 2)
    record = copy.deepcopy(_smoke_record())
    if not costate_runs:
        del record["costate"]
    return record
