"""The report of a plan's run: a picture of the losses, a table of the nodes, and where it came from."""

from __future__ import annotations

import html
import pathlib
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from deepfusion.pages.frame import image, write_page
from paper_figures import style

Results = dict[str, Any]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def rows(results: Results) -> list[dict[str, Any]]:
    """The table: a row a node, in the order in which they ran."""
    table = []
    for name, node in results["nodes"].items():
        start = node.get("start")
        table.append(
            {
                "node": name,
                "inputs": node["inputs"],
                "parameters": node["parameters"],
                "steps": "fusion" if start is None else f"{start:,} to {node['step']:,}",
                "flops": node.get("flops", 0.0),
                "total_flops": node["total_flops"],
                "loss": node["final"],
                "tokens_per_second": _median(node["tokens_per_second"]),
                "input_wait": _median(node["input_wait"]),
                "model": f"nodes/{name}/model",
                "reason": node.get("rule", {}).get("reason", ""),
            }
        )
    return table


def lines(results: Results) -> list[str]:
    """Return what the run says, for the terminal."""
    return [f"{arm['name']}: {arm['loss']['mean']:.4f}" for arm in results["comparison"]["arms"]]


def _median(points: list[Any]) -> float | None:
    values = sorted(value for _, value in points[1:] or points)  # the first one has the compilation in it
    return values[len(values) // 2] if values else None


def draw(results: Results) -> Figure:
    """Loss of every trained node against the FLOPs of itself and its ancestors: validation solid, training pale."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    trained = {name: node for name, node in results["nodes"].items() if node["loss"]}
    for i, (name, node) in enumerate(trained.items()):
        color = COLORS[i % len(COLORS)]
        flops = lambda step, node=node: node["before_flops"] + (step - node["start"]) * node["step_flops"]
        for key, look in (
            ("loss", {"alpha": 0.3, "linewidth": 1}),
            ("validation_loss", {"marker": ".", "label": name}),
        ):
            if node[key]:
                steps, losses = zip(*node[key], strict=True)
                axes.plot([flops(step) for step in steps], losses, color=color, **look)
    axes.set_xlabel("training FLOPs, all ancestors' included")
    axes.set_ylabel("loss (nats per target token)")
    axes.set_title("Validation loss (pale: the training batches')")
    axes.legend()
    return figure


def write_report(results: Results, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``report.html``, with everything inside, and returns its path."""
    with style():
        picture = image(draw(results), "loss against FLOPs for all nodes")
    head = "".join(
        f"<th>{html.escape(column)}</th>"
        for column in (
            "node",
            "from",
            "parameters",
            "steps",
            "FLOPs",
            "with ancestors",
            "loss",
            "tokens/s",
            "input wait",
        )
    )
    lines = []
    for row in rows(results):
        shown = lambda value, form: "" if value is None else format(value, form)
        cells = (
            f'<a href="{html.escape(row["model"])}">{html.escape(row["node"])}</a>',
            html.escape(" + ".join(row["inputs"])) or "random start",
            f"{row['parameters']:,}",
            row["steps"],
            f"{row['flops']:.3g}",
            f"{row['total_flops']:.3g}",
            shown(row["loss"], ".4f"),
            shown(row["tokens_per_second"], ",.0f"),
            shown(row["input_wait"], ".1%"),
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    reasons = [f"{row['node']}: {row['reason']}" for row in rows(results) if row["reason"]]
    fields = {
        "NAME": html.escape(results["name"]),
        "LOSSES": picture,
        "TABLE": f"<table><tr>{head}</tr>{''.join(lines)}</table>",
        "RULE": "".join(f"<p>{html.escape(reason)}</p>" for reason in reasons),
    }
    body = pathlib.Path(__file__).parent / "report.html"
    title = f"{results['name']}: a growth plan"
    return write_page(folder / "report.html", title, body, fields, {}, results["provenance"])
