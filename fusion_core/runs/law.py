"""Laws of growth of a plan, fitted to its finished runs."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.runs.data import RunData
from fusion_core.runs.graph import resolve
from fusion_core.runs.law_cases import case_of
from fusion_core.runs.plan import Plan, plan_values
from fusion_core.runs.results import of_seeds, read_results
from fusion_core.runs.run import PLAN, RESULTS
from fusion_core.schedule import SavedLaw, fit_law, run_curves
from fusion_core.text.json_files import LARGE, read_json

NOT_COMPARED = ("name", "seeds", "budget", "rule")  # of the plans of runs that a law is fitted to


def text_of(plan: Plan, note: Callable[[str], None] = lambda line: None, folder: pathlib.Path | None = None) -> str:
    """Return the sum of a plan's text and tokenizer, which are read from a run's folder, the cache, or made.

    Raises:
      InputError: the text cannot be read.
    """
    if folder is not None and (folder / "data").exists():
        return RunData(plan.data, plan.seed, folder / "data", note).digest
    with tempfile.TemporaryDirectory() as temporary:
        return RunData(plan.data, plan.seed, pathlib.Path(temporary), note).digest


def fit_runs(
    plan: Plan, folders: Sequence[pathlib.Path], *, kind: str = "", growth: str = "", longest: float = math.inf,
    draws: int = 100,
) -> SavedLaw:  # fmt: skip
    """Fit a law to finished runs of a plan.

    Args:
      plan: of the runs.
      folders: of the runs; their seeds are told apart by folder.
      kind: which law; if empty, ``"curves"`` where scratch and the small network are there, else ``"head_start"``.
      growth: a growth of the recipe that the law is to be of, if the plan has several.
      longest: large steps; what comes after in the runs is left out.
      draws: of the bootstrap.

    Raises:
      InputError: a folder holds no finished run of the plan, the runs are of different texts, or no law can be fitted
        (``fit_law``).
    """
    case = case_of(plan, resolve(plan), growth)
    seeds: dict[str, Any] = {}
    texts: dict[str, pathlib.Path] = {}
    for folder in folders:
        results = _results(plan, folder)
        seeds |= {f"{folder}, {seed}": nodes for seed, nodes in of_seeds(results, plan.seed).items()}
        texts[text_of(plan, folder=folder)] = folder
    if len(texts) > 1:
        raise InputError(
            f"the runs {', '.join(map(str, texts.values()))} are of different texts; give runs of one text"
        )
    one = case.facts.growth["sources"] == 1  # else one small network's curve is not that of the sources together
    if kind == "curves" and not one:
        raise InputError("the law of curves is of growths of one source; take the law head_start")
    small = case.small if one else ()
    curves = run_curves(seeds, scratch=case.scratch, small=small, grown=case.grown)
    kind = kind or ("curves" if case.scratch and small else "head_start")
    facts = dataclasses.replace(case.facts, text=next(iter(texts), None))
    return fit_law(kind, curves, facts, longest=longest, draws=draws)


def _results(plan: Plan, folder: pathlib.Path) -> dict[str, Any]:
    """Return the results of a finished run of the plan, on whatever seeds and within whatever budget."""
    remedy = "give the folder of a finished run"
    try:
        ran, results = read_json(folder / PLAN, remedy, longest=LARGE), read_results(folder / RESULTS, remedy)
        said = plan_values(plan)
        differ = [key for key, value in said.items() if key not in NOT_COMPARED and ran.get(key) != value]
        if not differ:
            return results
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no finished run ({error.filename} is missing); finish it first") from None
    raise InputError(f"{folder} is of another plan: {', '.join(differ)} differ; give the plan that it was begun with")
