r"""Fine-tuned on SST-2 and RTE: networks that were grown, and one from scratch, of equal cost.

The large network from scratch, one source fused with itself, two sources fused, and one small network, pre-trained at equal
FLOPs, sources paid, and fine-tuned with the same settings. Every tick is a seed, the dot their mean, the bar Student's 95 %
interval. Dashed: the largest class; dotted: a logistic regression on counts of words.

What one should see: the grown networks' dots not to the left of the one from scratch, and all to the right of the lines.
"""

import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.record import load_record
from paper_figures.experiments.smoke import shared_scores
from paper_figures.experiments.statistics import Estimate, estimate
from paper_figures.experiments.tables import label
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("finetune",)
SCRATCH = "scratch"
LABELS = {
    SCRATCH: "from scratch",
    "small": "one small network",
    "self": "one source with itself",
    "two": "two sources, fused",
}
TITLES = {"sst2": "SST-2", "rte": "RTE"}


def compute(preset: str) -> Results:
    """Read the record's scores, or fine-tune two arms of the shared tiny run at the preset "smoke"."""
    started = time.perf_counter()
    if preset == "smoke":
        scores, measured = shared_scores(), []
    else:
        record = load_record("finetune")
        scores, measured = record.scored(), list(record.provenance)
    names = list(dict.fromkeys(arm for task in scores.values() for arm in task["arms"]))
    names = [arm for arm in LABELS if arm in names] + [arm for arm in names if arm not in LABELS]
    seeds = sorted({s for task in scores.values() for arm in task["arms"].values() for s in arm}, key=int)
    value = lambda task, arm, seed: scores[task]["arms"].get(arm, {}).get(seed)
    arrays: dict[str, Any] = {
        "scores": [[[_number(value(task, arm, seed)) for seed in seeds] for arm in names] for task in scores],
        "majority": [_number(task["majority"]) for task in scores.values()],
        "bag_of_words": [_number(task["bag_of_words"]) for task in scores.values()],
        "rows": [task["rows"] for task in scores.values()],
    }
    config = {
        "tasks": list(scores),
        "metrics": [task["metric"] for task in scores.values()],
        "arms": names,
        "seeds": seeds,
    }
    settings = {"settings": {task: one["settings"] for task, one in scores.items()}, "measured": measured}
    return Results.of("finetune", preset, SEED, config | settings, arrays, started)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _scores(results: Results, task: int, arm: int) -> Estimate | None:
    values = results.arrays["scores"][task, arm]
    return estimate(values[np.isfinite(values)].tolist())


def draw(results: Results) -> Figure:
    """Draw a panel a task, a row an arm."""
    names, tasks = results.config["arms"], results.config["tasks"]
    figure = Figure(figsize=(arms.WIDTH, 1.5 + arms.ROW * len(names)))
    panels = np.atleast_1d(figure.subplots(1, len(tasks), sharey=True))
    for t, (task, axes) in enumerate(zip(tasks, panels, strict=True)):
        lines = {"--": results.arrays["majority"][t], ":": results.arrays["bag_of_words"][t]}
        for style, at in lines.items():
            if np.isfinite(at):
                axes.axvline(100 * at, color=arms.GREY, linestyle=style, linewidth=1, zorder=1)
        values = [100 * at for at in lines.values()]
        for row in range(len(names)):
            found = _scores(results, t, row)
            arms.dots(axes, row, found, arms.OURS if names[row] not in (SCRATCH, "small") else arms.GREY, scale=100)
            values += [100 * v for v in found.values] if found else []
            text = "–" if found is None else f"{100 * found.mean:.1f}{_half(found)}"
            axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        arms.limits(axes, values, 0.5)
        axes.set_title(f"{TITLES.get(task, task)} ({results.arrays['rows'][t]:,.0f} rows)")
        axes.set_xlabel(f"{results.config['metrics'][t]}, %")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(names)), [LABELS.get(arm, label(arm)) for arm in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _half(found: Estimate) -> str:
    return "" if found.interval is None else f" ± {50 * (found.interval[1] - found.interval[0]):.1f}"


def table(results: Results) -> str:
    """Return the scores as a Markdown table."""
    tasks = results.config["tasks"]
    heads = [
        f"{TITLES.get(task, task)}, {metric}" for task, metric in zip(tasks, results.config["metrics"], strict=True)
    ]
    lines = [f"| {len(results.config['seeds'])} seeds | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for i, arm in enumerate(results.config["arms"]):
        found = [_scores(results, t, i) for t in range(len(tasks))]
        cells = ["–" if one is None else f"{100 * one.mean:.1f}{_half(one)}" for one in found]
        lines.append(f"| {LABELS.get(arm, label(arm))} | {' | '.join(cells)} |")
    for text, key in (("the largest class", "majority"), ("a bag of words", "bag_of_words")):
        cells = [f"{100 * at:.1f}" if np.isfinite(at) else "–" for at in results.arrays[key]]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def finding(results: Results) -> str:
    """Return, for each task, every arm's score, its paired difference to scratch, and whether all are above the lines."""
    names, sentences = results.config["arms"], []
    scratch = next((i for i, arm in enumerate(names) if arm.startswith(SCRATCH)), None)
    for t, task in enumerate(results.config["tasks"]):
        said = []
        for i, arm in enumerate(names):
            found = _scores(results, t, i)
            if found is None:
                continue
            paired = None
            if scratch is not None and scratch != i:
                difference = results.arrays["scores"][t, i] - results.arrays["scores"][t, scratch]
                paired = estimate(difference[np.isfinite(difference)].tolist())
            against = "" if paired is None else f" ({100 * paired.mean:+.1f}{_half(paired)} against scratch)"
            said.append(f"{LABELS.get(arm, label(arm))} {100 * found.mean:.1f}{_half(found)} %{against}")
        lines = {
            "the largest class": results.arrays["majority"][t],
            "a bag of words": results.arrays["bag_of_words"][t],
        }
        best = np.nanmax(np.nanmean(results.arrays["scores"][t], axis=1))
        judged = ", ".join(
            f"the best is {'above' if best > at else 'NOT above'} {text} ({100 * at:.1f} %)"
            for text, at in lines.items()
            if np.isfinite(at)
        )
        sentences.append(f"{TITLES.get(task, task)}: {'; '.join(said)}; {judged}.")
    return " ".join(sentences)
