"""JSON files that decide how a run goes on, with a sum of what they hold: a changed bit or a cut is noticed."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.text.json_files import read_json

SUM = "sha256"


def sum_of(values: Mapping[str, Any]) -> str:
    """Return the sum of JSON values: 16 hexadecimal digits of the SHA-256 of their text with sorted names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def write_sealed(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON, and their sum with them; whole or not at all."""
    plain = json.loads(json.dumps(values))
    atomic.write_text(path, json.dumps({**plain, SUM: sum_of(plain)}, indent=2) + "\n")


def read_sealed(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Read a file of ``write_sealed``; one without a sum, written by hand, is taken as it is.

    Args:
      path: of the file.
      remedy: the message's last words.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is no JSON object, cannot be read, or its sum is another one.
    """
    values = read_json(path, remedy, finite=False)
    if values.pop(SUM, None) not in (None, sum_of(values)):
        raise InputError(f"{path} is not what was written: its sum is wrong; {remedy}")
    return values
