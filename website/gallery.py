"""``python -m website.gallery --write``: the gallery as a page of the site, with its pictures, from committed results.

The words are those of ``paper_figures.gallery``, which ``deepfusion figures`` shows too. Page and pictures are committed, for
the site is built without JAX. A picture says what it was drawn from (``drawn_from``): those that are not of that any more are
drawn anew, and a test finds them.
"""

import argparse
import ast
import hashlib
import inspect
import io
import pathlib
import sys
from types import ModuleType

from fusion_core import atomic
from paper_figures.builder import left_out
from paper_figures.cache import committed_path, results_of
from paper_figures.experiments.record import path_of
from paper_figures.gallery import GalleryItem, caption, headline, origin, verdict
from paper_figures.registry import FIGURES
from paper_figures.results import Results
from paper_figures.style import STYLE_SHEET, style

DOCS = pathlib.Path(__file__).parent.parent / "docs"
PAGE = DOCS / "gallery.md"
PICTURES = DOCS / "images" / "gallery"
SEE = "What one should see:"
ORIGIN = "Drawn from"  # the field of a picture that names its origin
HEAD = """# Gallery

Every figure of `deepfusion figures --list`, what one should see in it, and whether one does, by its numbers. `make figures`
draws all of them as PDF, SVG and PNG (minutes), `deepfusion figures NAME` one; [figures for a paper](howto/figures.md) has
other sizes, and [all results](results.md) the tables. `python -m website.gallery --write` writes this page.
"""


def drawn_from(name: str, module: ModuleType) -> str:
    """Return a hash of what a figure's picture shows: its committed numbers or records, its code but the caption, the style."""
    records = [path_of(record, "json") for record in getattr(module, "RECORDS", ())]
    source = inspect.getsource(module)
    caption = ast.parse(source).body[0].end_lineno
    # lines, which are the same in every version of Python; an unparsed tree is not
    code = "\n".join(
        line for line in source.splitlines()[caption:] if line.strip() and not line.lstrip().startswith("#")
    )
    digest = hashlib.sha256(code.encode() + b"\0" + STYLE_SHEET.read_bytes())
    for file in (committed_path(name), *records):
        digest.update(b"\0" + (file.read_bytes() if file.exists() else b""))
    return digest.hexdigest()[:16]


def said_of(file: pathlib.Path) -> str:
    """Return what a picture says it was drawn from; "" if there is none."""
    from PIL import Image

    if not file.exists():
        return ""
    with Image.open(file) as image:
        return str(image.info.get(ORIGIN, ""))


def stale() -> list[str]:
    """Return the figures whose committed picture is not of what is committed now."""
    shown = [name for name in FIGURES if not left_out(name)]
    return [name for name in shown if said_of(PICTURES / f"{name}.png") != drawn_from(name, FIGURES[name])]


def picture(module: ModuleType, results: Results, origin: str = "") -> bytes:
    """Return a small PNG of the figure, of at most 64 colours, which says what it was drawn from."""
    from PIL import Image, PngImagePlugin

    said = PngImagePlugin.PngInfo()
    said.add_text(ORIGIN, origin)
    drawn = io.BytesIO()
    with style():
        module.draw(results).savefig(drawn, format="png", dpi=130)
    small = io.BytesIO()
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(
        small, format="PNG", optimize=True, pnginfo=said
    )
    return small.getvalue()


def words(module: ModuleType) -> str:
    """Return the caption as Markdown."""
    return "\n\n".join(caption(module, formulas=True)).replace(SEE, f"**{SEE}**")


def section(name: str, module: ModuleType, results: Results | None, why: str = "") -> str:
    """Return the part of the page for one figure; without results, why it is not drawn."""
    title = headline(module).removesuffix(".")
    if results is None:
        return f"## {title} {{#{name}}}\n\n{words(module)}\n\n**Not drawn here:** {why}.\n"
    finding, image = module.finding(results), f"images/gallery/{name}.png"
    return (
        f"## {title} {{#{name}}}\n\n[![{title}]({image})]({image})\n\n{words(module)}\n\n"
        f"**{verdict(finding)}:** {finding}\n\n"
        f"`deepfusion figures {name}` draws it. {origin(GalleryItem(name, module, results, b''))}\n"
    )


def contents(found: dict[str, Results | None]) -> str:
    """Return the list of the figures, with what is seen."""
    row = lambda name, results: (
        f"| [{headline(FIGURES[name]).removesuffix('.')}](#{name}) | "
        f"{verdict(FIGURES[name].finding(results)) if results else 'Not drawn here'} |"
    )
    return "\n".join(
        ["| figure | does one see what one should? |", "|---|---|", *(row(*item) for item in found.items()), ""]
    )


def page(found: dict[str, Results | None]) -> str:
    """Return the page of these figures."""
    parts = [section(name, FIGURES[name], results, left_out(name)) for name, results in found.items()]
    return "\n".join([HEAD, contents(found), *parts])


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures that are not of what is committed now, and write the page; without ``--write`` print the page."""
    parser = argparse.ArgumentParser(prog="python -m website.gallery", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/gallery.md and docs/images/gallery")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/figures"), help="where results are kept")
    chosen = parser.parse_args(arguments)
    found: dict[str, Results | None] = {
        name: None if left_out(name) else results_of(chosen.out / "results", name, module, "full")
        for name, module in FIGURES.items()
    }
    if not chosen.write:
        print(page(found))
        return 0
    PICTURES.mkdir(parents=True, exist_ok=True)
    for file in PICTURES.glob("*.png"):
        if not found.get(file.stem):
            file.unlink()
    for name in stale():
        if results := found[name]:
            made = picture(FIGURES[name], results, drawn_from(name, FIGURES[name]))
            (PICTURES / f"{name}.png").write_bytes(made)
    atomic.write_text(PAGE, page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
