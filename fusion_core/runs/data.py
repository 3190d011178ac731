"""The text of a run as batches for its nodes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fusion_core.checked import checked
from fusion_core.checkpoints.tokenizers import check_fits
from fusion_core.errors import InputError
from fusion_core.memory import give_back
from fusion_core.runs.graph import Resolved
from fusion_core.runs.plan import TrainNode
from fusion_core.runs.settings import DataSettings
from fusion_core.sealed import read_sealed, write_sealed
from fusion_core.text import Batch, DataSource, SpanCorruption, StreamedSpans, TextFiles, Tokenizer
from fusion_core.text.corpus import read_documents, text_files
from fusion_core.text.documents import LONGEST
from fusion_core.text.files import read_file
from fusion_core.text.prepared import TOKENIZER, TOKENS, TextSettings, prepare_tokenizer, prepare_tokens, read_tokens
from fusion_core.text.sources import first_batches
from fusion_core.text.span_corruption import window_length
from fusion_core.timings import Timings
from fusion_core.train.devices import barrier, first_process, processes

SMALL = 4 << 20  # bytes of a text that is tokenized in a second
FILES = "files.json"  # of the text, with their sums, and the sum of what was made of them
FRESH_SEED = 10**9  # added to the seeds of fresh batches: no node has such a seed

_REMEDY = "put back what was there, or begin a new run"


def check_files(known: list[list[str]], now: TextFiles) -> None:
    """Raise InputError if the files do not have the sums that are known of them, in their order, whatever their names."""
    found = list(zip(map(str, now.files), now.sums, strict=True))
    if len(found) != len(known):
        raise InputError(f"the text has {len(found)} files, but the run was begun with {len(known)}; {_REMEDY}")
    for (name, expected), (path, content) in zip(known, found, strict=True):
        if content != expected:
            what = "another content" if path == name else f"the place of {name}, and another content"
            raise InputError(f"{path} has {what} than the text that the run was begun with; {_REMEDY}")


def _known(settings: DataSettings, file: pathlib.Path) -> dict[str, Any]:
    """Return what the run has noted of its text: the sum of each file, and that of the prepared data once they are made.

    Text in memory that is not there any more is not missed: the run has its tokens.

    Raises:
      InputError: the text has changed, or the file is damaged.
    """
    known: dict[str, Any] = {"files": None}
    if file.exists():
        known = read_sealed(file, "remove it, if the text is still the same")
        try:
            checked(list[list[str]], known.get("files"))
        except ValueError as error:
            raise InputError(f"{file} holds no sums of a text ({error}); remove it, if the text is the same") from None
    if settings.text and (settings.stream or known["files"] is None or all(map(os.path.exists, settings.text))):
        now = TextFiles(settings.text)
        if known["files"] is None:
            known["files"] = [list(pair) for pair in zip(map(str, now.files), now.sums, strict=True)]
        else:
            check_files(known["files"], now)
    return known | {"files": known["files"] or []}


class RunData:
    """The tokenizer of a run, and the batches of its nodes.

    Args:
      settings: of text and tokenizer.
      seed: of the split and of the tokenizer.
      folder: of tokens and tokenizer; if they are there, a text in memory is not read again. Its files, as those of a
        streamed text, are known by the sums that the folder has of them.
      note: called with a line before what takes time.
      timings: of the parts; if None, they are not kept.

    Attributes:
      tokenizer: text to ids.
      digest: sum of tokens and tokenizer, on which all checkpoints of a run agree.

    Raises:
      InputError: the text cannot be read, it is not the one that the run was begun with, or a file of the folder is damaged.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int,
        folder: pathlib.Path,
        note: Callable[[str], None],
        timings: Timings | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self._validation: dict[tuple[int, int], list[Batch]] = {}
        names = [field.name for field in dataclasses.fields(TextSettings) if field.name != "seed"]
        self._text = TextSettings(**{name: getattr(settings, name) for name in names}, seed=seed)
        known = _known(settings, folder / FILES)
        self._files = known["files"]
        if first_process():
            if not (folder / FILES).exists():  # before it is tokenized, which takes long
                write_sealed(folder / FILES, known)
            (prepare_tokenizer if settings.stream else prepare_tokens)(self._text, folder, note, timings)
        give_back()  # what the text took
        barrier("the text is tokenized")
        with (timings or Timings()).part("loading tokens and tokenizer"):
            self.tokenizer = Tokenizer.load(folder / TOKENIZER)
            self._ids = {} if settings.stream else read_tokens(folder)
            content = hashlib.sha256(self.tokenizer.backend.to_str().encode())
            for ids in self._ids.values():
                content.update(np.ascontiguousarray(ids).data)
            if settings.stream:
                content.update(self._text.part(False).fingerprint().encode())
            self.digest = content.hexdigest()[:16]
        if known.get("prepared", self.digest) != self.digest:
            raise InputError(
                f"{folder} does not hold the tokens and the tokenizer that the run was begun with; remove "
                f"{'its folder tokenizer' if settings.stream else f'its {TOKENS}'}: they are made again"
            )
        if first_process() and "prepared" not in known:
            write_sealed(folder / FILES, known | {"prepared": self.digest})

    def _source(self, held_out: bool, length: int, batch: int, seed: int) -> SpanCorruption | StreamedSpans:
        """Return the training or the validation batches of all processes."""
        if self.settings.stream:
            check_files(self._files, TextFiles(self.settings.text))
            return StreamedSpans(self._text.part(held_out), self.tokenizer, length, seed, packed=self.settings.packed)
        part = "validation" if held_out else "train"
        windows = len(self._ids[part]) // window_length(length)[0]
        if windows < batch:
            name = "validation" if held_out else "training"
            raise InputError(
                f"the {name} text has {windows} windows of {length} source tokens, but a batch needs {batch}; give more "
                "text, or take a smaller batch or length"
            )
        return SpanCorruption.from_documents([self._ids[part]], self.tokenizer, length, seed)

    def check(self, nodes: Iterable[Resolved]) -> None:
        """Raise InputError if the tokenizer does not fit a node's network, or the text is too short for its batches."""
        for resolved in nodes:
            owner, node = f"node {resolved.name}", resolved.node
            check_fits(self.tokenizer, resolved.config, owner)
            if isinstance(node, TrainNode):
                try:
                    for held_out in (False, True):
                        self._source(held_out, node.length, node.batch, 0)
                except InputError as error:
                    raise InputError(f"{owner}: {error}") from None

    def training(self, length: int, batch: int, seed: int) -> DataSource:
        """Return this process's training batches, in the order and with the masks of the seed.

        Raises:
          InputError: the text is too short.
        """
        whole = self._source(False, length, batch, seed)
        index, count = processes()
        return dataclasses.replace(whole, process_index=index, process_count=count)

    def validation(self, length: int, batch: int) -> list[Batch]:
        """Return the global batches of every evaluation, at least one; no window of a text in memory comes twice.

        Raises:
          InputError: the text is too short.
        """
        if (length, batch) not in self._validation:
            source, count = self._source(True, length, batch, self.seed), self.settings.validation_batches
            if isinstance(source, SpanCorruption):
                count = min(count, len(source.windows) // batch)
            self._validation[length, batch] = first_batches(source, batch, count)
        return self._validation[length, batch]

    def fresh(self, length: int, batch: int, number: int, count: int) -> list[Batch]:
        """Return global batches of training text in an order that no node has; other ones for every ``number``."""
        return first_batches(self._source(False, length, batch, FRESH_SEED + self.seed + number), batch, count)


def check_text(settings: DataSettings, seed: int, nodes: Iterable[Resolved]) -> None:
    """Read the text of a plan as its run would, as far as that is quick.

    A text of up to ``SMALL`` bytes is tokenized, and every node's batches are drawn from it; a larger one is read; of a
    streamed one the beginning of every file is read. The documentation of installed packages is not.

    Raises:
      InputError: a file cannot be read, or there is too little text for a node.
    """
    if settings.stream:
        for file in TextFiles(settings.text).files:
            next(read_file(file, longest=LONGEST), None)
    elif settings.text and not settings.documentation:
        size = sum(path.stat().st_size for _, path in text_files(settings.text))
        if size > SMALL:
            read_documents(settings.text)
            return
        with tempfile.TemporaryDirectory() as folder:
            RunData(settings, seed, pathlib.Path(folder), lambda line: None).check(nodes)
