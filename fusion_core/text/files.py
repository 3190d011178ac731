"""A file of text, document by document: plain, ``.gz`` or ``.zst``, text or JSON lines, or ``.parquet``.

Memory holds one document (one line of JSON), whatever the file's size. Every document comes with the position after it,
two numbers, from which reading continues.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

from fusion_core.errors import InputError
from fusion_core.text.encoding import BOM, HEAD, check_characters, check_head, check_pointer, not_utf8
from fusion_core.text.json_files import parse
from fusion_core.text.parquet_pages import check_pages, chunks_of

READABLE = (".txt", ".text", ".md", ".rst", ".parquet", ".ndjson", ".jsonl")
COMPRESSED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", ".json")

# (byte offset without compression, lines before it) of a text, (row group, row in it) of a .parquet
Position = tuple[int, int]
START: Position = (0, 0)

MOST_DOCUMENT = 1 << 27  # bytes of a document that is not cut, and of a line of JSON
PIECE = 1 << 20  # bytes read at once
WITHOUT_BUFFER = 16 * PIECE  # bytes of a .parquet of which a column may be held
BLANK = re.compile(rb"[ \t]*\r?\n")


def kind(path: pathlib.Path) -> str:
    """Return the suffix without that of the compression, in lower case."""
    return (pathlib.Path(path.stem) if compression(path) else path).suffix.lower()


def compression(path: pathlib.Path) -> str:
    """Return the suffix of the compression, in lower case; empty if there is none."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else ""


def readable(path: pathlib.Path) -> bool:
    """Return whether a file in a folder is text, by its name. A plain ``.json`` may be anything, a compressed one is lines."""
    compressed = bool(compression(path))
    return (kind(path) in READABLE and (kind(path) != ".parquet" or not compressed)) or (
        kind(path) == ".json" and compressed
    )


def extra(module: str, path: pathlib.Path) -> Any:
    """Import an optional package. Raise InputError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise InputError(f"{path} needs {package} to be read; pip install 'deepfusion[corpora]'") from None


class _Zstd(io.RawIOBase):
    """The content of a ``.zst`` file, frame after frame. The library's own reader does not notice that a file is cut off."""

    def __init__(self, file: io.BufferedIOBase, library: Any) -> None:
        self.file, self.library = file, library
        self.frame: Any = None
        self.rest, self.ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            # few bytes at a time: they may expand a thousandfold
            packed = self.rest or self.file.read(1 << 13)
            if not packed:
                if self.frame is not None:
                    raise EOFError("the compressed file ends before its end-of-stream marker was reached")
                return 0
            # accept any window size that the format allows (zstd --long=31)
            self.frame = self.frame or self.library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self.ready = memoryview(self.frame.decompress(packed))
            except self.library.ZstdError as error:
                raise OSError(str(error)) from None
            self.rest = self.frame.unused_data
            if self.frame.eof:
                self.frame = None
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(path.open("rb"))
        if compression(path) == ".gz":
            yield stack.enter_context(gzip.GzipFile(fileobj=plain))
        elif compression(path) == ".zst":
            yield io.BufferedReader(_Zstd(plain, extra("zstandard", path)), PIECE)
        else:
            yield plain


def _skip(file: io.BufferedIOBase, offset: int) -> None:
    """Move to ``offset``; a compressed file is read up to there."""
    if isinstance(file, io.BufferedReader) and file.seekable():
        file.seek(offset)
        return
    while offset:
        offset -= len(file.read(min(offset, PIECE))) or offset


def _decoded(data: bytes, path: pathlib.Path, offset: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise not_utf8(path, data, offset) from None
    return text.removeprefix(BOM) if offset == 0 else text


def _cut(line: bytes) -> int:
    """Return where to cut the beginning of a line: after its last space, or before its last character."""
    last = next(i for i in reversed(range(len(line))) if line[i] & 0xC0 != 0x80 or i < len(line) - 4)
    return line.rfind(b" ") + 1 or last


def _text(
    file: io.BufferedIOBase, path: pathlib.Path, start: Position, longest: int | None
) -> Iterator[tuple[str, Position]]:
    """Yield documents separated by two empty lines; one of ``longest`` bytes or more is cut, at a line's end if possible."""
    offset, number = start
    limit = MOST_DOCUMENT if longest is None else longest
    # the document so far, its lines, and the lengths of the last two if they are blank
    held, lines, blank = bytearray(), 0, (0, 0)
    begin, rest = offset, b""
    while line := rest + file.readline(limit - len(rest) if rest else limit):
        rest = b""
        if longest is None and len(held) + len(line) >= MOST_DOCUMENT:
            raise InputError(
                f"{path}: a document, from byte {begin:,} on, has more than {MOST_DOCUMENT:,} bytes; two empty lines end one: "
                "put them in, or stream the text"
            )
        ended = line.endswith(b"\n")
        if not ended and 0 < limit <= len(line):
            cut = _cut(line)
            line, rest = line[:cut], line[cut:]
        held += line
        blank = (blank[1], len(line) if BLANK.fullmatch(line) else 0)
        offset, number, lines = offset + len(line), number + ended, lines + 1
        parted = lines >= 3 and all(blank)
        if parted or (longest is not None and len(held) >= longest):
            data = bytes(held[: -sum(blank)]).removesuffix(b"\n").removesuffix(b"\r") if parted else bytes(held)
            yield _decoded(data, path, begin).replace("\r\n", "\n"), (offset, number)
            held, lines, blank, begin = bytearray(), 0, (0, 0), offset
    if lines:
        text = _decoded(bytes(held), path, begin).replace("\r\n", "\n")
        yield text, (offset, number)


def _json(file: io.BufferedIOBase, path: pathlib.Path, start: Position) -> Iterator[tuple[str, Position]]:
    """Yield the ``text`` of each line."""
    offset, number = start
    while line := file.readline(MOST_DOCUMENT):
        if len(line) >= MOST_DOCUMENT:
            raise InputError(f"{path}, line {number + 1} has more than {MOST_DOCUMENT:,} bytes; make shorter documents")
        begin, offset, number = offset, offset + len(line), number + 1
        if line.isspace():
            continue
        origin, text, damage = f"{path}, line {number}", _decoded(line, path, begin), ""
        try:
            values = parse(text, finite=False, halves=True)
        except ValueError as error:
            values, damage = None, f" ({error})"
        document = values.get("text") if isinstance(values, dict) else None
        if not isinstance(document, str):
            why = damage if not isinstance(values, dict) else f", but the text is {json.dumps(document)[:40]}"
            if isinstance(values, dict) and "text" not in values:
                why = f", but there is no text, only {', '.join(values) or 'an empty object'}"
            raise InputError(
                f'{origin}: expected one JSON object a line, {{"text": "..."}}{why}; mend the line, or leave it out'
            )
        yield check_characters(document, origin), (offset, number)


def _parquet(path: pathlib.Path, start: Position) -> Iterator[tuple[str, Position]]:
    """Yield the column ``text``, row group by row group, in small batches."""
    parquet = extra("pyarrow.parquet", path)
    arrow = extra("pyarrow", path)
    group, done = start
    try:
        # without a buffer whole column chunks are held; with one a page has the memory that it says it needs
        buffer = PIECE if path.stat().st_size > WITHOUT_BUFFER else 0
        with parquet.ParquetFile(path, buffer_size=buffer, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if "text" not in names or not str(file.schema_arrow.field("text").type).endswith("string"):
                columns = ", ".join(f"{n}: {file.schema_arrow.field(n).type}" for n in names)
                raise InputError(
                    f"{path} has no column text of strings, but {columns}; rename the column that has them"
                )
            chunks = chunks_of(path, "text") if buffer else []
            for group in range(start[0], file.num_row_groups):
                row = 0
                for chunk in chunks[group] if group < len(chunks) else ():
                    check_pages(path, chunk, f"row group {group}")
                for batch in file.iter_batches(256, row_groups=[group], columns=["text"], use_threads=False):
                    if row + len(batch) > done:
                        for i, text in enumerate(batch.column(0).to_pylist()[max(0, done - row) :], max(0, done - row)):
                            if text is None:
                                where = f"row group {group}, row {row + i}"
                                raise InputError(
                                    f"{path}, {where}: the text is null; drop such rows, or write an empty text"
                                )
                            yield text, (group, row + i + 1)
                    row += len(batch)
                done = 0
    except arrow.ArrowException as error:
        raise OSError(" ".join(str(error).split())) from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, row group {group}: a text or a name is not UTF-8 ({error}); write the file again"
        ) from None


def read_file(
    path: pathlib.Path, start: Position = START, longest: int | None = None
) -> Iterator[tuple[str, Position]]:
    """Yield the documents of a file from ``start`` on, each with the position after it.

    In ``.jsonl``, ``.ndjson`` and ``.json`` a document is a line's ``text``, in ``.parquet`` a row's ``text``; in any other
    file two empty lines separate documents. ``.gz`` and ``.zst`` are unpacked while they are read, also up to ``start``.

    Args:
      path: of the file.
      start: position after an earlier document.
      longest: bytes after which a document of a text file is cut, so that a file without empty lines is not held whole; if
        None, documents are not cut.

    Raises:
      InputError: the file is missing, damaged, cut off or not UTF-8, a line is not JSON with a ``text``, or a package for
        its kind is not installed; the message names the file and the place in it.
    """
    if kind(path) == ".parquet" and compression(path):
        raise InputError(f"{path} is a compressed .parquet, which cannot be entered anywhere; unpack it first")
    try:
        check_pointer(path)
        if kind(path) == ".parquet":
            yield from _parquet(path, start)
            return
        with _opened(path) as file:
            if start[0] == 0 and isinstance(file, io.BufferedReader | gzip.GzipFile):
                check_head(path, file.peek(HEAD)[:HEAD])
            _skip(file, start[0])
            if kind(path) in JSON_LINES:
                yield from _json(file, path, start)
            else:
                yield from _text(file, path, start, longest)
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; check the file, or leave it out") from None
