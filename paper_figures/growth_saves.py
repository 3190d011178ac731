r"""Growing saves: loss against FLOPs of five ways to spend one budget.

The large network from scratch at the best of its rates; one small network with the whole budget; the small network fused
with itself early and late; two small networks fused. FLOPs are those of all sources too, in steps of the large network. A
curve of a grown network begins where it is grown (▼). Lines are means over seeds, bands their range; every loss is the lowest
so far, for evaluations are noisy.

What one should see: the grown networks' curves pass below the one from scratch and reach its final loss, the dotted line, with
fewer FLOPs.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.comparison import (
    FLOAT32,
    REFERENCE,
    SMALL,
    TUNED,
    Comparison,
    arms_of_records,
    compare,
    curves,
    large_node,
    records_of,
)
from paper_figures.experiments.tables import number, percent, signed
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("growth_step", "t5_medium", REFERENCE, FLOAT32)
EARLY, LATE = ("early", 0.15), ("late", 0.35)  # recipe, and the share of the budget that its arm is nearest to
MEDIUM = {"two sources, fused": "two_zero"}  # arms of t5_medium
LATEST = 0.8  # share of a budget after which an arm that is grown is none of that budget
ZOOM = 0.25  # share of the FLOPs at which the drawn part begins


def compute(preset: str) -> Results:
    """Read the records, or run the shared tiny plan at the preset "smoke"."""
    started, records = time.perf_counter(), records_of("growth_step", preset)
    if preset == "full":
        records = [*records, *(r for r in records_of("t5_medium", preset) if r.name == "t5_medium")]
    found = arms_of_records(records)
    for record in records[1:]:
        found |= {name: paths for name, paths in arms_of_records([record]).items() if name in MEDIUM.values()}
    config, arrays = compare(records, arms=found)
    chosen = {
        "from scratch, best rate": config["tuned"][-1],
        "one small network": SMALL,
        "grown early": nearest(config, arrays, *EARLY),
        "grown late": nearest(config, arrays, *LATE),
    }
    chosen |= {text: arm for text, arm in MEDIUM.items() if arm in found}
    chosen = {text: arm for text, arm in chosen.items() if arm in found}
    arrays |= curves(found, list(chosen.values()), large_node(records)["step_flops"])
    return Results.of("growth_saves", preset, SEED, config | {"shown": chosen}, arrays, started)


def nearest(config: Mapping[str, Any], arrays: Mapping[str, Any], recipe: str, share: float, budget: int = -1) -> str:
    """Return the arm of a recipe (of any, if it has none) grown nearest to a share of the budget, of those that train to it.

    Only arms in as many seeds as any of them are taken. If there is none, "" is returned.
    """
    at = np.array(arrays["grown_at"]) / arrays["budgets"][budget]
    ended = np.isfinite(arrays["loss"][:, budget]).any(axis=1)
    of = lambda name: [i for i, arm in enumerate(config["arms"]) if re.fullmatch(rf"{name}_\d+", arm) and ended[i]]
    fits, seeds = of(recipe) or of(f"({EARLY[0]}|{LATE[0]})"), np.sum(arrays["ran"], axis=1)
    fits = [i for i in fits if seeds[i] == max(seeds[fits])]
    return config["arms"][min(fits, key=lambda i: abs(at[i] - share))] if fits else ""


def draw(results: Results) -> Figure:
    """Draw loss against FLOPs, each curve named at its end."""
    found, shown = Comparison(results), results.config["shown"]
    figure = Figure(figsize=(8.0, 4.6))
    axes = figure.add_subplot()
    whole = found.budgets[-1]
    ends, tops, lows = [], [], []
    for i, (text, arm) in enumerate(shown.items()):
        x, losses = results.arrays["curve_flops"][i], results.arrays["curves"][i]
        losses = losses[:, np.isfinite(losses).any(axis=0)]
        kept = x <= 1.001 * whole
        x, losses = x[kept], losses[kept]
        mean, color = losses.mean(axis=1), "black" if i == 0 else f"C{i - 1}"
        axes.fill_between(x, losses.min(axis=1), losses.max(axis=1), color=color, alpha=0.18, linewidth=0)
        axes.plot(x, mean, color=color, linestyle="--" if i == 1 else "-", linewidth=2.0, zorder=3)
        if i > 1:
            axes.plot(x[0], mean[0], "v", color=color, markersize=7, zorder=4)
        saved = found.saving(arm) if i else None
        final = found.loss(arm)
        ends.append(
            (
                mean[-1],
                f"{text}{arms.few_words(found, arm)}  {mean[-1] if final is None else final.mean:.3f}"
                + (f"\nsaved {percent(saved)}" if saved else ""),
                color,
            )
        )
        inside = x >= ZOOM * whole
        tops.append(float(losses[inside].max()) if inside.any() else float(losses.max()))
        lows.append(float(losses.min()))
    bottom, top = min(lows), float(np.max(tops))
    margin = 0.05 * (top - bottom)
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(0, whole * 1.001)
    if (scratch := found.loss(TUNED)) is not None:
        axes.axhline(scratch.mean, color="black", linestyle=":", linewidth=1)
    heights = spread([loss for loss, *_ in ends], 0.115 * (top - bottom + 2 * margin))
    heights = [height + max(0.0, bottom - min(heights)) for height in heights]  # none beside the numbers of the axis
    for (loss, text, color), height in zip(ends, heights, strict=True):
        axes.annotate(
            text,
            (whole, loss),
            xytext=(1.045, (height - bottom + margin) / (top - bottom + 2 * margin)),
            textcoords="axes fraction",
            color=color,
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "relpos": (0.0, 0.5)},
        )
    axes.set_xlabel("FLOPs spent, sources included, in steps of the large network")
    axes.set_ylabel("validation loss, nats a token")
    tokens = found.config["tokens_a_parameter"][-1]
    axes.set_title(f"One budget, {tokens:.2g} tokens a parameter, five ways ({arms.seeds_words(found)})")
    return figure


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights in the same order that are at least ``gap`` apart, around the middle of those given."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed: list[float] = []
    for i in order:
        placed.append(max(heights[i], placed[-1] + gap) if placed else heights[i])
    shift = float(np.mean([heights[i] for i in order]) - np.mean(placed))
    found = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        found[i] = height + shift
    return found


def table(results: Results) -> str:
    """Return, for each budget, what each way ends at and saves as a Markdown table."""
    found = Comparison(results)
    lines = [
        f"Means over {arms.seeds_words(found)}, with Student's 95 % intervals. The large network has "
        f"{found.config['parameters']:,} parameters.",
        "",
        "| budget, in steps of the large network | way | grown at | loss | saved against scratch, sources paid | given | "
        "of the mean curves, paid | given | loss less that of one small network |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for b in reversed(range(len(found.budgets))):
        budget = f"{found.budgets[b]:,.0f} ({found.config['tokens_a_parameter'][b]:.2g} tokens a parameter)"
        for text, arm in _ways(found, b).items():
            if arm not in found or found.loss(arm, b) is None:
                continue
            at = found.step_of(arm, b)
            kinds = ("paid", "given") if arm != TUNED else ()
            saved = [percent(found.saving(arm, kind, b)) for kind in kinds] or ["", ""]
            saved += [percent(found.saving_of_means(arm, kind, b)) for kind in kinds] or ["", ""]
            less = found.difference(arm, SMALL, b) if arm != SMALL and SMALL in found else None
            cells = [
                budget,
                text + arms.few_words(found, arm),
                f"{at:.0%}" if at else "",
                number(found.loss(arm, b)),
                *saved,
                signed(less),
            ]
            lines.append(f"| {' | '.join(cells)} |")
            budget = ""
    return "\n".join(lines)


def short_table(results: Results) -> str:
    """Return what each way of the largest budget ends at and saves, as a Markdown table of four columns."""
    found = Comparison(results)
    lines = [
        f"| {arms.budget_words(found)}, {arms.seeds_words(found)} | loss | saved, sources paid | given |",
        "|---|---|---|---|",
    ]
    for text, arm in _ways(found, -1).items():
        if arm not in found or found.loss(arm) is None or text.startswith("grown, best"):
            continue
        at = found.step_of(arm)
        way = f"{text}{f', after {at:.0%}' if at else ''}{arms.few_words(found, arm)}"
        saved = [percent(found.saving(arm, kind)) for kind in ("paid", "given")] if arm != TUNED else ["", ""]
        lines.append(f"| {way} | {number(found.loss(arm))} | {' | '.join(saved)} |")
    return "\n".join(lines)


def _ways(found: Comparison, b: int) -> dict[str, str]:
    """Return the ways of a budget: those of the figure, with the arms grown nearest to their shares of this budget."""
    pick = lambda recipe: nearest(found.config, found.arrays, recipe[0], recipe[1], b)
    named = [arm for arm in found.others if re.fullmatch(rf"({EARLY[0]}|{LATE[0]})_\d+", arm)]
    grown = [arm for arm in found.grown_within(named, b) if found.step_of(arm, b) < LATEST]
    best = min(found.most_tried(grown), key=lambda arm: np.mean(found.loss(arm, b).values), default="")  # type: ignore[union-attr]
    ways = {
        f"from scratch, best rate ({arms.rate_of(found.tuned(b))})": TUNED,
        "one small network": SMALL,
        "grown early": pick(EARLY),
        "grown late": pick(LATE),
        "grown, best step in hindsight": best,
    }
    kept = [arm for arm in MEDIUM.values() if arm in found and found.step_of(arm, b) < LATEST]
    return ways | {text: arm for text, arm in MEDIUM.items() if arm in kept}


def finding(results: Results) -> str:
    """Return what each way ends at and saves."""
    found, said = Comparison(results), []
    for text, arm in list(results.config["shown"].items())[1:]:
        paid, given = found.saving(arm), found.saving(arm, "given")
        saved = f", saved {percent(paid)} with sources paid" + (f", {percent(given)} given" if given != paid else "")
        at = found.step_of(arm)
        where = f" (after {at:.0%})" if at else ""
        said.append(f"{text}{where}{arms.few_words(found, arm)} {number(found.loss(arm))}{saved if paid else ''}")
    return (
        f"At {arms.budget_words(found)} ({arms.seeds_words(found)}) the network from scratch at its best rate "
        f"({arms.rate_of(found.tuned())}) ends at {number(found.loss(TUNED))}; {'; '.join(said)}."
    )
