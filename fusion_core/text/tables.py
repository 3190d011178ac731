"""Tables of text: TSV as GLUE has it (no quoting), and JSON lines; every row has its file and line."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from fusion_core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      values: by column.
      origin: "FILE, line N".
    """

    values: dict[str, Any]
    origin: str

    def value(self, columns: Sequence[str]) -> Any:
        """Return the value of the first of these columns that the row has.

        Raises:
          InputError: it has none of them, or the value is empty.
        """
        for name in columns:
            if name in self.values:
                if self.values[name] is None or self.values[name] == "":
                    raise InputError(f"{self.origin}: the column {name!r} is empty; fill it, or remove the line")
                return self.values[name]
        wanted = " or ".join(map(repr, columns))
        raise InputError(f"{self.origin}: there is no column {wanted}; there are {', '.join(map(str, self.values))}")


def _lines(path: pathlib.Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"there is no file {path}; check the path")
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (at offset {error.start}); convert it") from None
    # texts may hold other line separators, at which splitlines would split
    return text.replace("\r\n", "\n").split("\n")


def _of_json(path: pathlib.Path, lines: Sequence[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{origin} is not JSON ({error}); it should be one object a line") from None
        if not isinstance(values, dict):
            raise InputError(f"{origin} is no JSON object; it should be one object a line")
        rows.append(Row(values, origin))
    return rows


def _of_tabs(path: pathlib.Path, lines: Sequence[str], no_header: Sequence[str]) -> list[Row]:
    filled = [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not filled:
        return []
    first = filled[0][1]
    headless = len(first) == len(no_header) and not set(first) & set(no_header)
    columns = list(no_header) if headless else first
    rows = []
    for number, parts in filled[0 if headless else 1 :]:
        origin = f"{path}, line {number}"
        if len(parts) != len(columns):
            raise InputError(
                f"{origin} has {len(parts)} columns, but there are {len(columns)} ({', '.join(columns)}); "
                "columns are separated by tabs, and quotes have no meaning"
            )
        rows.append(Row(dict(zip(columns, parts, strict=True)), origin))
    return rows


def read_rows(path: pathlib.Path, no_header: Sequence[str] = ()) -> list[Row]:
    """Read all rows of a ``.tsv`` (first line: names of the columns) or ``.jsonl`` file, in order.

    Args:
      path: of the file.
      no_header: columns of a TSV file without names: one whose first line has as many values and none of these names.

    Raises:
      InputError: the file is missing, of another kind, not UTF-8, damaged, or without rows.
    """
    if path.suffix not in (".tsv", ".jsonl"):
        raise InputError(f"{path} is neither .tsv nor .jsonl; rename it, or convert it")
    lines = _lines(path)
    rows = _of_json(path, lines) if path.suffix == ".jsonl" else _of_tabs(path, lines, no_header)
    if not rows:
        raise InputError(f"{path} has no rows; give a file with examples")
    return rows
