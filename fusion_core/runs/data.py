"""The text of a run: split, tokenized once, kept in the run's folder; the same text and seed give the same files."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.runs.plan import DataSettings
from fusion_core.text import (
    Batch,
    DataSource,
    Part,
    SpanCorruption,
    StreamedSpans,
    TextFiles,
    Tokenizer,
    default_corpus,
    read_documents,
    split_documents,
    train_tokenizer,
)
from fusion_core.text.span_corruption import window_length
from fusion_core.train.devices import barrier, first_process, processes

TOKENS, TOKENIZER = "tokens.npz", "tokenizer"
LOOKED_AT = 20_000  # documents of a streamed text from which a tokenizer is trained
FRESH_SEED = 10**9


def write_tokens(folder: pathlib.Path, tokenizer: Tokenizer, train: Sequence[str], validation: Sequence[str]) -> None:
    """Tokenizes documents into ``tokens.npz`` of the folder, beside the ``tokenizer``."""
    ids = {
        "train": np.concatenate(tokenizer.encode(train)),
        "validation": np.concatenate(tokenizer.encode(validation)),
        "documents": np.asarray([len(train), len(validation)]),
        "characters": np.asarray([sum(map(len, train)), sum(map(len, validation))]),
    }
    if not (folder / TOKENIZER).exists():
        with atomic.new_folder(folder / TOKENIZER) as temporary:
            tokenizer.save(temporary)
    # the tokens last: where they are, all of this is done
    with atomic.new_file(folder / TOKENS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **ids)


def read_tokens(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What ``write_tokens`` wrote. Raises InputError where it is damaged."""
    try:
        with np.load(folder / TOKENS, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder / TOKENS} cannot be read ({error}); remove {folder}, it is made again") from None


class RunData:
    """The tokenizer of a run, and the batches of its nodes."""

    def __init__(self, settings: DataSettings, seed: int, folder: pathlib.Path, note: Callable[[str], None]) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder
        ready = folder / (TOKENIZER if settings.stream else TOKENS)
        if first_process() and not ready.exists():
            self._prepare(note)
        barrier("the text is tokenized")
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        self._ids = {} if settings.stream else read_tokens(folder)
        # what a checkpoint must agree on
        self.digest = hashlib.sha256((folder / TOKENIZER / "tokenizer.json").read_bytes()).hexdigest()[:16]

    def _part(self, held_out: bool) -> Part:
        """The streamed training or validation documents."""
        return Part(TextFiles(self.settings.text), self.settings.validation_share, self.seed, held_out)

    def _prepare(self, note: Callable[[str], None]) -> None:
        settings = self.settings
        note("reading the text")
        if settings.stream:
            train = [text for text, _ in itertools.islice(self._part(False).read(self.seed, 0), LOOKED_AT)]
        else:
            documents = read_documents(settings.text) if settings.text else default_corpus(settings.packages)
            train, validation = split_documents(documents, settings.validation_share, self.seed)
        if settings.tokenizer:
            tokenizer = Tokenizer.load(settings.tokenizer)
        else:
            note(f"training the tokenizer, {settings.vocab} pieces")
            tokenizer = train_tokenizer(train, settings.vocab, self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / TOKENIZER, ignore_errors=True)  # of an attempt that was cut off
        if settings.stream:
            with atomic.new_folder(self.folder / TOKENIZER) as temporary:
                tokenizer.save(temporary)
        else:
            note("tokenizing")
            write_tokens(self.folder, tokenizer, train, validation)

    def _held(self, part: str, length: int, batch: int, seed: int) -> SpanCorruption:
        windows = (
            len(self._ids[part]) // window_length(length, SpanCorruption.noise_density, SpanCorruption.mean_span)[0]
        )
        if windows < batch:
            raise InputError(
                f"the {part} text has {windows} windows of {length} source tokens, but a batch needs {batch}; give more "
                "text, or take a smaller batch or length"
            )
        return SpanCorruption.from_documents([self._ids[part]], self.tokenizer, length, seed)

    def _streamed(self, held_out: bool, length: int, seed: int) -> StreamedSpans:
        return StreamedSpans(self._part(held_out), self.tokenizer, length, seed, packed=self.settings.packed)

    def training(self, length: int, batch: int, seed: int) -> DataSource:
        """This process's training batches, in the order and with the masks of the seed.

        Raises:
          InputError: the text is too short.
        """
        whole = (
            self._streamed(False, length, seed) if self.settings.stream else self._held("train", length, batch, seed)
        )
        index, count = processes()
        return dataclasses.replace(whole, process_index=index, process_count=count)

    def validation(self, length: int, batch: int) -> list[Batch]:
        """The global batches of every evaluation, at least one; no window of a text in memory comes twice."""
        count = self.settings.validation_batches
        if self.settings.stream:
            drawn = self._streamed(True, length, self.seed).batches(batch)
            return [rows for rows, _ in itertools.islice(drawn, count)]
        held_out = self._held("validation", length, batch, self.seed)
        return [held_out.batch(i, batch) for i in range(min(count * batch, len(held_out.windows)) // batch)]

    def fresh(self, length: int, batch: int, number: int, count: int) -> list[Batch]:
        """Global batches of training text in an order that is no node's; other ones for every ``number``."""
        seed = FRESH_SEED + self.seed
        if self.settings.stream:
            drawn = self._streamed(False, length, seed + number).batches(batch)
            return [rows for rows, _ in itertools.islice(drawn, count)]
        source = self._held("train", length, batch, seed)
        return [source.batch(number * count + i, batch) for i in range(count)]
