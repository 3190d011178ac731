"""How a benchmark hands over its result: Markdown to read, JSON for scripts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from fusion_core import atomic


def hand_over(result: dict[str, Any], markdown: str, destination: str | None) -> None:
    """Prints ``markdown``, and writes ``result`` as JSON to ``destination``, whole or not at all; "-" prints JSON only."""
    text = json.dumps(result, indent=1)
    if destination == "-":
        print(text)
        return
    if destination:  # first: a closed pipe must not cost the file
        atomic.write_text(pathlib.Path(destination), text + "\n")
    print(markdown)
