"""The text of a run: split, tokenized once, kept in the run's folder; the same text and seed give the same files."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.runs.schema import DataSettings
from fusion_core.text import SpanCorruption, Tokenizer, default_corpus, read_documents, split_documents, train_tokenizer
from fusion_core.text.batches import window_length
from fusion_core.train.loop import Feed, feed_by_step

TOKENS, TOKENIZER = "tokens.npz", "tokenizer"


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


class Stepped:
    """Span corruption as the trainer's data: its position is the step."""

    def __init__(self, source: SpanCorruption) -> None:
        self.source = source

    def batches(self, size: int, state: Any = None) -> Feed:
        """This process's rows of the batches from a position on."""
        return feed_by_step(self.source.batch, 0 if state is None else int(state), size)


class RunData:
    """The tokenizer of a run, and the batches of its nodes."""

    def __init__(self, settings: DataSettings, seed: int, folder: pathlib.Path, note: Callable[[str], None]) -> None:
        self.settings, self.seed, self.folder = settings, seed, folder
        if jax.process_index() == 0 and not (folder / TOKENS).exists():
            self._prepare(note)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("the text is tokenized")
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        self._ids = read_tokens(folder)
        # what a checkpoint must agree on
        self.digest = hashlib.sha256((folder / TOKENIZER / "tokenizer.json").read_bytes()).hexdigest()[:16]

    def _prepare(self, note: Callable[[str], None]) -> None:
        settings = self.settings
        note("reading the text")
        documents = read_documents(settings.text) if settings.text else default_corpus(settings.packages)
        train, validation = split_documents(documents, settings.validation_share, self.seed)
        if settings.tokenizer:
            tokenizer = Tokenizer.load(settings.tokenizer)
        else:
            note(f"training the tokenizer, {settings.vocab} pieces")
            tokenizer = train_tokenizer(train, settings.vocab, self.seed)
        note("tokenizing")
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.folder / TOKENIZER, ignore_errors=True)  # of an attempt that was cut off
        write_tokens(self.folder, tokenizer, train, validation)

    def _source(self, part: str, length: int, batch: int, seed: int) -> SpanCorruption:
        windows = len(self._ids[part]) // window_length(length, SpanCorruption.noise_density, SpanCorruption.mean_span)[0]
        if windows < batch:
            raise InputError(
                f"the {part} text has {windows} windows of {length} source tokens, but a batch needs {batch}; give more "
                "text, or take a smaller batch or length"
            )
        return SpanCorruption.from_documents([self._ids[part]], self.tokenizer, length, seed)

    def training(self, length: int, batch: int, seed: int) -> Stepped:
        """Training batches, in the order and with the masks of the seed. Raises InputError where the text is too short."""
        return Stepped(self._source("train", length, batch, seed))

    def validation(self, length: int, batch: int) -> list[Any]:
        """The batches of every evaluation: no window twice, at least one batch."""
        held_out = self._source("validation", length, batch, self.seed)
        count = min(self.settings.validation_batches * batch, len(held_out.windows)) // batch
        return [held_out.batch(i, batch) for i in range(count)]
