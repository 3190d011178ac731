r"""When to grow is predicted: forecasts follow the truth, and a rule that uses them lands near the minimum.

Each small panel is one held-out problem of ``toy_models.when_to_grow``: small MLPs train on a teacher task, are grown (two are
fused, or one with itself and function-preserving noise), and train on for the rest of a fixed budget of FLOPs. The
final loss is shown against the growth step (1 is never), over the loss of the best growth step. Line and band:
the mean over all runs and the standard error of the differences between growth steps. Crosses: the look-ahead forecast at
every growth step, as its mean ratio to the same runs' truth. Markers: the growth steps of the forecast rule and the greedy
rule, every run small, the mean large; a run's marker is relative to the same run at the best growth step. Dashed: never
growing, at the same learning rate, and the large network from scratch with equal FLOPs at its own tuned rate.

Below: the regret of every rule, over the problems (points; the bar is the median): the final loss over that of the same runs at
the best growth step. The cost of the rules' measurements is not included.

What one should see: the crosses follow the line, and the forecast rule's markers lie near its minimum, with a
regret close to 1 and below the greedy rule's. A regret may be below 1, since the rule decides for each run.

.. math:: \text{regret} = \exp \big\langle \log \ell_{rule} - \log \ell_{best} \big\rangle_{runs}
"""

import dataclasses
import textwrap
import time
from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from paper_figures.results import Claim, Results
from toy_models.when_to_grow import measure, problems, rules, tables

SEED = 0
DEPENDS = ("bea", "fusion_core", "toy_models")
SLOW = "about 20 minutes on two quiet cores"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment.

    Attributes:
      family: "standard" or "smoke", of ``toy_models.when_to_grow.problems``.
      first: seed of the first problem.
      count: number of problems, of consecutive seeds.
      runs: number of initialisations on which the rules are measured.
      truth_runs: number of initialisations for the truth, including those of ``runs``.
    """

    family: str
    first: int
    count: int
    runs: int
    truth_runs: int


PRESETS = {
    "smoke": Config("smoke", problems.TUNING + SEED, 1, 2, 2),
    "full": Config("standard", problems.HELD_OUT + SEED, 6, 8, 16),
}
FAMILIES = {"standard": problems.STANDARD, "smoke": problems.SMOKE}

FOLLOWED, GREEDY = "forecast rule", "greedy (one step)"
SHOWN = {
    FOLLOWED: "forecast rule",
    "look-ahead (lowest forecast)": "lowest forecast, in hindsight",
    "slopes after the transient (2 to 4 %)": "slopes after the transient",
    GREEDY: "greedy",
    "fixed at 10%": "at 10 %",
    "fixed at 20%": "at 20 %",
    "fixed at 30%": "at 30 %",
    "fixed at 50%": "at 50 %",
    "never": "never",
}
FOLLOWS, NEAR = 0.10, 1.05  # limits within which forecasts follow the truth, and losses are near its minimum


def compute(preset: str) -> Results:
    """Measure the problems; the longest figure by far (about 2 minutes a problem on two quiet cores)."""
    started, config = time.perf_counter(), PRESETS[preset]
    drawn = [problems.random_problem(FAMILIES[config.family], config.first + i) for i in range(config.count)]
    records = [measure.measure_problem(problem, config.runs, config.truth_runs, 0) for problem in drawn]
    return Results.of("growth_prediction", preset, SEED, dataclasses.asdict(config), arrays_of(records), started)


def arrays_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the drawn numbers, a row for each problem, from the records of ``measure``, without problems that diverged.

    Raises:
      ValueError: no problem is left.
    """
    kept = [(record, judged) for record in records if (judged := tables.judge(record)) is not None]
    if not kept:
        raise ValueError(f"in all {len(records)} problems a run diverged, so there is no truth to draw")
    rows = [_relative(record) | _facts(record, judged) for record, judged in kept]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {"shares": kept[0][0]["shares"], "diverged": len(records) - len(kept)} | columns


def _relative(record: dict[str, Any]) -> dict[str, Any]:
    """Return the final losses over those of the same runs at the best growth step."""
    log, runs = np.log(record["final"]), len(record["look_ahead"])
    mean = log.mean(axis=0)
    best = int(mean.argmin())
    here, rows = log[:runs, best], np.arange(runs)
    level = lambda ends: np.exp(np.log(ends) - here)
    at = rules.greedy(record)
    centred = log - log.mean(
        axis=1, keepdims=True
    )  # deviations that all growth steps of a run share are no error of a difference
    return {
        "loss_at_best": np.exp(mean[best]),
        "best": record["shares"][best],
        "curve": np.exp(mean - mean[best]),
        "error": centred.std(axis=0, ddof=1) / len(log) ** 0.5,
        "forecast": np.exp(mean - mean[best] + (np.log(record["look_ahead"]) - log[:runs]).mean(axis=0)),
        "followed_shares": [one["share"] for one in record[rules.FOLLOWED[FOLLOWED]]],
        "followed_losses": level([one["final"] for one in record[rules.FOLLOWED[FOLLOWED]]]),
        "greedy_shares": [record["shares"][i] for i in at],
        "greedy_losses": np.exp(log[rows, at] - here),
        "scratch": np.exp(np.log(level(record["scratch_arm"])).mean()),
    }


def _facts(record: dict[str, Any], judged: dict[str, Any]) -> dict[str, Any]:
    problem = record["problem"]
    return {
        "self": float(problem["operator"] == "self"),
        "gelu": float(problem["activation"] == "gelu"),
        "hidden_layers": len(problem["sizes"]) - 2,
        "steps": problem["steps"],
        "off": judged["off_look_ahead"],
        "split_half": judged["split_half"],
        "scratch_over_grown": judged["arms"]["scratch"],
        "regrets": [judged["regret"][name] for name in SHOWN],
    }


def draw(results: Results) -> Figure:
    """Draw small multiples of the loss against the growth step, and the regrets of the rules below."""
    count = len(results.arrays["curve"])
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(6.4, 3.5 * columns), 2.6 * rows + 3.3))
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1.0] * rows + [1.0])
    for i in range(count):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        _draw_problem(axes, results, i)
        if i % columns == 0:
            axes.set_ylabel("final loss / at best step")
        if i + columns >= count:
            axes.set_xlabel("growth step (share of the budget)")
        if i == 0:
            handles, labels = axes.get_legend_handles_labels()
    _draw_regrets(figure.add_subplot(grid[rows, :]), results)
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def predicted(results: Results) -> list[Claim]:
    """Return what the README shows: the regret of the forecast rule, and of the best that knows no forecast."""
    regrets = results.arrays["regrets"]
    of = lambda name: regrets[:, list(SHOWN).index(name)]
    best = _best_fraction(results)
    return [
        (
            f"final loss of a rule on forecasts over that of the best growth step, {len(regrets)} problems",
            f"below {NEAR}",
            f"median {np.median(of(FOLLOWED)):.3f} (worst {of(FOLLOWED).max():.3f}); growing {SHOWN[best]}, the best "
            f"fraction in hindsight, {np.median(of(best)):.3f} ({of(best).max():.3f})",
        )
    ]


def finding(results: Results) -> str:
    """Return a sentence on whether forecasts follow the truth and the forecast rule is near the minimum."""
    arrays, names = results.arrays, list(SHOWN)
    off, regrets = arrays["off"], arrays["regrets"]
    follows = np.median(off) < FOLLOWS
    spread = lambda name: (
        f"{np.median(regrets[:, names.index(name)]):.3f} (worst {regrets[:, names.index(name)].max():.3f})"
    )
    followed = regrets[:, names.index(FOLLOWED)]
    fixed = _best_fraction(results)
    scratch, near = arrays["scratch_over_grown"], np.median(followed) < NEAR
    below = np.median(followed) < np.median(regrets[:, names.index(GREEDY)])
    sentences = (
        f"{len(off)} problem{'' if len(off) == 1 else 's'}, {arrays['diverged']:.0f} left out because a run diverged.",
        f"The forecasts {'follow' if follows else 'do NOT follow'} the truth: off by {np.median(off):.1%} in the median "
        f"problem, {off.max():.1%} in the worst (following is below {FOLLOWS:.0%}).",
        f"The forecast rule is {'near' if near else 'NOT near'} the minimum: median regret {spread(FOLLOWED)}, near being "
        f"below {NEAR}; greedy {spread(GREEDY)}, {'above it' if below else 'NOT above it'}; the best fixed fraction in "
        f"hindsight ({SHOWN[fixed]}) {spread(fixed)}, never {spread('never')}.",
        f"The truth itself resolves {np.median(arrays['split_half']):.3f} (split-half regret).",
        f"From scratch, at its tuned rate, the large network ends at {np.median(scratch):.3f} of the grown one's loss at its "
        f"own tuned rate in the median ({scratch.min():.3f} to {scratch.max():.3f}).",
    )
    return " ".join(sentences)


def _best_fraction(results: Results) -> str:
    """Return the fixed fraction of the smallest median regret."""
    median = dict(zip(SHOWN, np.median(results.arrays["regrets"], axis=0), strict=True))
    return min((name for name in SHOWN if name.startswith("fixed")), key=lambda name: float(median[name]))


def _draw_problem(axes: Any, results: Results, i: int) -> None:
    a = {name: values[i] for name, values in results.arrays.items() if np.ndim(values) and name != "shares"}
    shares = results.arrays["shares"]
    axes.axhline(a["curve"][-1], color="0.5", linestyle="--", linewidth=1, label="never grown", zorder=1)
    axes.axhline(
        a["scratch"], color="C3", linestyle=(0, (5, 2)), linewidth=1, label="large from scratch, tuned", zorder=1
    )
    low, high = (a["curve"] * np.exp(sign * a["error"]) for sign in (-1, 1))
    axes.fill_between(shares, low, high, color="C0", alpha=0.2, linewidth=0)
    axes.plot(shares, a["curve"], color="C0", label="truth, mean and standard error")
    axes.plot(shares, a["forecast"], color="C1", linestyle="none", marker="x", label="look-ahead forecast", zorder=3)
    for name, rule, color, marker in (("followed", "forecast", "C2", "o"), ("greedy", "greedy", "C4", "v")):
        x, y = a[f"{name}_shares"], a[f"{name}_losses"]
        style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none"}
        axes.plot(x, y, alpha=0.55, markersize=3.5, markeredgewidth=0, **style)
        # means on the axes' own scales
        middle = np.sqrt(x).mean() ** 2, np.exp(np.log(y).mean())
        label = f"grown by the {rule} rule"
        axes.plot(*middle, markersize=8, markeredgecolor="white", markeredgewidth=0.8, label=label, zorder=4, **style)
    root = lambda x: np.sign(x) * np.sqrt(np.abs(x))
    axes.set_xscale("function", functions=(root, lambda x: np.sign(x) * x**2))
    axes.set_xlim(-0.0004, 1.02)
    axes.set_xticks([0, 0.01, 0.05, 0.1, 0.2, 0.5, 1], ["0", "1%", "5%", "10%", "20%", "50%", "never"])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    kind = "self-fusion" if a["self"] else "two fused"
    activation = "GELU" if a["gelu"] else "tanh"
    axes.set_title(
        f"{kind}, {a['hidden_layers']:.0f} {activation} layers, {a['steps']:,.0f} steps\n"
        f"loss at the best step {a['loss_at_best']:.2g} target variances",
        fontsize=8.5,
    )


def _draw_regrets(axes: Any, results: Results) -> None:
    regrets = results.arrays["regrets"]
    rng = np.random.default_rng(0)
    for j, name in enumerate(SHOWN):
        color = {FOLLOWED: "C2", GREEDY: "C4"}.get(name, "0.45")
        values = regrets[:, j]
        spread = rng.uniform(-0.14, 0.14, len(values)) if len(values) > 1 else 0.0
        axes.plot(j + spread, values, "o", color=color, alpha=0.7, markeredgewidth=0)
        middle = float(np.median(values))
        axes.plot([j - 0.28, j + 0.28], [middle, middle], color=color, linewidth=2.2)
        axes.annotate(
            f"{middle:.3f}", (j + 0.3, middle), xytext=(2, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axhline(1.0, color="0.3", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%.4g"))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlim(-0.6, len(SHOWN) - 0.3)
    axes.set_xticks(range(len(SHOWN)), [textwrap.fill(label, 15) for label in SHOWN.values()], fontsize=8)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("regret (1: best step)")
    axes.set_title("Regret of the rules: one point a problem, the bar is the median")
