"""From names to files: compute or fetch the results, draw, and write the gallery."""

import pathlib
from collections.abc import Sequence

from fusion_core.atomic import new_file, write_text
from fusion_core.errors import InputError
from paper_figures.cache import committed_path, results_of
from paper_figures.experiments.record import path_of
from paper_figures.gallery import GalleryItem, page
from paper_figures.registry import FIGURES, PRESETS
from paper_figures.style import render


def drawable(preset: str) -> list[str]:
    """Return the figures that can be drawn in minutes.

    At the preset "full" these are all but those whose experiment has no record yet, and those that are ``SLOW`` to compute
    and have no committed results.
    """
    return [name for name in FIGURES if preset != "full" or not left_out(name)]


def left_out(name: str) -> str:
    """Return why a figure is not drawn with all others at the preset "full", and how to draw it; "" if it is."""
    module = FIGURES[name]
    missing = [record for record in getattr(module, "RECORDS", ())[:1] if not path_of(record, "json").exists()]
    if missing:
        return f"there is no record of {missing[0]}; python -m paper_figures.experiments {missing[0]} makes one"
    if slow := getattr(module, "SLOW", ""):
        return (
            "" if committed_path(name).exists() else f"its numbers take {slow}; deepfusion figures {name} computes them"
        )
    return ""


def not_computed(names: Sequence[str], preset: str) -> list[str]:
    """Return lines on what drawing figures does not compute: numbers that are read, and figures that are left out.

    At presets other than "full" there are none.
    """
    if preset != "full":
        return []
    read = [n for n in names if committed_path(n).exists() or hasattr(FIGURES[n], "RECORDS")]
    lines = [f"not recomputed, but drawn from committed numbers: {', '.join(read)}"] if read else []
    lines += ["index.html says for each how to compute it anew"] if read else []
    return lines + [f"not drawn: {name}: {why}" for name in FIGURES if name not in names and (why := left_out(name))]


def build(names: Sequence[str], preset: str, out: pathlib.Path | str, force: bool = False) -> list[pathlib.Path]:
    """Draw figures into a folder.

    The numbers are cached in ``out/results`` as JSON, keyed by the figure's source, preset and seed; at the preset "full" those
    of records and committed results are read, and nothing of them is computed again without ``force``.

    Args:
      names: figures of ``registry.FIGURES``, in the order of the gallery; equal names count once.
      preset: "smoke" (seconds, to see that it works) or "full" (the paper's).
      out: the folder, made if it does not exist.
      force: whether to compute again although results are cached.

    Returns:
      The files written: a PNG, a PDF and an SVG for each figure, then ``index.html``, the gallery of these figures.

    Raises:
      InputError: a figure or the preset is unknown, there are no names, or ``out`` is a file.
      ResultsError: a cached results file is damaged.
    """
    names, out = list(dict.fromkeys(names)), pathlib.Path(out)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise InputError(f"there is no figure {', '.join(map(repr, unknown))}; there are: {', '.join(FIGURES)}")
    if not names:
        raise InputError(f"no figure is named; name some of: {', '.join(FIGURES)}, or pass --all")
    if preset not in PRESETS:
        raise InputError(f"there is no preset {preset!r}; there are: {', '.join(PRESETS)}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; pass a folder to draw into")
    written, entries = [], []
    for name in names:
        module = FIGURES[name]
        results = results_of(out / "results", name, module, preset, force=force)
        images = render(module, results)
        for kind, image in images.items():
            path = out / f"{name}.{kind}"
            with new_file(path) as temporary:
                temporary.write_bytes(image)
            written.append(path)
        entries.append(GalleryItem(name, module, results, images["png"]))
    index = out / "index.html"
    others = {n: why for n in FIGURES if n not in names and preset == "full" and (why := left_out(n))}
    write_text(index, page(entries, others))
    return [*written, index]
