r"""What follows a growth: learning rates, optimizer state and noise, early and late.

One small network after 15 % and after 35 % of the budget is fused with itself, with variants of one recipe: antisymmetric
noise of 0.5, the learning rates by the velocity factors, the optimizer state fused. Shown is the final loss less that of
the recipe, paired over seeds: every tick is a seed, the dot the mean, the bar Student's 95 % interval. Left: rates and
states, sources whose rate had decayed, two sources trained half as long each. Right: the size of the noise between the
copies, antisymmetric (the function is kept) and random (it is not); open dots are of arms that end early, compared where
they end.

What one should see: dots left of zero, below zero on the right, are better than the recipe; the best differ between early and
late growth.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.comparison import tokens_a_step, whole_budget
from paper_figures.experiments.record import Record, load_record
from paper_figures.experiments.smoke import shared_record
from paper_figures.experiments.statistics import SLACK, Estimate, Path, arms_over_seeds, estimate
from paper_figures.experiments.tables import number
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("after_growth_early", "after_growth_late")
EVENTS = ("early", "late")
REFERENCE, REFERENCE_NOISE = "velocity_fuse", 0.5  # the recipe that all others are compared with, and its noise
NOISES = re.compile(r"(noise|random|push)_(\d+(?:\.\d+)?)")
KINDS = {"noise": "antisymmetric", "random": "random", "push": "along separating directions"}
RATES = {
    "velocity": "velocity factors",
    "keep": "rates kept",
    "relax": "factors, relaxed",
    "rewarm": "re-warmed",
    "rewarm_new": "new half re-warmed",
}
STATES = {"fuse": "state fused", "fresh": "fresh state", "fresh_new": "new half fresh"}
OTHERS = {"decayed": "decayed source", "two": "two sources"}
LINEAR = 0.1  # differences up to which the axis is linear
EXPONENT_OF_ZERO = 3.0  # noise 0 is drawn at the smallest other one divided by this


def compute(preset: str) -> Results:
    """Read the records, or run the shared tiny plan at the preset "smoke"."""
    started = time.perf_counter()
    records = [shared_record()] * 2 if preset == "smoke" else [load_record(name) for name in RECORDS]
    tables = [table_of(record) for record in records]
    variants = list(dict.fromkeys(name for table in tables for name in table))
    seeds = sorted({seed for record in records for seed in record.seeds}, key=int)
    shape = (len(EVENTS), len(variants), len(seeds))
    arrays: dict[str, Any] = {"difference": np.full(shape, np.nan), "loss": np.full(shape, np.nan)}
    arrays["ends"] = np.full(shape[:2], np.nan)
    for e, table in enumerate(tables):
        for v, name in enumerate(variants):
            for seed, (at, loss, difference) in table.get(name, {}).items():
                arrays["difference"][e, v, seeds.index(seed)] = difference
                arrays["loss"][e, v, seeds.index(seed)] = loss
                arrays["ends"][e, v] = at
    arrays["conflict"] = [[_theory(record, seed, "conflict") for seed in seeds] for record in records]
    large, whole = large_unit(records[0]), whole_budget([records[0]])
    config = {
        "variants": variants,
        "seeds": seeds,
        "grown_at": [_grown_at(record) / whole for record in records],
        "budget": whole / large["step_flops"],
        "tokens_a_parameter": whole / large["step_flops"] * tokens_a_step(records[0]) / large["parameters"],
        "measured": [origin for record in records for origin in record.provenance],
    }
    return Results.of("after_growth", preset, SEED, config, arrays, started)


def large_unit(record: Record) -> Mapping[str, Any]:
    """Return the facts of a node of the grown network, whose step is the unit of FLOPs."""
    return max(
        (node for nodes in record.seeds.values() for node in nodes.values()), key=lambda node: node["step_flops"]
    )


def _grown_at(record: Record) -> float:
    paths = arms_over_seeds(record.seeds).get(REFERENCE, {})
    return float(np.mean([path.arm.before[0] for path in paths.values()])) if paths else float("nan")


def table_of(record: Record) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return variant -> seed -> (share of the budget where it ends, its loss there, loss less the reference's there)."""
    found = arms_over_seeds(record.seeds)
    reference, whole = found.get(REFERENCE, {}), whole_budget([record])
    return {
        name: {seed: row for seed, path in paths.items() if (row := _row(path, reference.get(seed), whole)) is not None}
        for name, paths in found.items()
        if known(name)
    }


def known(name: str) -> bool:
    """Return whether an arm is a variant of the recipe."""
    rates, _, state = name.partition("_")
    if name.startswith("rewarm_new_"):
        rates, state = "rewarm_new", name.removeprefix("rewarm_new_")
    return name in OTHERS or bool(NOISES.fullmatch(name)) or (rates in RATES and state in STATES)


def _row(path: Path, reference: Path | None, whole: float) -> tuple[float, float, float] | None:
    if reference is None:
        return None
    flops = min(whole, path.end, reference.end)
    if flops >= (1 - SLACK) * whole:
        flops = whole
    ours, theirs = path.loss_at(flops), reference.loss_at(flops)
    return None if ours is None or theirs is None else (flops / whole, ours, ours - theirs)


def _theory(record: Record, seed: str, term: str) -> float:
    """Return a term of theory at the growth of the reference arm; NaN if it was not measured."""
    nodes = record.seeds.get(seed, {})
    fused = nodes.get(REFERENCE, {}).get("inputs", [None])[0]
    theory = nodes.get(fused, {}).get("theory") or {}
    return float(theory.get(term, np.nan))


def words(name: str) -> str:
    """Return the words for a variant."""
    for rates in sorted(RATES, key=len, reverse=True):
        state = name.removeprefix(f"{rates}_")
        if name.startswith(f"{rates}_") and state in STATES:
            return f"{RATES[rates]} + {STATES[state]}"
    return OTHERS.get(name, name.replace("_", " "))


def _estimate(results: Results, event: int, variant: str, key: str = "difference") -> Estimate | None:
    values = results.arrays[key][event, results.config["variants"].index(variant)]
    return estimate(values[np.isfinite(values)].tolist())


def draw(results: Results) -> Figure:
    """Draw a row an event: rates and states left, noise right."""
    variants = results.config["variants"]
    recipes = [name for name in variants if not NOISES.fullmatch(name)]
    figure = Figure(figsize=(8.4, 2.0 + 2 * (0.8 + 0.21 * len(recipes))))
    panels = figure.subplots(2, 2, width_ratios=(1.15, 1.0))
    for e, event in enumerate(EVENTS):
        left, right = panels[e]
        values: list[float] = []
        for row, name in enumerate(recipes):
            found = _estimate(results, e, name)
            arms.dots(left, row, found, arms.GREY if name == REFERENCE else arms.OURS)
            values += found.values if found else ()
            text = "–" if found is None else "reference" if name == REFERENCE else f"{found.mean:+.3f}"
            left.text(1.02, row, text, transform=left.get_yaxis_transform(), va="center", fontsize=7.5)
        left.axvline(0, color=arms.GREY, linestyle="--", linewidth=1, zorder=1)
        left.set_yticks(range(len(recipes)), [words(name) for name in recipes], fontsize=7.5)
        left.set_ylim(len(recipes) - 0.4, -0.6)
        left.tick_params(axis="y", length=0)
        left.grid(visible=False, axis="y")
        arms.limits(left, values, 0.01)
        left.set_title(f"{event}: grown after {results.config['grown_at'][e]:.0%} of the budget")
        _draw_noise(right, results, e)
    for axes in panels[:, 0]:
        axes.locator_params(axis="x", nbins=5)  # more labels touch each other
    panels[1, 0].set_xlabel("final loss less the recipe's, nats a token")
    panels[1, 1].set_xlabel("size of the noise, shares of a block's typical weight")
    panels[0, 1].legend(loc="upper center")
    return figure


def _draw_noise(axes: Any, results: Results, event: int) -> None:
    """Draw the difference over the size of the noise, a line a kind."""
    sizes = {name: (m[1], float(m[2])) for name in results.config["variants"] if (m := NOISES.fullmatch(name))}
    sizes[REFERENCE] = ("noise", REFERENCE_NOISE)
    least = min((size for _, size in sizes.values() if size > 0), default=1.0) / EXPONENT_OF_ZERO
    for i, (kind, text) in enumerate(KINDS.items()):
        names = sorted((name for name in sizes if sizes[name][0] == kind), key=lambda name: sizes[name][1])
        points = [
            (max(sizes[name][1], least), name, found) for name in names if (found := _estimate(results, event, name))
        ]
        if not points:
            continue
        axes.plot([x for x, *_ in points], [f.mean for *_, f in points], color=f"C{i}", label=text, zorder=2)
        for x, name, found in points:
            full = results.arrays["ends"][event, results.config["variants"].index(name)] >= 1 - SLACK
            axes.plot([x] * len(found.values), found.values, "_", color=f"C{i}", alpha=0.55, markersize=7)
            axes.plot(x, found.mean, "os^"[i], color=f"C{i}", markerfacecolor=f"C{i}" if full else "white", zorder=3)
    axes.axhline(0, color=arms.GREY, linestyle="--", linewidth=1, zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_yticks([-0.05, 0, 0.05, 0.1, 0.2, 0.5, 1], ["−0.05", "0", "0.05", "0.1", "0.2", "0.5", "1"], fontsize=7.5)
    axes.set_ylim(-0.08, 2)
    ticks = sorted({size for _, size in sizes.values()})
    axes.set_xticks([max(size, least) for size in ticks], [f"{size:g}" for size in ticks], fontsize=7.5)
    axes.minorticks_off()
    axes.set_ylabel("loss less the recipe's")


def table(results: Results) -> str:
    """Return the final losses less the recipe's as a Markdown table."""
    lines = [
        f"Validation loss less that of the recipe ({words(REFERENCE)}, antisymmetric noise {REFERENCE_NOISE:g}), paired over "
        f"{len(results.config['seeds'])} seeds, with Student's 95 % interval; at {results.config['budget']:,.0f} steps of the "
        "large network, or where an arm ends early (its share of the budget).",
        "",
        f"| variant | {' | '.join(f'grown after {at:.0%}' for at in results.config['grown_at'])} |",
        f"|---|{'---|' * len(EVENTS)}",
    ]
    for name in results.config["variants"]:
        cells = [_cell(results, e, name) for e in range(len(EVENTS))]
        lines.append(f"| {words(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Results, event: int, variant: str) -> str:
    found, ends = (
        _estimate(results, event, variant),
        results.arrays["ends"][event, results.config["variants"].index(variant)],
    )
    if found is None:
        return "–"
    early = "" if ends >= 1 - SLACK else f" (at {ends:.0%})"
    if variant == REFERENCE:
        loss = _estimate(results, event, variant, "loss")
        return "–" if loss is None else f"0 (loss {number(loss)})"
    return (
        f"{found.mean:+.3f}{'' if found.interval is None else ' ({:+.3f} to {:+.3f})'.format(*found.interval)}{early}"
    )


def finding(results: Results) -> str:
    """Return, for each event, the variants that are better and worse than the recipe beyond their intervals, and the best."""
    sentences = []
    every: list[set[str]] = []
    known = excluding = 0
    for e, event in enumerate(EVENTS):
        found = {v: one for v in results.config["variants"] if v != REFERENCE and (one := _ended(results, e, v))}
        if not found:
            sentences.append(f"{event.capitalize()} growth has no variant to compare.")
            continue
        best = min(found, key=lambda v: found[v].mean)
        better = [v for v, one in found.items() if one.interval and one.interval[1] < 0]
        worse = [v for v, one in found.items() if one.interval and one.interval[0] > 0]
        every.append(set(better))
        known, excluding = known + sum(bool(one.interval) for one in found.values()), excluding + len(better + worse)
        loss = _estimate(results, e, REFERENCE, "loss")
        sentences.append(
            f"Grown after {results.config['grown_at'][e]:.0%}, the recipe ends at "
            f"{'–' if loss is None else f'{loss.mean:.3f}'}; the lowest mean is {words(best)} ({found[best].mean:+.3f}"
            f"{_bounds(found[best])}). Better than the recipe, the interval below zero: {_listed(found, better)}; "
            f"worse, above zero: {_listed(found, worse)}.{_said(results, e)}"
        )
    if known:
        both = sorted(set.intersection(*every)) if len(every) == len(EVENTS) else []
        sentences.append(
            f"{excluding} of {known} intervals exclude zero, and chance alone would give {0.05 * known:.1f}; better after "
            f"every growth: {', '.join(map(words, both)) or 'none'}."
        )
    return " ".join(sentences)


def _ended(results: Results, event: int, variant: str) -> Estimate | None:
    """Return the difference of a variant that trains to the budget."""
    ends = results.arrays["ends"][event, results.config["variants"].index(variant)]
    return _estimate(results, event, variant) if ends >= 1 - SLACK else None


def _listed(found: Mapping[str, Estimate], names: Sequence[str]) -> str:
    ordered = sorted(names, key=lambda name: found[name].mean)
    return ", ".join(f"{words(name)} {found[name].mean:+.3f}" for name in ordered) or "none"


def _bounds(found: Estimate) -> str:
    return "" if found.interval is None else f", {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"


def _said(results: Results, event: int) -> str:
    values: Sequence[float] = results.arrays["conflict"][event]
    known_values = [value for value in values if np.isfinite(value)]
    return f" The conflict term at the event is {np.mean(known_values):+.1e}." if known_values else ""
