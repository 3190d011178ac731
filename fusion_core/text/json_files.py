"""JSON as all files of it are read: within bounds of size, depth and digits, and whatever is wrong with it is one line."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import re
import reprlib
from typing import Any

from fusion_core.errors import InputError
from fusion_core.text.encoding import check_pointer

DEEPEST, DIGITS = 100, 100  # how deep values are nested, and digits of a whole number
SMALL, LARGE = 10_000_000, 100_000_000  # bytes of a file of settings; of a tokenizer, an index, records
COPY = "the file is damaged, copy it again"
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


def short(value: Any) -> str:
    """Return the ``repr`` of any value, cut to what a line of a message holds."""
    return _short.repr(value)


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; at most {DIGITS} can be read")
    return int(digits)


def _real(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {short(digits)} is too large")
    return value


def _not_finite(word: str) -> float:
    raise ValueError(f"{word}, which is no number of JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"a name stands twice: {short(counts.most_common(1)[0][0])}")
    return found


_DECODERS = {
    finite: json.JSONDecoder(
        parse_int=_whole,
        parse_float=_real,
        parse_constant=_not_finite if finite else None,
        object_pairs_hook=_no_repeats,
    )
    for finite in (False, True)
}


def _check_depth(value: dict[str, Any] | list[Any], left: int = DEEPEST) -> None:
    if not left:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    for part in value.values() if type(value) is dict else value:
        if type(part) is dict or type(part) is list:
            _check_depth(part, left - 1)


def parse(text: str | bytes, *, finite: bool = True, halves: bool = False) -> Any:
    """Return the value of a text in JSON.

    Args:
      text: in UTF-8, with or without a byte order mark.
      finite: whether NaN and Infinity are refused, which Python writes and JSON does not have.
      halves: whether halves of characters pass, which the caller names better (``check_characters``).

    Raises:
      ValueError: it is no JSON, nested more than ``DEEPEST`` deep, has a whole number of more than ``DIGITS`` digits, a
        name twice in one object, half of a character, or a number that is not finite.
    """
    text = (text.decode("utf-8") if isinstance(text, bytes) else text).removeprefix("\ufeff")
    try:
        value = _DECODERS[finite].decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} deep") from None
    if isinstance(value, dict | list):
        _check_depth(value)
    if not halves and _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise ValueError(f"half of a character ({half}), which no text can hold") from None
    return value


def read_json(path: pathlib.Path, remedy: str = COPY, *, longest: int = SMALL, finite: bool = True) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
      path: of the file.
      remedy: end of the message.
      longest: bytes that it may have.
      finite: as in ``parse``.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is no regular file, cannot be read, is longer, or holds anything but one object as ``parse`` reads it.
    """
    try:
        check_pointer(path)
        if (size := path.stat().st_size) > longest:
            raise InputError(f"{path} has {size:,} bytes; such a file has at most {longest:,}: {remedy}")
        values = parse(path.read_bytes(), finite=finite)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its rights") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object, but {short(values)}; {remedy}")
    return values
