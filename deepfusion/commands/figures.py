"""``deepfusion figures``: the figures of the paper and of this software, from code."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated

import typer

from deepfusion.options import Json
from deepfusion.terminal import notes, working


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to draw; see --list.")] = None,
    all_figures: Annotated[
        bool, typer.Option("--all", help="Draw all whose numbers are committed or take minutes.")
    ] = False,
    list_figures: Annotated[
        bool,
        typer.Option("--list", help="List the figures, one name a line, and stop."),
    ] = False,
    preset: Annotated[str, typer.Option(help="'smoke' (seconds) or 'full' (the paper's).")] = "full",
    out: Annotated[pathlib.Path, typer.Option(help="Folder to draw into.")] = pathlib.Path("runs/figures"),
    force: Annotated[bool, typer.Option(help="Compute again even where results are cached or committed.")] = False,
    as_json: Json = False,
) -> None:
    """Draw figures from code, and a gallery page of them.

    \b
    deepfusion figures --list
    deepfusion figures order_of_accuracy
    deepfusion figures --all --preset smoke
    """
    with working("loading JAX, computing and drawing", quiet=as_json):
        import paper_figures
        from paper_figures.gallery import headline

    if list_figures or not (names or all_figures):
        listing = {name: headline(module) for name, module in paper_figures.FIGURES.items()}
        print(json.dumps(listing) if as_json else "\n".join(listing))
        return
    chosen = paper_figures.drawable(preset) if all_figures else names or []
    with working("computing and drawing", quiet=True):
        written = paper_figures.build(chosen, preset, out, force)
    for line in paper_figures.not_computed(chosen, preset) if all_figures and not force else ():
        notes(line)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))
