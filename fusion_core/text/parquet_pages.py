"""What the pages of a .parquet say of their sizes, read before its library takes the memory for them.

The footer says where the chunk of a column begins in each row group. A chunk is pages one after another: a header, and the
bytes of which it gives the number. Footer and headers are structs of Thrift's compact protocol. Source: the format's
``parquet.thrift`` and ``thrift-compact-protocol.md``. Not by the library, whose reader of a chunk's facts ends the process
where they are damaged.
"""

from __future__ import annotations

import pathlib
from typing import Any

from fusion_core.errors import InputError

HEADERS, FOOTER = (1 << 12, 1 << 22), 1 << 22  # bytes in which a header is looked for; of a footer that is read
MOST_NESTED, MOST_BYTES = 20, 10  # of a value; of a number
TRUE, FALSE, BYTE, NUMBERS, DOUBLE, BINARY, LISTS, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12
GROUPS, COLUMNS, FACTS = 4, 1, 3  # fields: row groups of a footer, chunks of a group, facts of a chunk
NAMES, PACKED, FIRST, DICTIONARY = (
    3,
    7,
    9,
    11,
)  # of these: the column's names, bytes, places of the first page and dictionary
PAGE = 3  # of a page's header: bytes of the page in the file
DAMAGED = (IndexError, ValueError, TypeError, AttributeError)  # what reading another thing than was expected raises

Chunk = tuple[int, int]  # place of its first page, and of its end


def chunks_of(path: pathlib.Path, column: str) -> list[list[Chunk]]:
    """Return the chunks of a column in each row group; empty if the footer cannot be read, which is left to the library."""
    with path.open("rb") as file:
        size = file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        if not 0 < length <= min(FOOTER, size):
            return []
        file.seek(size - length)
        data = file.read(length)
    try:
        groups = _value(data, 0, STRUCT)[0][GROUPS]
        return [
            [_chunk(chunk[FACTS]) for chunk in g[COLUMNS] if chunk[FACTS][NAMES] == [column.encode()]] for g in groups
        ]
    except (*DAMAGED, KeyError):
        return []


def _chunk(facts: dict[int, Any]) -> Chunk:
    first, dictionary, packed = facts[FIRST], facts.get(DICTIONARY, 0), facts[PACKED]
    if not all(type(value) is int for value in (first, dictionary, packed)):
        raise ValueError("places that are no numbers")
    start = dictionary if 0 < dictionary < first else first
    return start, start + packed


def check_pages(path: pathlib.Path, chunk: Chunk, where: str) -> None:
    """Raise InputError if a page of a column chunk says that it has more bytes than are left in the file.

    What else is wrong with a page is left to the library, which says so without taking memory for it.

    Args:
      path: of the file.
      chunk: of ``chunks_of``.
      where: the chunk, in words.
    """
    size, (at, end) = path.stat().st_size, chunk
    with path.open("rb") as file:
        while 0 <= at < min(end, size):
            length, packed = next((found for most in HEADERS if (found := page(file, at, most))), (0, -1))
            at += length
            if packed < 0:
                return
            if packed > size - at:
                raise InputError(
                    f"{path}, {where}: a page says that it has {packed:,} bytes, but the file has {size - at:,} after it; it "
                    "is damaged, so fetch or write it again"
                )
            at += packed


def page(file: Any, at: int, most: int) -> tuple[int, int] | None:
    """Return the lengths of a page's header and of the page; None if the header does not end within so many bytes."""
    file.seek(at)
    try:
        header, length = _value(file.read(most), 0, STRUCT)
        return (length, header[PAGE]) if type(header[PAGE]) is int else None
    except (*DAMAGED, KeyError):
        return None


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number without sign, and the place after it."""
    value = 0
    for i in range(MOST_BYTES):
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError("a number that does not end")


def _value(data: bytes, at: int, kind: int, depth: int = 0) -> tuple[Any, int]:
    """Return a value of a kind, a struct as number of field -> value, and the place after it."""
    if depth > MOST_NESTED:
        raise ValueError("nested too deep")
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind == DOUBLE:
        return data[at : at + 8], at + 8
    if kind == STRUCT:
        return _struct(data, at, depth)
    if kind in LISTS:
        return _list(data, at, depth)
    number, at = varint(data, at)
    if kind == BINARY:
        return data[at : at + number], at + number
    if kind in NUMBERS:
        return number >> 1 ^ -(number & 1), at
    raise ValueError(f"a value of kind {kind}")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    found, name = {}, 0
    while head := data[at]:
        at, name = at + 1, name + (head >> 4)
        if not head >> 4:
            name, at = _value(data, at, NUMBERS[0])
        found[name], at = _value(data, at, head & 15, depth + 1)
    return found, at + 1


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    kind, count, at = data[at] & 15, data[at] >> 4, at + 1
    if count == 15:
        count, at = varint(data, at)
    if count > len(data):
        raise ValueError("a list that is longer than what it is in")
    found = []
    for _ in range(count):
        value, at = _value(data, at, BYTE if kind in (TRUE, FALSE) else kind, depth + 1)
        found.append(value)
    return found, at
