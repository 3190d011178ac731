r"""Laws fitted to short runs: predicted against measured best step and final loss.

Each law is fitted to the first part of the curves, of T5s (records) and of toys, and asked about the whole budget. Left: the
best growth step, as a share of the budget, with the law's interval against the best of the steps that were measured. Right:
how far the foretold loss of growing at best is from the one that was measured, over how many times longer the budget is than
the runs of the fit. Filled marks: the law says of itself that it may plan. A law that refuses its curves has no mark.

What one should see: filled marks near the diagonal on the left and below 10 % on the right; marks that are far off, open.

.. math:: |\log(L_{predicted} / L_{measured})|
"""

import json
import math
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from fusion_core.errors import InputError
from fusion_core.schedule import LawFacts, RunCurves
from paper_figures.experiments import laws
from paper_figures.experiments.laws import Judged, judged
from paper_figures.results import Results

SEED = 0
DEPENDS = ("bea", "fusion_core")
RECORDS = (*laws.JUDGED, "scratch_float32")
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the budget, to which the runs of a fit go
DRAWS = 20
LAWS = ("head_start", "curves", "curves alone")
HERE = pathlib.Path(__file__).parent
# what benchmarks.growth_law_toys wrote; may be missing
TOYS = HERE.parent / "benchmarks" / "growth_law_toys.json"
TOY_RULES = {"head_start": "head-start law", "curves": "law of curves", "curves alone": "curves alone"}
COLUMNS = ("share", "low", "high", "measured_share", "error", "stretch", "holds")


def compute(preset: str) -> Results:
    """Fit the laws to the records, or to curves of a known law at the preset "smoke"; read what the toys gave."""
    started = time.perf_counter()
    found = [_pretended()] if preset == "smoke" else [one for name in laws.JUDGED if (one := judged(name)) is not None]
    shares, draws = ((0.5,), 3) if preset == "smoke" else (SHARES, DRAWS)
    rows = [row for one in found for share in shares for law in LAWS if (row := _row(one, law, share, draws))]
    asked = len(found) * len(shares) * len(LAWS)
    if preset == "full":
        toys = _toys()
        rows, asked = rows + toys, asked + len(toys)
    config = {"laws": [law for law, *_ in rows], "problems": [where for _, where, *_ in rows], "asked": asked}
    numbers = np.reshape([row[2:] for row in rows], (-1, len(COLUMNS)))
    arrays = dict(zip(COLUMNS, numbers.T, strict=True))
    return Results.of("growth_law", preset, SEED, config, arrays, started)


Row = tuple[str, str, float, float, float, float, float, float, float]


def _row(found: Judged, law: str, share: float, draws: int) -> Row | None:
    """Return what a law that is fitted to runs of a share of the budget says, beside what was measured; None if it refuses."""
    try:
        said = laws.foretold(found, law, share * found.budget, draws)
    except InputError:
        return None
    best, loss = found.best()
    error = abs(math.log(said["grow"].value / loss))
    return law, found.name, *said["share"], best / found.budget, error, 1 / share, float(said["holds"])


def _toys() -> list[Row]:
    """Return the same of the toys, as far as their benchmark has it: without intervals."""
    if not TOYS.exists():
        return []
    rows: list[Row] = []
    for kind, problems in json.loads(TOYS.read_text(encoding="utf-8"))["problems"].items():
        for problem in problems:
            for law, rule in TOY_RULES.items():
                for name, found in problem["free"].items():
                    rows += _toy_row(law, rule, name, found, problem, kind)
    return rows


def _toy_row(
    law: str, rule: str, name: str, found: Mapping[str, Any], problem: Mapping[str, Any], kind: str
) -> list[Row]:
    match = re.fullmatch(re.escape(rule) + r" \((\d+) times\)", name)
    if match is None or "share" not in found:
        return []
    share, holds, error = found["share"], found["holds"], found.get("off")
    sure = float(bool(holds) and sum(holds) > len(holds) / 2)
    numbers = (share, share, share, problem["best_share"], math.nan if error is None else error, float(match[1]), sure)
    return [(law, f"toys, {kind}", *numbers)]


def _pretended() -> Judged:
    """Return curves of a known law in the place of a record."""
    law = lambda n1, n2: 2.0 + 8.0 * (n2 + 20.0 * n1**0.6) ** -0.3
    length = np.linspace(10.0, 1000.0, 100)
    curve = lambda losses, at: np.column_stack([at, losses])
    seeds = lambda make: tuple(make(1 + 0.002 * seed) for seed in range(2))
    scratch = seeds(lambda f: curve(f * law(0.0, length), length))
    small = seeds(lambda f: curve(f * law(length, 0.0), length))
    n2 = np.linspace(0.0, 960.0, 97)
    grown = tuple(
        (n1, run) for n1 in (40.0, 100.0, 300.0, 500.0) for run in seeds(lambda f, n1=n1: curve(f * law(n1, n2), n2))
    )
    facts = LawFacts(None, 1, 1, {}, {}, {}, {"noise": 0.5})
    return Judged("smoke", facts, RunCurves(1.0, scratch, small, grown), 2, small, 1000.0, (1, 2))


def draw(results: Results) -> Figure:
    """Draw predicted against measured best steps, and the errors of the loss."""
    found, problems = results.arrays, results.config["problems"]
    marks = {where: "os^Dv<>"[i % 7] for i, where in enumerate(dict.fromkeys(problems))}
    figure = Figure(figsize=(7.6, 3.6))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    right.axhline(0.1, color="0.7", linewidth=1, zorder=0)
    for i, (law, where) in enumerate(zip(results.config["laws"], problems, strict=True)):
        color = f"C{LAWS.index(law)}"
        style = {"marker": marks[where], "color": color, "markersize": 5, "linestyle": "none"}
        style |= {"markerfacecolor": color if found["holds"][i] else "white"}
        at = found["measured_share"][i] + 0.012 * (LAWS.index(law) - 1)
        left.plot([at, at], [found["low"][i], found["high"][i]], color=color, alpha=0.35, linewidth=1)
        left.plot(at, found["share"][i], **style)
        right.plot(found["stretch"][i] * 1.04 ** (LAWS.index(law) - 1), found["error"][i], **style)
    for axis in (left.xaxis, left.yaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.set_xlabel("best step measured, share of the budget")
    left.set_ylabel("best step predicted")
    right.set_xscale("log")
    right.set_yscale("symlog", linthresh=0.05)
    right.set_ylim(bottom=0)
    right.set_xticks([1, 2, 4, 10], ["1", "2", "4", "10"])
    right.minorticks_off()
    right.set_xlabel("budget over the longest run of the fit")
    right.set_ylabel("error of the foretold loss")
    handles = [Line2D([], [], color=f"C{i}", marker="o", linestyle="none", label=law) for i, law in enumerate(LAWS)]
    handles += [
        Line2D([], [], color="0.4", marker=mark, linestyle="none", label=where) for where, mark in marks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def finding(results: Results) -> str:
    """Say how far the laws that may plan were off, and those that may not."""
    found, asked = results.arrays, results.config["asked"]
    given = len(found["share"])
    parts = []
    for word, sure in (("may", 1), ("may not", 0)):
        which = found["holds"] == sure
        if which.any():
            loss, share = found["error"][which], np.abs(found["share"] - found["measured_share"])[which]
            best = f"the best step by {_median(share):.0%} of the budget (worst {share.max():.0%})"
            parts.append(
                f"of {which.sum()} that said they {word} plan the loss of growing at best was off by {_median(loss):.1%} "
                f"(worst {np.nanmax(loss):.1%}) and {best}"
            )
    return f"Of {asked} fits {asked - given} were refused; {'; '.join(parts) or 'no law was left'}."


def _median(values: Sequence[float]) -> float:
    return float(np.nanmedian(values))
