"""Output of a benchmark's result: Markdown to read, JSON for scripts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from fusion_core import atomic


def hand_over(result: dict[str, Any], markdown: str, destination: str | None) -> None:
    """Print ``markdown``, and write ``result`` as JSON to ``destination``, whole or not at all; for "-" print JSON only."""
    text = json.dumps(result, indent=1)
    if destination == "-":
        print(text)
        return
    if destination:  # before printing, which fails if the pipe is closed
        atomic.write_text(pathlib.Path(destination), text + "\n")
    print(markdown)
