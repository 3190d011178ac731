"""Documents in memory: the user's files, or the English documentation of the installed scientific stack."""

from __future__ import annotations

import hashlib
import importlib.util
import pathlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence

from fusion_core.errors import InputError
from fusion_core.text.docstrings import documentation_of
from fusion_core.text.encoding import check_pointer
from fusion_core.text.files import COMPRESSED, READABLE, read_file, readable

# The packages whose docstrings and texts are the default corpus, beside the standard library.
DEFAULT_PACKAGES = ("numpy", "scipy", "sympy", "jax", "matplotlib")
TEXT_SUFFIXES = (".rst", ".md")

MOST_TEXT = 1 << 30  # characters that are held in memory
LONGEST_WORD = 1 << 20  # characters without white space
SHORT = 64  # characters that a shorter document counts as, for it takes as much memory
MIN_CHARACTERS = 200  # shorter documents are one-line docstrings, licence headers and the like


def default_folders(packages: Sequence[str] = DEFAULT_PACKAGES) -> list[pathlib.Path]:
    """Return the folders of the standard library and of those of ``packages`` that are installed."""
    folders = [pathlib.Path(sysconfig.get_path("stdlib"))]
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folders.append(pathlib.Path(spec.origin).parent)
    return folders


def _walk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files below ``folder`` in sorted order, without tests, caches and other packages' folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in ("__pycache__", "site-packages", "dist-packages", "tests", "test", "node_modules"):
                yield from _walk(path)
        elif path.suffix in (".py", *TEXT_SUFFIXES):
            yield path


def corpus_files(packages: Sequence[str] = DEFAULT_PACKAGES) -> list[tuple[str, pathlib.Path]]:
    """Return the files of the default corpus in their order, each with its name below its package's folder."""
    return [
        (f"{folder.name}/{path.relative_to(folder).as_posix()}", path)
        for folder in default_folders(packages)
        for path in _walk(folder)
    ]


def default_corpus(packages: Sequence[str] = DEFAULT_PACKAGES) -> list[str]:
    """Read the documentation of the installed scientific stack: a document a source file or text file.

    Docstrings, and the ``.rst`` and ``.md`` files, of the standard library, numpy, scipy, sympy, jax and matplotlib;
    in the order of their paths, so that the same installation gives the same documents. Duplicates are dropped. No
    download.

    Args:
      packages: to read beside the standard library; those that are not installed are left out.
    """
    texts = documentation_of([path for _, path in corpus_files(packages)])
    return deduplicate(text for text in texts if text is not None)


def deduplicate(documents: Iterable[str]) -> list[str]:
    """Return the documents in their order, without very short ones and without repetitions (white space aside)."""
    seen = set()
    kept = []
    for text in documents:
        key = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if len(text) >= MIN_CHARACTERS and key not in seen:
            seen.add(key)
            kept.append(text)
    return kept


def text_files(paths: Sequence[str | pathlib.Path]) -> list[tuple[str, pathlib.Path]]:
    """Return the files among ``paths`` and, in the order of their paths, the files of text in the folders among them.

    Each comes with its name below the folder that was given.

    Raises:
      InputError: a path is missing.
    """
    files: list[tuple[str, pathlib.Path]] = []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise InputError(f"there is no file or folder {path}; check the path")
        if not path.is_dir():
            check_pointer(path)
        found = sorted(p for p in path.rglob("*") if p.is_file() and readable(p)) if path.is_dir() else [path]
        files += [(p.relative_to(path if path.is_dir() else path.parent).as_posix(), p) for p in found]
    return files


def no_text(paths: Sequence[str | pathlib.Path], files: int) -> InputError:
    """Return the error for ``files`` files without any text."""
    return InputError(
        f"no text in {', '.join(map(str, paths))} ({files} files read); give files of UTF-8 text, or folders "
        f"with files that end in {', '.join(READABLE)} (or these with {' or '.join(COMPRESSED)})"
    )


def read_documents(paths: Sequence[str | pathlib.Path]) -> list[str]:
    """Read all documents of files or folders (``read_file`` lists the kinds); ``TextFiles`` streams them instead.

    Raises:
      InputError: a path is missing, not UTF-8, damaged, or there is no text in any; or there is more than ``MOST_TEXT``.
    """
    files = text_files(paths)
    documents: list[str] = []
    size = 0
    for _, file in files:
        for text, _ in read_file(file):
            size += max(len(text), SHORT)
            if size > MOST_TEXT:
                raise InputError(
                    f"the text up to {file} has more than {MOST_TEXT:,} characters; stream it, or give less"
                )
            if len(text) > LONGEST_WORD and max(map(len, text.split()), default=0) > LONGEST_WORD:
                raise InputError(
                    f"{file} has more than {LONGEST_WORD:,} characters without a space; no text has: leave it out"
                )
            if text.strip():
                documents.append(text)
    if not documents:
        raise no_text(paths, len(files))
    return documents


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    """Return whether a document is one of the ``fraction`` for validation, by its content and the seed alone."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_documents(documents: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Split documents into those for training and about ``fraction`` of them for validation.

    The side of a document depends on its content and the seed alone. If a side would be empty, the longest document is split.
    """
    train: list[str] = []
    validation: list[str] = []
    for text in documents:
        side = validation if is_held_out(text, fraction, seed) else train
        side.append(text)
    for empty, full in ((validation, train), (train, validation)):
        if not empty:
            longest = max(range(len(full)), key=lambda i: len(full[i]))
            text = full.pop(longest)
            cut = round(len(text) * (1 - fraction))
            train.append(text[:cut])
            validation.append(text[cut:])
            break
    return train, validation
