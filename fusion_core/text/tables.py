"""Tables of text: TSV as GLUE has it, without quoting, and JSON lines; every row has its file and line."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Any

from fusion_core.errors import InputError
from fusion_core.text.encoding import check_characters, read_text
from fusion_core.text.json_files import parse

TABS, LINES = (".tsv", ".txt"), (".jsonl", ".ndjson")  # kinds of files, by their suffixes


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      values: by column.
      origin: "FILE, line N".
    """

    values: dict[str, Any]
    origin: str

    def lacks(self, columns: Sequence[str]) -> bool:
        """Return whether the first of these columns that the row has is empty."""
        return next((self.values[name] in (None, "") for name in columns if name in self.values), False)

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


def _of_json(path: pathlib.Path, lines: Sequence[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            values = parse(line, halves=True)
        except ValueError as error:
            raise InputError(f"{origin} is not JSON ({error}); it should be one object a line") from None
        if not isinstance(values, dict):
            raise InputError(f"{origin} is no JSON object; it should be one object a line")
        for name, value in values.items():
            if isinstance(value, str):
                check_characters(value, f"{origin}, {name}")
        rows.append(Row(values, origin))
    return rows


def _split(path: pathlib.Path, text: str) -> list[tuple[int, list[str]]]:
    """Return (line, values) of all lines that are not blank. Quotes have a meaning only if all names of columns have them.

    Raises:
      InputError: a line's quotes are wrong.
    """
    # texts may hold other line separators, at which splitlines would split
    lines = text.split("\n")
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in lines[0].split("\t")):
        reader = csv.reader(io.StringIO(text, newline="\n"), delimiter="\t")
        try:
            return [(reader.line_num, values) for values in reader if any(values)]
        except csv.Error as error:
            where = f"{path}, line {reader.line_num}"
            raise InputError(
                f"{where} is no line of a table with quotes ({error}); mend its quotes, or write none"
            ) from None
    return [(number, line.split("\t")) for number, line in enumerate(lines, start=1) if line.strip()]


def _of_tabs(path: pathlib.Path, text: str, no_header: Sequence[str], broken: list[str] | None) -> list[Row]:
    filled = _split(path, text)
    if not filled:
        return []
    first = [name.strip() for name in filled[0][1]]
    headless = len(first) == len(no_header) and not set(first) & set(no_header)
    columns = list(no_header) if headless else first
    rows = []
    for number, values in filled[0 if headless else 1 :]:
        origin = f"{path}, line {number}"
        parts = values if any(values[len(columns) :]) else values[: len(columns)]  # without empty ones at the end
        if len(parts) == len(columns):
            rows.append(Row(dict(zip(columns, parts, strict=True)), origin))
            continue
        why = (
            f"{origin} has {len(parts)} columns, but there are {len(columns)} ({', '.join(columns)}); columns are separated by "
            "tabs, and quotes have no meaning"
        )
        if broken is None:
            raise InputError(why)
        broken.append(why)
    return rows


def read_rows(path: pathlib.Path, no_header: Sequence[str] = (), broken: list[str] | None = None) -> list[Row]:
    """Read all rows of a ``.tsv`` or ``.txt`` (first line: names of the columns), ``.jsonl`` or ``.ndjson`` file, in order.

    Args:
      path: of the file.
      no_header: columns of a TSV file without names: one whose first line has as many values and none of these names.
      broken: if given, rows of a TSV file with another number of columns are left out, and a sentence on each is added here.

    Raises:
      InputError: the file is missing, of another kind, not UTF-8, damaged, or without rows.
    """
    kind = path.suffix.lower()
    if kind not in (*TABS, *LINES):
        raise InputError(f"{path} is neither {TABS[0]} nor {LINES[0]}; rename it, or convert it")
    text = read_text(path)
    rows = _of_json(path, text.split("\n")) if kind in LINES else _of_tabs(path, text, no_header, broken)
    if not rows:
        raise InputError((broken or [f"{path} has no rows; give a file with examples"])[0])
    return rows
