"""The pictures of a run's page: loss against FLOPs of all arms, and the theory's terms."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

Results = Mapping[str, Any]

# Okabe and Ito's, told apart with every common colour blindness; after them line styles change
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
ZOOM = 1 / 3  # share of the largest cost at which the second panel begins
HEIGHT, AROUND = 4.2, 1.0  # inches of the smallest figure, and of what is above and below its axes
LINE, BETWEEN = 0.145, 0.06  # inches of a line of a label, and between labels


def look(number: int) -> dict[str, Any]:
    """Return the colour and line style of an arm; they repeat after 28."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}


def spread_labels(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return centres near the wanted ``heights`` at which labels of these sizes, within 0 to 1, do not overlap.

    Labels that touch become a block around the mean of their heights.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    blocks: list[tuple[list[int], float]] = []  # labels from below, and the centre of the block

    def size(labels: list[int]) -> float:
        return sum(sizes[i] for i in labels)

    for i in order:
        labels, centre = [i], heights[i]
        while True:
            half = size(labels) / 2
            centre = min(max(centre, half), max(half, 1 - half))
            if not blocks or blocks[-1][1] + size(blocks[-1][0]) / 2 <= centre - half:
                break
            below, _ = blocks.pop()
            labels = below + labels
            centre = sum(heights[j] for j in labels) / len(labels)
        blocks.append((labels, centre))
    found = [0.0] * len(heights)
    for labels, centre in blocks:
        at = centre - size(labels) / 2
        for i in labels:
            found[i] = at + sizes[i] / 2
            at += sizes[i]
    return found


def curve_of(node: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return a node's validation losses against the FLOPs of itself and all nodes before it."""
    lost = float(node.get("lost_flops", 0.0))
    base = node["before_flops"] + lost
    return [(base + (step - node["start"]) * node["step_flops"], loss) for step, loss in node["validation_loss"]]


def _drawn(results: Results) -> list[Mapping[str, Any]]:
    """Return the arms; if no arm ends with training, every node that was evaluated."""
    nodes = {name: curve_of(node) for name, node in results["nodes"].items() if node["validation_loss"]}
    alone: list[Mapping[str, Any]] = [
        {"name": name, "chain": [name], "sources": [], "curve": curve} for name, curve in nodes.items()
    ]
    return list(results["comparison"]["arms"]) or alone


def draw_losses(results: Results) -> Figure:
    """Draw validation loss against FLOPs, sources paid: an arm and its sources have one colour, ▼ marks its growth.

    The networks of other seeds are pale. A second panel shows the last two thirds of the FLOPs, if all arms end there.
    """
    arms = _drawn(results)
    end = max((arm["curve"][-1][0] for arm in arms), default=1.0)
    zoomed = len(arms) > 1 and all(arm["curve"][-1][0] > ZOOM * end and len(arm["curve"]) > 1 for arm in arms)
    names = ["\n".join(textwrap.wrap(arm["name"], 28)) for arm in arms]
    height = max(HEIGHT, AROUND + sum(map(_size, names)))
    if zoomed:
        figure, (whole, last) = plt.subplots(1, 2, figsize=(9.8, height), width_ratios=(3, 2))
    else:
        figure, whole = plt.subplots(figsize=(8.6, height))
        last = whole
    whole.set_xscale("log")
    for axes in {whole, last}:
        _draw_arms(axes, results)
    whole.set_ylabel("validation loss (nats per target token)")
    whole.set_title("The whole run (▼: grown here)")
    if zoomed:
        inside = [loss for arm in arms for flops, loss in arm["curve"] if flops >= ZOOM * end]
        margin = 0.06 * (max(inside) - min(inside)) + 1e-3
        last.set(xlim=(ZOOM * end, 1.02 * end), ylim=(min(inside) - margin, max(inside) + margin))
        last.xaxis.set_major_locator(MaxNLocator(4))
        last.set_title("Its last two thirds")
    _label_ends(last, arms, names, height - AROUND)
    return figure


def _size(name: str) -> float:
    """Return the height of a label in inches."""
    return LINE * (1 + name.count("\n")) + BETWEEN


def _draw_arms(axes: Axes, results: Results) -> None:
    nodes, arms = results["nodes"], _drawn(results)
    drawn = {name for arm in arms for name in arm["chain"]}
    for number, arm in enumerate(arms):
        for seed in list(results["seeds"].values())[1:]:
            for name in arm["chain"]:
                _plot(axes, curve_of(seed[name]), **look(number), alpha=0.35, linewidth=0.8, zorder=1)
        for name in arm["sources"]:
            node = nodes[name]
            if node["kind"] == "train" and name not in drawn:
                drawn.add(name)
                _plot(axes, curve_of(node), **look(number), alpha=0.7, linewidth=1.0, zorder=2)
                _mark_growth(axes, nodes, name, number)
        _plot(axes, arm["curve"], **look(number), marker=".", markersize=3.5, zorder=3)
        for name in arm["chain"]:
            _mark_growth(axes, nodes, name, number)
    axes.set_xlabel("training FLOPs, all sources' included")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plot(axes: Axes, points: Sequence[Sequence[float]], **options: Any) -> None:
    """Plot the points whose FLOPs are above 0: a logarithmic axis has no place for the others."""
    shown = [point for point in points if point[0] > 0]
    if shown:
        axes.plot(*zip(*shown, strict=True), **options)


def _mark_growth(axes: Axes, nodes: Mapping[str, Any], name: str, number: int) -> None:
    """Mark the first evaluation of a node that trains what a growth has made."""
    node = nodes[name]
    if node["inputs"] and nodes[node["inputs"][0]]["kind"] != "train":
        _plot(axes, curve_of(node)[:1], color=look(number)["color"], marker="v", markersize=7, linestyle="", zorder=4)


def _label_ends(axes: Axes, arms: Sequence[Mapping[str, Any]], names: Sequence[str], height: float) -> None:
    """Write the arms' names beside the ends of their curves, without overlaps; the axes are ``height`` inches high."""
    low, high = axes.get_ylim()
    heights = [(arm["curve"][-1][1] - low) / (high - low) for arm in arms]
    centres = spread_labels(heights, [_size(name) / height for name in names])
    for number, (arm, name, centre) in enumerate(zip(arms, names, centres, strict=True)):
        color = look(number)["color"]
        axes.annotate(
            name,
            arm["curve"][-1],
            (1.12, centre),
            textcoords="axes fraction",
            fontsize=8,
            color=color,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def theory_of(results: Results) -> tuple[str, Mapping[str, Any]] | None:
    """Return the first growth whose terms were estimated, by name and node; None if there is none."""
    return next(((name, node) for name, node in results["nodes"].items() if node.get("theory")), None)


def draw_theory(results: Results) -> Figure:
    """Draw the theory's terms along the sources of a growth, with standard errors over pairs of batches."""
    found = theory_of(results)
    assert found is not None
    _, node = found
    records, greedy = node["theory"], node.get("greedy")
    steps = [record["step"] for record in records]
    figure, grid = plt.subplots(2, 3, figsize=(9.8, 5.6), sharex=True)

    def series(axes: Axes, name: str, label: str, color: str, scale: float = 1.0) -> None:
        values = [scale * record[name] for record in records]
        errors = [scale * record.get(f"{name}_se", 0.0) for record in records]
        axes.errorbar(steps, values, errors, label=label, color=color, marker=".", capsize=2, elinewidth=0.8)

    losses = [name for name in records[0] if name.startswith("loss_source_") and not name.endswith("_se")]
    sources = [name.removeprefix("loss_") for name in losses]
    named = dict.fromkeys(node["inputs"])  # a source that is named twice has one line in the legend
    labels = list(named) if len(named) == len(sources) else [f"source {i + 1}" for i in range(len(sources))]
    networks = [
        (name, label, COLORS[(3 + i) % len(COLORS)])
        for i, (name, label) in enumerate(zip(sources, labels, strict=True))
    ]
    for name, label, color in [*networks, ("fused", "the grown one", COLORS[0])]:
        series(grid[0, 0], f"loss_{name}", label, color)
        series(grid[0, 1], f"gradient_norm_{name}", label, color)
        gap = [record[f"modified_loss_{name}"] - record[f"loss_{name}"] for record in records]
        grid[0, 2].plot(steps, gap, label=label, color=color, marker=".")
        series(grid[1, 0], f"decrease_per_flop_{name}", label, color, 1e12)
    series(grid[1, 1], "small_rate", "the sources", COLORS[3], 1e12)
    series(grid[1, 1], "grown_rate", "the grown one", COLORS[0], 1e12)
    series(grid[1, 2], "conflict", "½⟨∇L, [f₁, f₂]⟩", COLORS[0])
    titles = (
        "loss", "gradient norm", "modified loss − loss = ¼⟨∇L, M∇L⟩",
        "decrease per TFLOP, own step", "the greedy rule: the same at the best step", "conflict term",
    )  # fmt: skip
    for axes, title in zip(grid.flat, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(node["step"], color="#444444", linestyle=":", linewidth=1)
        if greedy and greedy["step"]:
            axes.axvline(greedy["step"], color="#56B4E9", linestyle="--", linewidth=1)
    for axes in grid[1]:
        axes.axhline(0, color="#777777", linewidth=0.8)
        axes.set_xlabel("steps of each source")
    grid[0, 0].legend()
    grid[1, 1].legend()
    return figure
