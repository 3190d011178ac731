"""Text split into training and validation documents and tokenized once: in the run's folder, and in the cache.

The same text, settings and versions give the same files. What a run has in its folder it keeps, whatever becomes of the text
and of the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.memory import give_back
from fusion_core.text import cache
from fusion_core.text.corpus import corpus_files, default_corpus, read_documents, split_documents, text_files
from fusion_core.text.documents import Part, TextFiles
from fusion_core.text.tokenizer import Tokenizer, train_tokenizer
from fusion_core.timings import Timings

TOKENS, TOKENIZER = "tokens.npz", "tokenizer"
TOKENIZER_FILES = (f"{TOKENIZER}/tokenizer_config.json", f"{TOKENIZER}/tokenizer.json")
FORMAT = 2  # of the files: a number more where the same text gives others
LOOKED_AT = 20_000  # documents of a streamed text from which a tokenizer is trained


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """What the files are made from.

    Attributes:
      text: files or folders; if empty, the documentation of the standard library and of ``packages``.
      packages: see ``text``.
      tokenizer: folder of a tokenizer; if empty, one of ``vocab`` pieces is trained on the training documents.
      vocab: pieces of a trained tokenizer, without the sentinels.
      validation_share: share of the documents that are for validation.
      seed: of the split and of the tokenizer's training.
      documentation: read that documentation beside ``text`` too.
      tokenizer_sample: characters of the text that a trained tokenizer sees; 0: all.
    """

    text: tuple[str, ...]
    packages: tuple[str, ...]
    tokenizer: str
    vocab: int
    validation_share: float
    seed: int
    documentation: bool = False
    tokenizer_sample: int = 0

    def key(self, content: str, tokenizer: Tokenizer | None) -> str:
        """Return the key in the cache, given the sum of the text that is read and the tokenizer, if one is given."""
        facts = dataclasses.asdict(self) | {
            "text": content,
            "tokenizer": None if tokenizer is None else tokenizer.backend.to_str(),
            "packages": self.packages if self.documented else (),
            "documentation": self.documented,
            "vocab": self.vocab if tokenizer is None else None,
            "tokenizer_sample": self.tokenizer_sample if tokenizer is None else 0,
            "format": FORMAT,
            "versions": [platform.python_version(), *map(importlib.metadata.version, ("sentencepiece", "tokenizers"))],
        }
        if not facts["tokenizer_sample"]:
            del facts["tokenizer_sample"]  # as before there were samples: the same text has the same key
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def documented(self) -> bool:
        """Whether the documentation is read."""
        return self.documentation or not self.text

    def part(self, held_out: bool) -> Part:
        """Return the training or the validation documents of ``text``, streamed."""
        return Part(TextFiles(self.text), self.validation_share, self.seed, held_out)


def write_tokens(folder: pathlib.Path, tokenizer: Tokenizer, train: Sequence[str], validation: Sequence[str]) -> None:
    """Tokenize documents into ``tokens.npz`` of the folder; save the tokenizer beside it."""
    ids = {
        name: np.concatenate(tokenizer.encode_ended(texts))
        for name, texts in (("train", train), ("validation", validation))
    }
    _save_tokenizer(folder, tokenizer)
    # the tokens last: a folder that has them is complete
    with atomic.new_file(folder / TOKENS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **ids)


def read_tokens(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of ``write_tokens``: the ids of ``train`` and ``validation``.

    Raises:
      InputError: the file is damaged.
    """
    try:
        with (folder / TOKENS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("train", "validation")}
        if any(ids.dtype != np.int32 or ids.ndim != 1 for ids in found.values()):
            raise ValueError("it holds no ids of tokens")
        return found
    except Exception as error:  # there is no end of ways in which a damaged archive fails
        raise InputError(f"{folder / TOKENS} cannot be read ({error}); remove {folder}, it is made again") from None


def prepare_tokens(
    settings: TextSettings, folder: pathlib.Path, note: Callable[[str], None], timings: Timings | None = None
) -> None:
    """Write tokens and tokenizer of a text that is held in memory into ``folder``, unless they are there.

    Args:
      settings: of text and tokenizer.
      folder: of the files.
      note: called with a line before what takes time.
      timings: of the parts; if None, they are not kept.

    Raises:
      InputError: the text cannot be read, or a tokenizer cannot be trained on it.
    """
    if (folder / TOKENS).exists():
        return
    timings = timings or Timings()
    with timings.part("looking for the text in the cache"):
        given = Tokenizer.load(settings.tokenizer) if settings.tokenizer else None
        files = text_files(settings.text) + (corpus_files(settings.packages) if settings.documented else [])
        key = settings.key(_sum_of_files(files), given)
        if cache.fetch(key, folder, note):
            note(f"took the tokenized text from the cache ({key[:8]})")
            return
    note("reading the text")
    with timings.part("reading the text"):
        documents = read_documents(settings.text) if settings.text else []
        if settings.documented:
            documents += default_corpus(settings.packages)
        train, validation = split_documents(documents, settings.validation_share, settings.seed)
    tokenizer = given or _trained(settings, train, note, timings)
    give_back()
    note("tokenizing")
    with timings.part("tokenizing"):
        write_tokens(folder, tokenizer, train, validation)
        cache.store(key, folder, [*TOKENIZER_FILES, TOKENS], note)


def prepare_tokenizer(
    settings: TextSettings, folder: pathlib.Path, note: Callable[[str], None], timings: Timings | None = None
) -> None:
    """Write the tokenizer of a text that is streamed into ``folder``, unless it is there.

    It is trained on the first ``LOOKED_AT`` training documents; otherwise as ``prepare_tokens``.
    """
    if (folder / TOKENIZER_FILES[-1]).exists():
        return
    if settings.tokenizer:
        _save_tokenizer(folder, Tokenizer.load(settings.tokenizer))
        return
    timings = timings or Timings()
    note("reading the text")
    with timings.part("reading the text"):
        train = [text for text, _ in itertools.islice(settings.part(False).read(settings.seed, 0), LOOKED_AT)]
    key = settings.key(_sum_of_texts(train), None)
    if cache.fetch(key, folder, note):
        note(f"took the tokenizer from the cache ({key[:8]})")
        return
    _save_tokenizer(folder, _trained(settings, train, note, timings))
    cache.store(key, folder, TOKENIZER_FILES, note)


def _trained(settings: TextSettings, train: Sequence[str], note: Callable[[str], None], timings: Timings) -> Tokenizer:
    note(f"training the tokenizer, {settings.vocab} pieces")
    with timings.part("training the tokenizer"):
        return train_tokenizer(train, settings.vocab, settings.seed, settings.tokenizer_sample)


def _save_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)  # of an attempt that was cut off
    with atomic.new_folder(folder / TOKENIZER) as temporary:
        tokenizer.save(temporary)


def _sum_of_files(files: Iterable[tuple[str, pathlib.Path]]) -> str:
    """Return the sum of files' names and contents, in their order."""
    found = hashlib.sha256()
    for name, path in files:
        try:
            content = cache.file_sum(path)
        except OSError:
            content = "unreadable"  # passed over or refused, with its reason, by those who read it
        found.update(f"{name}\0{content}\0".encode(errors="surrogateescape"))
    return found.hexdigest()


def _sum_of_texts(texts: Iterable[str]) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode()).digest())
    return found.hexdigest()
