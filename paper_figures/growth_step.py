r"""When to grow: the final loss over the growth step, at three budgets.

One small network is fused with itself after each of several shares of the budget, by the recipe that was best early and by the
one that was best late, and trains on for the rest. 0 % is the large network from scratch at its best rate, 100 % the small
network with the whole budget. Points are means over seeds, bars Student's 95 % intervals, pale points seeds. Triangles below:
where rules grow; the head-start rule grows where the small network leads the one from scratch by the most FLOPs, which its
curve and the scratch network's say; the online rule decides by trials of growing while it trains; the greedy rule compares
one step of each.

What one should see: a minimum between the ends and below both, and the rules' triangles under it.

.. math:: \text{lead}(F) = C_{scratch}(\ell_{small}(F)) - F
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from paper_figures import arms
from paper_figures.experiments import statistics
from paper_figures.experiments.comparison import (
    FLOAT32,
    REFERENCE,
    SHARES,
    SMALL,
    TUNED,
    Comparison,
    arms_of_records,
    compare,
    large_node,
    records_of,
    whole_budget,
)
from paper_figures.experiments.record import Record, load_record, path_of
from paper_figures.experiments.statistics import SCRATCH, Path, estimate
from paper_figures.experiments.tables import number, percent, signed
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
AUTO, RULES = (
    "growth_auto",
    "growth_rules",
)  # records of what the online and the greedy rule answer; they may be missing
RECORDS = ("growth_step", REFERENCE, FLOAT32, AUTO, RULES)
NAME = re.compile(r"([a-z]+)_(\d+)")  # RECIPE_N: grown after the FLOPs of N large steps
NO_RECIPES = ("noise", "random", "push", SCRATCH)
SAVED = "saved, paid | given | mean curves, paid"  # columns of a table
ANSWERS = {"head_start": ("head start", "^"), "online": ("online rule", "v"), "greedy": ("greedy rule", "<")}


def compute(preset: str) -> Results:
    """Read the records, or run the shared tiny plan at the preset "smoke"."""
    started, records = time.perf_counter(), records_of("growth_step", preset)
    config, arrays = compare(records)
    config["recipes"] = recipes_of(config["arms"])
    found, large, whole = arms_of_records(records), large_node(records), whole_budget(records)
    seeds, tuned = config["seeds"], config["tuned"]
    arrays["head_start"] = [
        [
            head_start(found[SMALL], found[tuned[b]], seed, share * whole) / (share * whole)
            if SMALL in found
            else np.nan
            for seed in seeds
        ]
        for b, share in enumerate(SHARES)
    ]
    arrays |= _answers(preset, large["step_flops"], arrays["budgets"], seeds)
    return Results.of("growth_step", preset, SEED, config, arrays, started)


def recipes_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return recipe -> its arms, in the order of their growth."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = NAME.fullmatch(name)
        if match and match[1] not in NO_RECIPES:
            found.setdefault(match[1], []).append((int(match[2]), name))
    return {recipe: [name for _, name in sorted(pairs)] for recipe, pairs in found.items()}


def head_start(small: Mapping[str, Path], scratch: Mapping[str, Path], seed: str, budget: float) -> float:
    """Return the FLOPs at which the head-start rule grows within a budget; NaN if a curve of the seed is missing."""
    if seed not in small or seed not in scratch:
        return float("nan")
    leads = [point for point in statistics.lead(small[seed], scratch[seed]) if point[0] <= budget]
    flops, largest = max(leads, key=lambda point: point[1], default=(0.0, 0.0))
    return flops if largest > 0 else 0.0


def _answers(preset: str, unit: float, budgets: np.ndarray, seeds: Sequence[str]) -> dict[str, Any]:
    """Return the shares of the budgets at which the online and the greedy rule grow, and the online rule's losses.

    Arrays are [budget, seed], NaN where a rule was not asked; a rule that does not grow within the budget has the share 1.
    """
    empty = lambda: np.full((len(budgets), len(seeds)), np.nan)
    found = {"online": empty(), "online_loss": empty(), "greedy": empty()}
    optional = lambda name: load_record(name) if preset == "full" and path_of(name, "json").exists() else None
    if (record := optional(AUTO)) is not None:
        _online(record, unit, budgets, seeds, found)
    if (record := optional(RULES)) is not None:
        for s, seed in enumerate(seeds):
            for node in record.seeds.get(seed, {}).values():
                if node.get("greedy"):
                    step, source = node["greedy"]["step"], record.seeds[seed][node["inputs"][0]]
                    flops = np.inf if step is None else step * source["step_flops"]
                    found["greedy"][:, s] = np.minimum(flops / unit / budgets, 1.0)
    return found


def _online(record: Record, unit: float, budgets: np.ndarray, seeds: Sequence[str], found: dict[str, Any]) -> None:
    """Fill in what the online rule decided in the arms NAME_BUDGET of a record."""
    for name, paths in statistics.arms_over_seeds(record.seeds).items():
        match = NAME.fullmatch(name)
        near = [b for b, budget in enumerate(budgets) if match and abs(budget / int(match[2]) - 1) < statistics.SLACK]
        for s, seed in enumerate(seeds):
            if near and seed in paths:
                path, rule = paths[seed], record.seeds[seed][paths[seed].arm.node].get("rule") or {}
                share = path.arm.before[0] / unit / budgets[near[0]] if rule.get("step") is not None else 1.0
                found["online"][near[0], s] = min(share, 1.0)
                found["online_loss"][near[0], s] = min(loss for _, _, loss in path.arm.points)


def draw(results: Results) -> Figure:
    """Draw a panel a budget: loss over growth step, and the rules' answers below."""
    found = Comparison(results)
    figure = Figure(figsize=(8.4, 3.9))
    panels = figure.subplots(1, len(found.budgets))
    root = lambda x: np.sign(x) * np.sqrt(np.abs(x))
    for b, axes in enumerate(panels):
        ends = [(0.0, TUNED), (1.0, SMALL)]
        for i, (recipe, names) in enumerate(results.config["recipes"].items()):
            points = [(found.step_of(name, b), name) for name in found.grown_within(names, b)]
            _line(axes, found, b, [ends[0], *points, ends[1]], f"C{i}", f"{'os'[i % 2]}-", f"recipe “{recipe}”", points)
        _line(axes, found, b, ends, "0.2", "D", "from scratch (0 %), one small network (100 %)", ends)
        low, high = axes.get_ylim()
        for j, (rule, (text, marker)) in enumerate(ANSWERS.items()):
            at = results.arrays[rule][b]
            at = at[np.isfinite(at)]
            height = low - (0.06 + 0.06 * j) * (high - low)
            if len(at):
                axes.plot(
                    at, np.full(len(at), height), marker, color=f"C{2 + j}", markersize=5, alpha=0.6, markeredgewidth=0
                )
                axes.plot(
                    at.mean(), height, marker, color=f"C{2 + j}", markersize=8, markeredgecolor="white", label=text
                )
        axes.set_xscale("function", functions=(root, lambda x: np.sign(x) * x**2))
        axes.set_xlim(-0.0005, 1.08)
        axes.set_xticks([0, 0.05, 0.15, 0.35, 0.65, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_title(
            f"{found.budgets[b]:,.0f} large steps\n{found.config['tokens_a_parameter'][b]:.2g} tokens a parameter"
        )
    panels[len(panels) // 2].set_xlabel("growth step, share of the budget")
    panels[0].set_ylabel("validation loss at the budget, nats a token")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


Points = Sequence[tuple[float, str]]  # (growth step, arm)


def _line(
    axes: Any, found: Comparison, b: int, points: Points, color: str, style: str, text: str, spread: Points
) -> None:
    """Draw the means at a budget over the growth step; of the points in ``spread`` also seeds and intervals."""
    known = [(at, name, one) for at, name in points if name in found and (one := found.loss(name, b)) is not None]
    if not known:
        return
    axes.plot([at for at, *_ in known], [one.mean for *_, one in known], style, color=color, label=text, zorder=3)
    low, high = min(min(one.values) for *_, one in known), max(max(one.values) for *_, one in known)
    for at, name, one in known:
        if (at, name) not in spread:
            continue
        axes.plot(np.full(len(one.values), at), one.values, ".", color=color, alpha=0.4, markersize=3.5)
        if one.interval is not None:  # cut beside the values: an interval of two seeds may be far wider
            bar = np.clip(one.interval, low - (high - low) / 2, high + (high - low) / 2)
            axes.plot([at, at], bar, color=color, linewidth=1, alpha=0.6)


def finding(results: Results) -> str:
    """Return, for each budget, the best growth step, what it saves, and what the rules answer."""
    found, sentences = Comparison(results), []
    for b, budget in enumerate(found.budgets):
        grown = [name for names in results.config["recipes"].values() for name in found.grown_within(names, b)]
        scratch, small = found.loss(TUNED, b), found.loss(SMALL, b) if SMALL in found else None
        if not grown or scratch is None:
            sentences.append(f"At {budget:,.0f} large steps no grown network ends.")
            continue
        losses = {name: one.mean for name in found.most_tried(grown) if (one := found.loss(name, b)) is not None}
        best = min(losses, key=losses.__getitem__)
        at = found.step_of(best, b)
        saved, given = found.saving(best, "paid", b), found.saving(best, "given", b)
        ends = [losses[best] < end.mean for end in (scratch, small) if end is not None]
        sentences.append(
            f"At {arms.budget_words(found, b)} the best growth step is {at:.0%} (recipe {best.split('_')[0]}): loss "
            f"{number(found.loss(best, b))}, {arms.against(found, best, TUNED, b)} scratch, "
            f"{'below' if all(ends) else 'NOT below'} both ends (scratch {number(scratch)}"
            f"{'' if small is None else f', one small network {number(small)}'}); saved {percent(saved)} with sources paid, "
            f"{percent(given)} with sources given{_rules(results, b)}{recipes_compared(found, results.config['recipes'], b)}."
        )
    return " ".join(sentences)


def recipes_compared(found: Comparison, recipes: Mapping[str, Sequence[str]], b: int) -> str:
    """Return the losses of one recipe less those of the other at every growth step that both have, paired over seeds."""
    if len(recipes) != 2:
        return ""
    (one, ones), (other, others) = sorted(recipes.items())
    at = {name.rpartition("_")[2]: name for name in found.grown_within(others, b)}
    differences = [
        f"{signed(found.difference(name, at[step], b))} at {found.step_of(name, b):.0%}"
        for name in found.grown_within(ones, b)
        if (step := name.rpartition("_")[2]) in at
    ]
    return f"; loss with recipe {one} less that with recipe {other}: {', '.join(differences)}" if differences else ""


def table(results: Results) -> str:
    """Return, for each budget, losses and savings (sources paid) over the growth step as a Markdown table."""
    found, blocks = Comparison(results), []
    recipes = results.config["recipes"]
    for b in range(len(found.budgets)):
        rows: dict[float, dict[str, str]] = {}
        for recipe, names in recipes.items():
            for name in found.grown_within(names, b):
                rows.setdefault(round(found.step_of(name, b), 3), {})[recipe] = name
        lines = [
            f"At {arms.budget_words(found, b)}{_rules(results, b).replace('; rules', '. Rules')}:",
            "",
            f"| growth step | {' | '.join(f'{recipe}: loss | {SAVED}' for recipe in recipes)} |",
            f"|---|{'---|' * 4 * len(recipes)}",
        ]
        ends = {0.0: dict.fromkeys(recipes, TUNED), 1.0: dict.fromkeys(recipes, SMALL)}
        for at, row in sorted({**rows, **ends}.items()):
            text = {0.0: "0 % (scratch)", 1.0: "100 % (one small network)"}.get(at, f"{at:.1%}")
            lines.append(f"| {text} | {' | '.join(_cells(found, row.get(recipe, ''), b) for recipe in recipes)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cells(found: Comparison, arm: str, b: int) -> str:
    """Return the cells of an arm: its loss, and what it saves with sources paid and given."""
    if arm not in found or found.loss(arm, b) is None:
        return " |  |  | "
    if arm == TUNED:
        return f"{number(found.loss(arm, b))} |  |  | "
    saved = [found.saving(arm, "paid", b), found.saving(arm, "given", b), found.saving_of_means(arm, "paid", b)]
    return f"{number(found.loss(arm, b))}{arms.few_words(found, arm)} | {' | '.join(map(percent, saved))}"


def _rules(results: Results, b: int) -> str:
    said = []
    for rule, (text, _) in ANSWERS.items():
        at = results.arrays[rule][b]
        at = at[np.isfinite(at)]
        if len(at):
            losses = results.arrays["online_loss"][b]
            ended = estimate(losses[np.isfinite(losses)].tolist()) if rule == "online" else None
            said.append(f"{text} {at.mean():.0%}" + (f" (its loss {number(ended)})" if ended else ""))
    return f"; rules grow at: {', '.join(said)}" if said else ""
