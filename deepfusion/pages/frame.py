"""Pages of HTML with everything inside: the template, and pictures in it."""

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

TEMPLATE = pathlib.Path(__file__).parent / "page.html"


def image(figure: Figure, alt: str) -> str:
    """Return a figure as an ``img`` that holds its data, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def write_page(
    path: pathlib.Path, fields: Mapping[str, str], details: Mapping[str, str], provenance: Mapping[str, Any]
) -> pathlib.Path:
    """Write a page from the template, whole or not at all, and return its path.

    Args:
      path: of the page.
      fields: HTML for each ``<!--FIELD-->`` of the template.
      details: how the run was made, plain text; where it was made follows.
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
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, value in {**fields, "DETAILS": rows}.items():
        page = page.replace(f"<!--{name}-->", value)
    atomic.write_text(path, page)
    return path
