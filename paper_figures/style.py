"""Style of the figures: one matplotlib style sheet, and the drawing of a figure with it."""

import contextlib
import io
import pathlib
from collections.abc import Iterator
from types import ModuleType

import matplotlib

from paper_figures.results import Results

# what each format would say of where and when it was drawn
NO_ORIGIN = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}, "svg": {"Date": None}}
STYLE_SHEET = pathlib.Path(__file__).with_name("deepfusion.mplstyle")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the paper's style to the figures drawn inside, independent of the user's settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(matplotlib.rc_params_from_file(STYLE_SHEET, use_default_template=False))
        yield


def render(module: ModuleType, results: Results) -> dict[str, bytes]:
    """Render the figure as ``{"png": …, "pdf": …, "svg": …}``; equal results give equal bytes."""
    images = {}
    with style():
        figure = module.draw(results)
        for kind, metadata in NO_ORIGIN.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            images[kind] = buffer.getvalue()
    return images
