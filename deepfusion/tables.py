"""Tables and quantities for the terminal, in which no number is ever cut."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
GAP = 2  # blanks between columns
LONGEST_NAME = 24  # cells of text with longer words are folded


def prefixed(value: float, unit: str = "") -> str:
    """Return three significant digits with an SI prefix: ``1.02 PFLOP``, ``4.2 M``, ``512``; exact below 1000."""
    rounded = float(f"{value:.3g}")
    power = 0
    while abs(rounded) >= 1000 and power < len(PREFIXES) - 1:
        rounded, power = rounded / 1000, power + 1
    return f"{rounded:.3g} {PREFIXES[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there is at least one: ``12 s``, ``3.4 min``, ``2.1 h``, ``5.2 days``."""
    for size, unit in ((31557600.0, "years"), (86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    text: Collection[str] = (),
    width: int | None = None,
) -> None:
    """Print a table on stdout: columns of ``text`` are wrapped, all others are whole.

    Where the columns do not fit beside each other, every row takes several lines of ``column value`` pairs.

    Args:
      columns: names, also the heads.
      rows: cells, plain text.
      title: a line above.
      text: the columns that may be wrapped, on the left; the first one names the row.
      width: of the terminal; its own if None.
    """
    rows = [tuple(row) for row in rows]
    total = shutil.get_terminal_size((80, 24)).columns if width is None else width
    widths = []
    for i, column in enumerate(columns):
        words = [word for row in rows for word in (row[i].split() if column in text else [row[i]])]
        longest = max(map(len, words), default=0)
        widths.append(max(min(longest, LONGEST_NAME) if column in text else longest, *map(len, column.split() or [""])))
    spare = total - sum(widths) - GAP * (len(columns) - 1)
    if title:
        print("\n".join(textwrap.wrap(title, total)))
    if spare < 0:
        _print_records(columns, rows, total)
        return
    for i, column in enumerate(columns):
        if column in text:
            wanted = max((len(row[i]) for row in rows), default=0)
            more = min(max(0, wanted - widths[i]), spare)
            widths[i], spare = widths[i] + more, spare - more
    for cells in (columns, None, *rows):
        if cells is None:
            print("─" * (sum(widths) + GAP * (len(columns) - 1)))
            continue
        wrapped = [textwrap.wrap(cell, size) or [""] for cell, size in zip(cells, widths, strict=True)]
        for line in itertools.zip_longest(*wrapped, fillvalue=""):
            aligned = [
                part.ljust(size) if column in text else part.rjust(size)
                for part, column, size in zip(line, columns, widths, strict=True)
            ]
            print((" " * GAP).join(aligned).rstrip())


def _print_records(columns: Sequence[str], rows: Sequence[Sequence[str]], total: int) -> None:
    for name, *cells in rows:
        print("\n".join(textwrap.wrap(name, total)))
        line = " "
        for column, cell in zip(columns[1:], cells, strict=True):
            if not cell:
                continue
            pair = f" {column} {cell}".replace("  ", " ")
            if len(line) + len(pair) + 1 > total and line.strip():
                print(line)
                line = " "
            line += ("," if line.strip() else "") + pair
        print(line)


def print_facts(rows: Iterable[tuple[str, str]], width: int | None = None) -> None:
    """Print names and values on stdout; a long value goes on below itself, and no word of it is cut."""
    rows = list(rows)
    total = shutil.get_terminal_size((80, 24)).columns if width is None else width
    left = min(max((len(name) for name, _ in rows), default=0), total // 2) + GAP
    for name, value in rows:
        head = name.ljust(left - GAP) + " " * GAP
        lines = textwrap.wrap(value, max(total - left, 20), break_long_words=False, break_on_hyphens=False) or [""]
        print(f"{head}{lines[0]}".rstrip(), *(" " * left + line for line in lines[1:]), sep="\n")
