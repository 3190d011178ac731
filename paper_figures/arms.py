"""What the figures of arms share: tables drawn as dots with their numbers, and sentences from the numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures.experiments.comparison import SMALL, TUNED, Comparison, compare, records_of
from paper_figures.experiments.statistics import SCRATCH, Estimate
from paper_figures.experiments.tables import label, number, percent
from paper_figures.results import Results

WIDTH, ROW = 8.4, 0.34  # inches of a figure, and of a row
OURS, GIVEN, GREY = "C0", "C1", "0.35"


def table_results(name: str, preset: str, seed: int) -> Results:
    """Return the arms of an experiment at three budgets: from its record, or at the preset "smoke" from the shared tiny run."""
    started = time.perf_counter()
    config, arrays = compare(records_of(name, preset))
    return Results.of(name, preset, seed, config, arrays, started)


def rows_of(found: Comparison, labels: Mapping[str, str]) -> list[str]:
    """Return the arms of the table: from scratch, the small one, those of ``labels`` in their order, then others."""
    others = [arm for arm in found.others if arm != SMALL]
    named = [arm for arm in labels if arm in others]
    return [TUNED, *([SMALL] if SMALL in found else []), *named, *(arm for arm in others if arm not in named)]


def name_of(found: Comparison, arm: str, labels: Mapping[str, str]) -> str:
    """Return the words for an arm."""
    if arm == TUNED:
        return f"from scratch, best rate ({rate_of(found.tuned())})"
    return labels.get(arm, "one small network" if arm == SMALL else label(arm)) + few_words(found, arm)


def rate_of(arm: str) -> str:
    """Return the words for an arm from scratch: ``scratch_0.02_width`` is "0.02 with width factors"."""
    words = arm.removeprefix(SCRATCH).strip("_").replace("_", " ")
    return words.replace(" width", " with width factors") or "the plan's"


def budget_words(found: Comparison, budget: int = -1) -> str:
    """Return ``4,000 steps of the large network, 40 tokens a parameter``."""
    tokens = found.config["tokens_a_parameter"][budget]
    return f"{found.budgets[budget]:,.0f} steps of the large network, {tokens:.2g} tokens a parameter"


def dots(axes: Any, row: float, found: Estimate | None, color: str, marker: str = "o", scale: float = 1.0) -> None:
    """Draw a value a seed, their mean, and the interval as a bar."""
    if found is None:
        return
    values = scale * np.array(found.values)
    axes.plot(values, np.full(len(values), row), "|", color=color, markersize=9, alpha=0.55, zorder=2)
    if found.interval is not None:
        low, high = (scale * end for end in found.interval)
        axes.plot([low, high], [row, row], color=color, linewidth=1.6, alpha=0.8, zorder=2)
    face = color if found.complete else "white"
    axes.plot(scale * found.mean, row, marker, color=color, markerfacecolor=face, markersize=5.5, zorder=3)


def limits(axes: Any, values: Sequence[float], least: float = 0.0) -> None:
    """Set the horizontal limits by the seeds' values: an interval of two or three seeds may be far wider, and is cut."""
    known = [value for value in values if np.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    around = max(0.2 * (high - low), least)
    axes.set_xlim(low - around, high + around)


def draw_table(results: Results, title: str, labels: Mapping[str, str], *, by_loss: bool = False) -> Figure:
    """Draw a row an arm: left its final loss, right what it saves, with the numbers printed beside.

    With ``by_loss`` the arms that are grown are in the order of their losses.
    """
    found = Comparison(results)
    rows = rows_of(found, labels)
    if by_loss:
        level = lambda arm: estimate.mean if (estimate := found.loss(arm)) else float("inf")
        rows.sort(key=lambda arm: (arm not in (TUNED, SMALL), 0.0 if arm in (TUNED, SMALL) else level(arm)))
    figure = Figure(figsize=(WIDTH, 1.9 + ROW * len(rows)))
    losses, savings = figure.subplots(1, 2, sharey=True, width_ratios=(1.0, 1.0))
    scratch = found.loss(TUNED)
    values: dict[str, list[float]] = {"loss": [], "saving": []}
    for row, arm in enumerate(rows):
        loss = found.loss(arm)
        color = GREY if arm in (TUNED, SMALL) else OURS
        dots(losses, row, loss, color)
        losses.text(1.02, row, number(loss), transform=losses.get_yaxis_transform(), va="center", fontsize=8)
        values["loss"] += loss.values if loss else ()
        if arm == TUNED:
            continue
        paid, given = found.saving(arm, "paid"), found.saving(arm, "given")
        if given != paid:
            dots(savings, row, given, GIVEN, "D", 100)
        dots(savings, row, paid, color, "o", 100)
        values["saving"] += [100 * v for one in (paid, given) if one for v in one.values]
        text = short(paid) if paid == given else f"{short(paid)};  {short(given)}"
        savings.text(1.02, row, text, transform=savings.get_yaxis_transform(), va="center", fontsize=8)
    if scratch is not None:
        losses.axvline(scratch.mean, color=GREY, linestyle="--", linewidth=1, zorder=1)
    savings.axvline(0, color=GREY, linestyle="--", linewidth=1, zorder=1)
    losses.set_yticks(range(len(rows)), [name_of(found, arm, labels) for arm in rows])
    losses.set_ylim(len(rows) - 0.4, -0.6)
    limits(losses, values["loss"], 0.01)
    limits(savings, values["saving"], 1.0)
    for axes in (losses, savings):
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    losses.set_xlabel("validation loss, nats a token")
    savings.set_xlabel("FLOPs saved, %")
    losses.set_title("loss (± 95 %)", loc="right", fontsize=8.5)
    savings.set_title("paid;  given", loc="right", fontsize=8.5)
    figure.suptitle(f"{title}\n{budget_words(found)}, {seeds_words(found)}", x=0.01, ha="left", fontsize=10)
    style: dict[str, Any] = {"linestyle": "none", "markersize": 5.5}
    handles = [
        savings.plot([], [], "o", color=OURS, label="sources paid", **style)[0],
        savings.plot([], [], "D", color=GIVEN, label="sources given", **style)[0],
        savings.plot(
            [], [], "o", color=OURS, markerfacecolor="white", label="at most: not reached in every seed", **style
        )[0],
        savings.plot([], [], "|", color="0.3", markersize=9, linestyle="none", label="one seed")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def short(found: Estimate | None) -> str:
    """Return a saving in few letters: ``31 %``, ``≤ 12 %`` for an upper bound, ``–`` for none."""
    return "–" if found is None else f"{'' if found.complete else '≤ '}{100 * found.mean:.0f} %"


def few_words(found: Comparison, arm: str) -> str:
    """Return `` (3 of 5 seeds)`` for an arm that was not run in all; nothing for one that was."""
    ran = found.seeds_of(arm)
    return "" if ran == len(found.config["seeds"]) else f" ({ran} of {seeds_words(found)})"


def seeds_words(found: Comparison) -> str:
    """Return ``3 seeds``."""
    count = len(found.config["seeds"])
    return f"{count} seed{'' if count == 1 else 's'}"


def table_finding(results: Results, labels: Mapping[str, str]) -> str:
    """Return what the numbers say: the best grown arm against scratch and the small network, then all others in order."""
    found = Comparison(results)
    grown = [arm for arm in rows_of(found, labels) if arm not in (TUNED, SMALL) and found.loss(arm) is not None]
    scratch = found.loss(TUNED)
    if not grown or scratch is None:
        return f"No grown arm trains to {budget_words(found)}."
    losses = {arm: estimate.mean for arm in grown if (estimate := found.loss(arm)) is not None}
    order = sorted(losses, key=losses.__getitem__)
    best, words = order[0], lambda arm: name_of(found, arm, labels)
    sentences = [
        f"At {budget_words(found)} ({seeds_words(found)}; ± is half of Student's 95 % interval) "
        f"{words(best)} ends lowest, at {number(found.loss(best))}: {against(found, best, TUNED)} the network from scratch "
        f"at its best rate ({rate_of(found.tuned())}; {number(scratch)})"
        + (f", {against(found, best, SMALL)} one small network" if SMALL in found else "")
        + "."
    ]
    sentences.append("Saved against scratch, sources paid / given: " + "; ".join(
        f"{words(arm)} {percent(found.saving(arm))} / {percent(found.saving(arm, 'given'))}"
        for arm in ([SMALL] if SMALL in found else []) + order
    ) + ".")  # fmt: skip
    return " ".join(sentences)


def against(found: Comparison, arm: str, other: str, budget: int = -1) -> str:
    """Return ``0.110 (0.080 to 0.140) below``, from the paired difference of losses at a budget."""
    difference = found.difference(arm, other, budget)
    if difference is None:
        return "not compared with"
    side = "below" if difference.mean < 0 else "above"
    if difference.interval is None:
        return f"{abs(difference.mean):.3f} {side}"
    low, high = sorted(-v if side == "below" else v for v in difference.interval)
    clear = "" if low > 0 else ", an interval that includes zero,"
    return f"{abs(difference.mean):.3f} ({low:.3f} to {high:.3f}){clear} {side}"
