"""From the text to token ids, once a run; kept in the run's folder."""

from __future__ import annotations

import pathlib

from rich.progress import Progress

from deepfusion.demo.settings import DemoSettings
from fusion_core.errors import InputError
from fusion_core.text import SpanCorruption, Tokenizer, default_corpus, read_documents, split_documents, train_tokenizer
from fusion_core.text.prepared import TOKENIZER, TOKENS, read_tokens, write_tokens
from fusion_core.text.sources import first_batches
from fusion_core.text.span_corruption import window_length


def _prepare(settings: DemoSettings, folder: pathlib.Path, progress: Progress) -> None:
    if settings.text:
        documents = read_documents(settings.text)
    else:
        task = progress.add_task("reading documentation", total=None)

        def track(files):
            yield from progress.track(files, task_id=task)

        documents = default_corpus(settings.packages, track)
    train, validation = split_documents(documents, settings.validation_share, settings.seed)
    task = progress.add_task("training the tokenizer", total=None)
    tokenizer = train_tokenizer(train, settings.vocab, settings.seed)
    progress.update(task, total=1, completed=1)
    task = progress.add_task("tokenizing", total=None)
    write_tokens(folder, tokenizer, train, validation)
    progress.update(task, total=1, completed=1)


class DemoData:
    """Training and validation batches of a run, and its tokenizer."""

    def __init__(self, settings: DemoSettings, folder: pathlib.Path, progress: Progress) -> None:
        if not (folder / TOKENS).exists():
            _prepare(settings, folder, progress)
        self.tokenizer = Tokenizer.load(folder / TOKENIZER)
        ids = read_tokens(folder)
        self.facts = {
            "train_documents": int(ids["documents"][0]),
            "validation_documents": int(ids["documents"][1]),
            "characters": int(ids["characters"].sum()),
            "train_tokens": len(ids["train"]),
            "validation_tokens": len(ids["validation"]),
        }
        window, _ = window_length(settings.source)
        for name, key in (("training", "train"), ("validation", "validation")):
            self._check(settings, name, len(ids[key]) // window, settings.batch)
        self.train = SpanCorruption.from_documents([ids["train"]], self.tokenizer, settings.source, settings.seed)
        held_out = SpanCorruption.from_documents([ids["validation"]], self.tokenizer, settings.source, settings.seed)
        wanted = settings.validation_batches * settings.batch
        # at least one batch, and no window twice
        batches = min(wanted, len(held_out.windows)) // settings.batch
        self.validation = first_batches(held_out, settings.batch, batches)

    @staticmethod
    def _check(settings: DemoSettings, name: str, windows: int, batch: int) -> None:
        if windows < batch:
            raise InputError(
                f"the {name} text has {windows} windows of {settings.source} source tokens, but a batch needs {batch}; "
                "give more text"
            )
