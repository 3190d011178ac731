"""Mutations that know the form of what they change: a valid file in, nearly a valid file out.

Every function takes a ``random.Random`` (or hypothesis' own, which shrinks) and bytes, and returns bytes. What has not the form
that a function expects, such as the outcome of an earlier mutation, is changed as bytes.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.odd import ARGUMENTS, BYTES, CELLS, FORMULAS, FUNCTIONS, NAMES, POWERS, RAW, TOML_VALUES, VALUES, WORDS

Mutation = Callable[[random.Random, bytes], bytes]
LONGEST = 200_000  # bytes of a case


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Change bytes: flip, cut, remove, repeat, insert."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randint(0, len(changed)), rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randint(0, 5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randint(0, 7)
            case 1 if at < len(changed):
                changed[at] = rng.randint(0, 255)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + size]
            case 4:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 50))
            case _:
                changed[at:at] = rng.choice(BYTES)
    return bytes(changed[:LONGEST])


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        found.append((value, key))
        _places(inner, found)
    return found


def changed_value(rng: random.Random, value: Any) -> Any:
    """Return another value than ``value``: of another type, out of range, or almost the same."""
    if isinstance(value, bool) or rng.random() < 0.6:
        return copy.deepcopy(rng.choice(VALUES))
    if isinstance(value, int | float) and abs(value) < 1e300:
        others = -value, value + 1, value - 1, value * 2, value / 2, value * 10**6
        return rng.choice((*others, float(value), str(value), [value]))
    if isinstance(value, str):
        return rng.choice(
            (value + "x", value[:-1], value.upper(), value * 100, [value], {"content": value}, RAW + value)
        )
    if isinstance(value, list):
        return rng.choice((value[1:], value * 2, value[::-1], dict(enumerate(value)), *value[:3]))
    return copy.deepcopy(rng.choice(VALUES))


def change_tree(rng: random.Random, tree: Any) -> Any:
    """Change a tree of JSON in one to three places, and return it."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = _places(tree, [])
        if not places or rng.random() < 0.02:
            return changed_value(rng, tree)
        owner, key = rng.choice(places)
        named = isinstance(owner, dict)
        match rng.choice("vvvvvvdrrsn"):
            case "d":
                del owner[key]
            case "r" if named:  # another name; a raw one may stand twice
                owner[rng.choice((str(key) + " ", *NAMES, *map(str, owner)))] = owner[key]
            case "s":
                other, place = rng.choice(places)
                owner[key] = copy.deepcopy(other[place])
            case "n":
                for _ in range(rng.choice((1, 5, 60))):
                    owner[key] = [owner[key]] if rng.random() < 0.5 else {str(key): owner[key]}
            case _:
                owner[key] = changed_value(rng, owner[key])
    return tree


def _written(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 1)))
    text = re.sub(f'"{RAW}([^"\\\\]*(?:\\\\.[^"\\\\]*)*)"', lambda raw: json.loads(f'"{raw[1]}"'), text)
    if rng.random() < 0.03:  # a name twice
        text = (
            text.replace(":", ":1,", 1)
            if rng.random() < 0.3
            else re.sub(r"(\{)(\s*\"[^\"]*\":\s*\d+,)", r"\1\2\2", text)
        )
    return text.encode("utf-8", "surrogatepass")


def json_file(rng: random.Random, data: bytes) -> bytes:
    """Change a JSON file: mostly its values, sometimes its bytes."""
    if rng.random() < 0.15:
        return flipped(rng, data)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return flipped(rng, data)
    return _written(change_tree(rng, tree), rng)


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """Change lines of JSON: one of them, or their order and number."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randint(0, 5):
        case 0:
            lines.insert(at, rng.choice(lines))
        case 1:
            lines[at] = rng.choice((b"", b"null", b"[]", b"{}", b"  ", b"0", lines[at][: len(lines[at]) // 2]))
        case _:
            lines[at] = json_file(rng, lines[at])
    return b"\n".join(lines)[:LONGEST]


def safetensors_file(rng: random.Random, data: bytes) -> bytes:
    """Change a safetensors file: its header as JSON, the length of it, or bytes."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or length > len(data) - 8:
        return flipped(rng, data)
    header, body = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.15 and body:
        at = rng.randrange(len(body))
        return data[: 8 + length] + body[:at] + bytes([rng.randint(0, 255)]) + body[at + 1 :]
    header = json_file(rng, header)
    lies = (0, 1, len(header) - 1, len(header) + 1, 2**20, 2**40, 2**63, 2**64 - 1)
    said = len(header) if rng.random() < 0.8 else rng.choice(lies) % 2**64
    return said.to_bytes(8, "little") + header + (body if rng.random() < 0.9 else flipped(rng, body))


def toml_file(rng: random.Random, data: bytes) -> bytes:
    """Change a TOML file: values, keys, whole lines, names of tables."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        match rng.randint(0, 8):
            case 0:
                lines.insert(at, rng.choice(lines))
            case 1:
                del lines[at]
            case 2:
                lines[at] = flipped(rng, lines[at])
            case 3:
                word = rng.choice(re.findall(rb"\w+", data) or [b""])
                lines[at] = re.sub(rb"\w+", lambda _, word=word: word, lines[at], count=rng.randint(1, 3))
            case _:  # one of the values of the line, also in an inline table
                values = list(re.finditer(rb"(?<==)\s*(\"[^\"]*\"|'[^']*'|\[[^\]]*\]|[^,\s}]+)", lines[at]))
                if values:
                    chosen = rng.choice(values)
                    value = rng.choice(TOML_VALUES).encode()
                    lines[at] = lines[at][: chosen.start()] + b" " + value + lines[at][chosen.end() :]
        lines = lines or [b""]
    return b"\n".join(lines)[:LONGEST]


def table_file(rng: random.Random, data: bytes) -> bytes:
    """Change a table of tabs: cells, their number, lines, names of columns, quotes."""
    rows = [line.split(b"\t") for line in data.split(b"\n")]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        at = rng.randrange(len(row)) if row else 0
        match rng.randint(0, 7):
            case 0:
                rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
            case 1 if row:
                del row[at]
            case 2 if row:
                row[at] = flipped(rng, row[at])
            case 3:
                rows[0] = [b'"' + name + b'"' for name in rows[0]]
            case 4 if row:
                row[at], row[0] = row[0], row[at]
            case _:
                row[at : at + 1] = [rng.choice(CELLS).encode()]
    return b"\n".join(b"\t".join(row) for row in rows)[:LONGEST]


def text_file(rng: random.Random, data: bytes) -> bytes:
    """Change a text: its documents, marks of other encodings, bytes."""
    match rng.randint(0, 6):
        case 0:
            return data.decode("utf-8", "replace").encode(
                rng.choice(("utf-16", "utf-16-le", "utf-32", "cp1252")), "replace"
            )
        case 1:
            return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"", b"\n\n\n", b"\t\n")))
        case 2:
            return rng.choice(BYTES) * rng.choice((1, 3, 5000))
        case _:
            return flipped(rng, data)


def packed(inner: Mutation, kind: str) -> Mutation:
    """Return the mutation of a compressed file: of what is in it, or of its own bytes."""

    def mutated(rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.4:
            return flipped(rng, data)
        if rng.random() < 0.04:  # a bomb
            piece, most = rng.choice(
                ((b"\0", 10**7), (b"a", 10**7), (b"a ", 10**6), (b"\n", 10**5), (b"ab\n\n\n", 10**4))
            )
            return compress(kind, piece * rng.choice((10**4, most)))
        try:
            plain = decompress(kind, data)[:LONGEST]
        except (OSError, EOFError, zlib.error, ValueError):
            return flipped(rng, data)
        pieces = inner(rng, plain), rng.choice((b"", b"", b"x", plain[:40]))
        return b"".join(compress(kind, piece) for piece in pieces if piece)

    return mutated


def compress(kind: str, data: bytes) -> bytes:
    """Return the bytes compressed as ``.gz`` or ``.zst``."""
    if kind == "gz":
        return gzip.compress(data, 1, mtime=0)
    import zstandard

    return zstandard.ZstdCompressor(1).compress(data)


def decompress(kind: str, data: bytes) -> bytes:
    """Return the content of compressed bytes, at most ``LONGEST`` of it."""
    if kind == "gz":
        return gzip.GzipFile(fileobj=io.BytesIO(data)).read(LONGEST)
    import zstandard

    try:
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(data)).read(LONGEST)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None


def varint(value: int) -> bytes:
    """Return a number as protocol buffers write it."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def protocol_buffer(rng: random.Random, data: bytes) -> bytes:
    """Change a file of one protocol buffer: add a field of any kind at a field's beginning or end, or change bytes."""
    if rng.random() < 0.6:
        return flipped(rng, data)
    number, kind = rng.choice((1, 2, 3, 4, 5, 24, 35, 200)), rng.choice((0, 0, 1, 2, 2, 2, 5, 3, 7))
    body = {0: varint(rng.choice((0, 1, 2, 2**31, 2**63, 2**64, 2**70))), 1: bytes(8), 5: bytes(4)}.get(kind, b"")
    if kind == 2:
        inner = rng.choice((b"", b"\x0a\x01a", b"\x0a\x03</s", b"\x18\x02", flipped(rng, data[:60])))
        body = varint(rng.choice((len(inner), len(inner), 2**31, 2**63))) + inner
    field = varint(number << 3 | kind) + body
    return field + data if rng.random() < 0.5 else data + field


def _formula(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(FORMULAS)
    inner = lambda: _formula(rng, depth - 1)
    match rng.randint(0, 5):
        case 0:
            return f"{rng.choice(FUNCTIONS)}({inner()})"
        case 1:
            return f"({inner()})**{rng.choice(POWERS)}"
        case _:
            return f"({inner()}{rng.choice('+-*/+*')}{inner()})"


def formula(rng: random.Random, data: bytes) -> bytes:
    """Return a formula of the grammar, or a text with words of it in wrong places."""
    if rng.random() < 0.35:
        return _formula(rng, rng.randint(1, 4)).encode()
    words = re.findall(r"\w+|\W", data.decode("utf-8", "replace"))
    for _ in range(rng.choice((1, 1, 2, 4, 30))):
        at = rng.randint(0, len(words))
        words[at : at + rng.randint(0, 2)] = [rng.choice(WORDS)] * rng.choice((1, 1, 1, 2, 70))
    return "".join(words).encode("utf-8", "surrogatepass")[:LONGEST]


def arguments(options: Sequence[str]) -> Mutation:
    """Return the mutation of a command's arguments, which a zero byte separates; ``options`` are names of such."""

    def mutated(rng: random.Random, data: bytes) -> bytes:
        words = data.split(b"\0")
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randint(0, len(words))
            match rng.randint(0, 6):
                case 0:
                    words.insert(at, rng.choice(words))
                case 1:
                    del words[at : at + 1]
                case 2 if at < len(words):
                    words[at] = formula(rng, words[at])
                case 3:
                    words[at:at] = [
                        rng.choice(options).encode(),
                        rng.choice(ARGUMENTS).encode("utf-8", "surrogateescape"),
                    ]
                case 4:
                    words.insert(at, rng.choice(options).encode())
                case _:
                    words[at : at + 1] = [rng.choice(ARGUMENTS).encode("utf-8", "surrogateescape")]
            words = words or [b""]
        return b"\0".join(words)[:LONGEST]

    return mutated


def one_file(kinds: Sequence[Mutation]) -> Mutation:
    """Return the mutation of one file of a folder: the first byte says which, the rest is its content."""

    def mutated(rng: random.Random, data: bytes) -> bytes:
        which = data[0] % len(kinds) if data else 0
        return bytes([which]) + kinds[which](rng, data[1:])

    return mutated
