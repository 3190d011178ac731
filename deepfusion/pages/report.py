"""The page of a run: what growing cost and saved, the pictures, the tables, and where they come from."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Sequence
from typing import Any

from deepfusion.pages.drawing import draw_losses, draw_theory, theory_of
from deepfusion.pages.frame import image, write_page
from deepfusion.pages.summary import (
    ARM_COLUMNS,
    PAIR_COLUMNS,
    Results,
    arm_rows,
    lines,
    pair_rows,
    reference_of,
    rows,
)
from deepfusion.tables import prefixed
from paper_figures import style

NODE_COLUMNS = ("node", "from", "parameters", "steps", "FLOPs", "with ancestors", "loss", "tokens/s", "input wait")


def write_report(results: Results, folder: pathlib.Path) -> pathlib.Path:
    """Write ``report.html`` into a folder, with everything inside, and return its path."""
    evaluated = any(node["validation_loss"] for node in results["nodes"].values())
    with style():
        losses = image(draw_losses(results), "validation loss against FLOPs for all arms") if evaluated else ""
        theory = image(draw_theory(results), "the theory's terms along the sources") if theory_of(results) else ""
    fields = {
        "NAME": html.escape(results["name"]),
        "SUMMARY": "".join(f"<li>{html.escape(line)}</li>" for line in lines(results)),
        "LOSSES": losses,
        "ARMS": table(ARM_COLUMNS, [map(html.escape, row) for row in arm_rows(results)]),
        "SAVINGS": table(PAIR_COLUMNS, [map(html.escape, row) for row in pair_rows(results, reference_of(results))]),
        "PAIRS": table(PAIR_COLUMNS, [map(html.escape, row) for row in pair_rows(results)]),
        "NODES": table(NODE_COLUMNS, [_node_cells(row, results) for row in rows(results)]),
        "THEORY": _theory_section(results, theory) if theory else "",
    }
    return write_page(folder / "report.html", fields, _details(results), results["provenance"])


def table(columns: Sequence[str], rows: Sequence[Any]) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _node_cells(row: dict[str, Any], results: Results) -> tuple[str, ...]:
    shown = lambda value, form: "" if value is None else format(value, form)
    name = html.escape(row["node"])
    link = name if results["seeds"] else f'<a href="{html.escape(row["model"])}">{name}</a>'
    return (
        link,
        html.escape(" + ".join(row["inputs"])) or "random start",
        f"{row['parameters']:,}",
        row["steps"],
        prefixed(row["flops"], "FLOP") if row["flops"] else "",
        prefixed(row["total_flops"], "FLOP"),
        shown(row["loss"], ".4f"),
        shown(row["tokens_per_second"], ",.0f"),
        shown(row["input_wait"], ".1%"),
    )


def _theory_section(results: Results, picture: str) -> str:
    found = theory_of(results)
    assert found is not None
    name, node = found
    greedy = node.get("greedy")
    said = f"<p>The greedy rule, which was not followed: {html.escape(greedy['reason'])}</p>" if greedy else ""
    return (
        f"<section><h2>Theory along the sources of {html.escape(name)}</h2>{picture}{said}"
        '<p class="note">Measured on training text that no update has used; bars are standard errors over pairs of '
        "batches. The optimizer is frozen at each point: M is its preconditioner, learning rate included. The modified loss "
        "is what the discrete step follows to first order. The greedy rule grows when the grown network's decrease of the "
        "loss per FLOP passes the sources', each at its best step (dashed); dotted: where this run grew. The conflict term "
        "is the change of the grown loss by the Lie bracket of one step of the sources and one grown step.</p></section>"
    )


def _details(results: Results) -> dict[str, str]:
    """Return what the page's foot says about the run, as plain text."""
    budget = results["comparison"]["budget"]
    found = {"seeds": ", ".join(results["seeds"]) or "one"}
    if budget is not None:
        found["budget"] = f"{budget:.4g} FLOPs an arm; evaluations and the theory's terms are not counted"
    return found
