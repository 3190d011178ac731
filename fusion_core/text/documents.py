"""Corpora as streams of documents: read in order, from any position, never held whole."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.corpus import is_held_out, no_text, text_files
from fusion_core.text.files import read_file

LONGEST = 1 << 16  # characters of a document; a longer one is cut into several, which bounds memory
WHOLE = 1 << 30  # bytes of a corpus up to which its files are read whole for their sums
BLOCK, BLOCKS = 4096, 1 << 14  # bytes of a block, and number of blocks of a larger corpus that are read instead


@runtime_checkable
class Documents(Protocol):
    """A corpus in a fixed order, which may differ from epoch to epoch."""

    def read(self, seed: int, epoch: int, position: Any = None) -> Iterator[tuple[str, Any]]:
        """Yield the documents of an epoch from ``position`` on, each with the position (a JSON value) after it.

        None is the start.
        """
        ...

    def fingerprint(self) -> str:
        """Return a few characters that differ between corpora, so that a run is not resumed on another text."""
        ...


def _digest(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@functools.lru_cache(maxsize=1 << 16)
def _sum(path: pathlib.Path, size: int, changed: int, blocks: int) -> str:
    """Return a sum of a file that was ``changed`` at that time: of its content, or of ``blocks`` blocks of it."""
    found = hashlib.sha256(f"{size}".encode())
    try:
        with path.open("rb") as file:
            if not blocks or size <= blocks * BLOCK:
                while part := file.read(1 << 20):
                    found.update(part)
            for i in range(blocks if size > blocks * BLOCK else 0):
                file.seek((size - BLOCK) * i // (blocks - 1))
                found.update(file.read(BLOCK))
    except OSError:
        return "unreadable"  # refused, with its reason, once it is read
    return found.hexdigest()[:16]


def content_sums(files: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """Return a sum of each file by its content, whatever its name.

    Files of more than ``WHOLE`` bytes together are known by their sizes and evenly spaced blocks of them, at least 16 a file,
    the first and last bytes included. A file is read again only if its size or its time has changed.
    """
    stats = [file.stat() for file in files]
    blocks = max(16, BLOCKS // len(files)) if sum(stat.st_size for stat in stats) > WHOLE else 0
    return tuple(_sum(file, stat.st_size, stat.st_mtime_ns, blocks) for file, stat in zip(files, stats, strict=True))


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files and folders of text (``read_file`` lists the kinds), streamed; the files come in another order every epoch.

    Attributes:
      paths: files or folders.

    Raises:
      InputError: a path is missing, or a folder has no file of text. Errors inside a file are raised when it is read.
    """

    paths: Sequence[str | pathlib.Path]
    files: tuple[pathlib.Path, ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.paths, str | pathlib.Path):
            raise InputError(f"the paths are {self.paths!r}; give a list of paths")
        files = [path for _, path in text_files(self.paths)]
        if not files:
            raise no_text(self.paths, 0)
        object.__setattr__(self, "files", tuple(files))

    def read(self, seed: int, epoch: int, position: Any = None) -> Iterator[tuple[str, Any]]:
        """See ``Documents``."""
        order = np.random.default_rng((seed, 2, epoch)).permutation(len(self.files))
        first, *start = position or (0, 0, 0)
        for number in range(first, len(order)):
            for text, (a, b) in read_file(self.files[order[number]], (start[0], start[1]), LONGEST):
                yield text, [number, a, b]
            start = [0, 0]

    @functools.cached_property
    def sums(self) -> tuple[str, ...]:
        """Sum of each file (``content_sums``)."""
        return content_sums(self.files)

    def fingerprint(self) -> str:
        """Return a digest of the files' contents, in their order."""
        return _digest(self.sums)


@dataclasses.dataclass(frozen=True)
class TextList:
    """Documents in memory."""

    texts: Sequence[str]

    def read(self, seed: int, epoch: int, position: Any = None) -> Iterator[tuple[str, Any]]:
        """See ``Documents``."""
        for number in range(position or 0, len(self.texts)):
            yield self.texts[number], number + 1

    def fingerprint(self) -> str:
        """See ``Documents``."""
        return _digest(len(self.texts), zlib.crc32("\0".join(self.texts).encode()))


@dataclasses.dataclass(frozen=True)
class Part:
    """The training or the held-out documents of a corpus, split by the rule of ``split_documents``: by content and seed.

    Attributes:
      documents: the corpus.
      fraction: share of the documents that is held out, between 0 and 1.
      seed: of the split.
      held_out: whether this is the held-out part.
    """

    documents: Documents
    fraction: float
    seed: int
    held_out: bool

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise InputError(f"the held-out share is {self.fraction}; it must be between 0 and 1")

    def read(self, seed: int, epoch: int, position: Any = None) -> Iterator[tuple[str, Any]]:
        """See ``Documents``."""
        for text, after in self.documents.read(seed, epoch, position):
            if is_held_out(text, self.fraction, self.seed) == self.held_out:
                yield text, after

    def fingerprint(self) -> str:
        """See ``Documents``."""
        return _digest(self.documents.fingerprint(), self.fraction, self.seed, self.held_out)


def parts_of(text: str, longest: int = LONGEST) -> Iterator[str]:
    """Yield the text in parts of at most ``longest`` characters, cut between words if there are any."""
    start = 0
    while len(text) - start > longest:
        cut = text.rfind(" ", start + 1, start + longest) + 1 or start + longest
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


@dataclasses.dataclass(frozen=True)
class BlockStart:
    """The start of a block.

    Attributes:
      number: of the block in the endless sequence of epochs.
      epoch: of the block.
      index: of the block in its epoch.
      position: of its first document (``Documents.read``).
    """

    number: int = 0
    epoch: int = 0
    index: int = 0
    position: Any = None


def blocks(
    documents: Documents, seed: int, start: BlockStart, most_documents: int, most_characters: int
) -> Iterator[tuple[BlockStart, list[str]]]:
    """Yield the endless sequence of blocks from ``start`` on: runs of documents that are shuffled together, and their starts.

    A block ends with its epoch, with ``most_documents`` documents, or with the one that brings it to ``most_characters``.
    The order within it is drawn from (seed, epoch, index).

    Raises:
      InputError: an epoch has no text.
    """
    while True:
        reader = documents.read(seed, start.epoch, start.position)
        empty = start.index == 0
        ended = False
        while not ended:
            texts: list[str] = []
            characters, after = 0, start.position
            while len(texts) < most_documents and characters < most_characters:
                text, after = next(reader, (None, None))
                if text is None:
                    ended = True
                    break
                if text and not text.isspace():
                    texts += [part for part in parts_of(text) if not part.isspace()]
                    characters += len(text)
            if texts:
                empty = False
                rng = np.random.default_rng((seed, 3, start.epoch, start.index))
                yield start, [texts[i] for i in rng.permutation(len(texts))]
                start = BlockStart(start.number + 1, start.epoch, start.index + 1, after)
        if empty:
            raise InputError("there is no text in the corpus; give documents that are not empty")
        start = BlockStart(start.number, start.epoch + 1)
