"""Pages of HTML with everything inside: the frame that all reports share, and pictures in it."""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fusion_core import atomic


def image(figure: Figure, alt: str) -> str:
    """A figure as an ``img`` that holds its data; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def write_page(
    path: pathlib.Path,
    title: str,
    body: pathlib.Path,
    fields: Mapping[str, str],
    details: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> pathlib.Path:
    """Writes a page, whole or not at all, and returns its path.

    Args:
      title: plain text.
      body: file of what is between the page's head and its details, with ``<!--FIELD-->`` where fields go.
      fields: HTML.
      details: how it was made, plain text; where it was made follows.
      provenance: of ``fusion_core.provenance``.
    """
    origin = {
        "devices": ", ".join(provenance["devices"]),
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        "commit": provenance["commit"] or "not known",
        "created": provenance["created"],
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in {**details, **origin}.items()
    )
    page = (pathlib.Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    everything = {"TITLE": html.escape(title), "BODY": body.read_text(encoding="utf-8"), **fields, "DETAILS": rows}
    for name, value in everything.items():
        page = page.replace(f"<!--{name}-->", value)
    atomic.write_text(path, page)
    return path
