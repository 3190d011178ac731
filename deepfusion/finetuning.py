"""A fine-tuning run in its folder: a T5 on a text-to-text task, its answers and scores as files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
from rich.console import Console

from deepfusion.answers import answer, open_network
from deepfusion.progress import progress_bars
from fusion_core import atomic, save_pretrained
from fusion_core.checkpoints.tokenizers import copy_tokenizer
from fusion_core.errors import InputError
from fusion_core.models.t5.decoding import Decoding
from fusion_core.provenance import provenance
from fusion_core.text.examples import ExampleBatches, batches_by_length, encode_texts, padded, width_for
from fusion_core.text.scores import NO_LABEL
from fusion_core.text.tasks import custom_task, named_task
from fusion_core.train import (
    Interrupted,
    Metrics,
    Trainer,
    adafactor,
    constant_schedule,
    init_state,
    load_state,
    save_state,
    t5_loss,
)
from fusion_core.train.loop import graceful_interrupt

SETTINGS, METRICS, STATE, SCORES = "settings.json", "metrics.jsonl", "state.safetensors", "scores.json"
PREDICTIONS, CHECKPOINT = "predictions", "checkpoint"
LONGEST_DISPATCH = 10


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """Settings of a run; saved with it, so that it can be resumed.

    Attributes:
      checkpoint, train, validation: paths.
      task: one of GLUE's nine, or "custom", which needs the two columns.
      input_column, target_column, prefix: of a custom task.
      steps, batch, learning_rate, seed: of the training; the rate is Adafactor's, relative to each parameter's size.
      every: steps between evaluations; 0: a fifth of the steps.
      source_length, target_length: tokens at most; longer texts are cut, and counted.
      dropout: share of units dropped in training; None: the checkpoint's.
    """

    checkpoint: str
    train: str
    validation: str
    task: str
    input_column: str | None = None
    target_column: str | None = None
    prefix: str = ""
    steps: int = 1000
    batch: int = 32
    learning_rate: float = 0.001
    seed: int = 0
    every: int = 0
    source_length: int = 512
    target_length: int = 128
    dropout: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0), ("every", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("source_length", "target_length"):
            if getattr(self, name) < 2:
                option = name.replace("_", "-")
                raise InputError(f"--{option} is {getattr(self, name)}; it must be at least 2: a token and the end")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"--learning-rate is {self.learning_rate}; it must be positive")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout is {self.dropout}; it must be at least 0 and below 1")
        columns = (self.input_column, self.target_column)
        if self.task == "custom" and None in columns:
            raise InputError("--task custom needs --input-column and --target-column, the names of the file's columns")
        if self.task != "custom" and (any(columns) or self.prefix):
            raise InputError("--input-column, --target-column and --prefix are for --task custom; leave them out")

    @property
    def stops(self) -> list[int]:
        """Steps of the evaluations: the start, every so many, the end."""
        every = self.every or max(1, self.steps // 5)
        return sorted({*range(0, self.steps, every), self.steps})

    @property
    def dispatch(self) -> int:
        """Steps in one dispatch: the most, up to ten, of which every stop is a multiple."""
        return next(d for d in range(LONGEST_DISPATCH, 0, -1) if not any(stop % d for stop in self.stops))


class Finetuning:
    """A run in its folder. Creating it reads and checks all input, compiles nothing and writes nothing."""

    def __init__(self, settings: FinetuneSettings, folder: pathlib.Path) -> None:
        self.settings, self.folder = settings, folder
        if settings.task == "custom":
            self.task = custom_task(settings.input_column or "", settings.target_column or "", settings.prefix)
        else:
            self.task = named_task(settings.task)
        self.examples = {
            name: self.task.examples(pathlib.Path(path))
            for name, path in (("train", settings.train), ("validation", settings.validation))
        }
        self.network = open_network(pathlib.Path(settings.checkpoint))
        self.ids: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self.cut: dict[str, dict[str, int]] = {}
        for name, examples in self.examples.items():
            sources, cut = encode_texts(self.network.tokenizer, [e.source for e in examples], settings.source_length)
            targets, cut_targets = encode_texts(
                self.network.tokenizer, [e.target for e in examples], settings.target_length
            )
            self.ids[name] = sources, targets
            self.cut[name] = {"sources": cut, "targets": cut_targets}
        words = self._check_labels()
        self.optimizer = adafactor(constant_schedule())  # a constant rate, as T5 is fine-tuned
        config, rate = self.network.config, settings.dropout
        loss = t5_loss(config if rate is None else dataclasses.replace(config, dropout_rate=rate))
        self.trainer = Trainer(loss, self.optimizer, settings.batch, settings.dispatch, seed=settings.seed)
        self.longest = max(len(x) for x in [*self.ids["train"][1], *self.ids["validation"][1], *words])

    def _check_labels(self) -> list[np.ndarray]:
        """Ids of the labels. Raises InputError where the network could not write one, so that all answers were wrong."""
        words = self.network.tokenizer.encode(self.task.labels)
        for label, ids in zip(self.task.labels, words, strict=True):
            if len(ids) > self.settings.target_length:
                raise InputError(
                    f"--target-length is {self.settings.target_length}, but the label {label!r} has {len(ids)} tokens, its "
                    "end included; allow more"
                )
            if (spelled := self.network.tokenizer.decode(ids)) != label:
                raise InputError(
                    f"{self.settings.checkpoint}: the tokenizer spells the label {label!r} as {spelled!r}; take a network "
                    "whose vocabulary has its characters"
                )
        return words

    def validation_loss(self, params: Any) -> float:
        """Mean over the validation targets' tokens, nats."""
        sources, targets = self.ids["validation"]
        groups: dict[int, list[dict[str, np.ndarray]]] = {}
        for rows in batches_by_length([len(x) for x in sources], self.settings.batch):
            width = width_for(max(len(sources[i]) for i in rows))
            batch_targets = padded([targets[i] for i in rows], self.longest)
            batch_targets[len(np.unique(rows)) :] = self.network.config.pad_token_id  # what fills the last batch
            batch = {"encoder_ids": padded([sources[i] for i in rows], width), "targets": batch_targets}
            groups.setdefault(width, []).append(batch)
        total = count = 0.0
        for batches in groups.values():
            tokens = sum(int(np.count_nonzero(b["targets"] != self.network.config.pad_token_id)) for b in batches)
            total += self.trainer.evaluate(params, batches) * tokens
            count += tokens
        return total / count

    def answers(self, params: Any) -> list[str]:
        """What the network writes for the validation sources, greedily."""
        network = self.network._replace(params=params)
        return answer(network, self.ids["validation"][0], Decoding(self.longest), batch=max(32, self.settings.batch))

    def scores(self, answers: list[str]) -> dict[str, float | None]:
        """Metrics of the answers; an undefined one is None."""
        found = self.task.scores([e.target for e in self.examples["validation"]], answers)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    # The run.

    def run(self, console: Console) -> dict[str, Any]:
        """Trains to the end, evaluating on the way, and writes everything; returns what ``scores.json`` has.

        Raises:
          Interrupted: Ctrl-C; the folder holds what a resumed run needs.
          TrainingDiverged: a loss is not finite.
        """
        settings = self.settings
        if not (self.folder / SETTINGS).exists():
            atomic.write_text(self.folder / SETTINGS, json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
        metrics = Metrics(self.folder / METRICS)
        file = self.folder / STATE
        state = init_state(self.network.params, self.optimizer, settings.learning_rate)
        if file.exists():
            state = load_state(file, state)[0]
        metrics.keep(lambda r: r["step"] <= int(state.step))
        batches = ExampleBatches(*self.ids["train"], settings.seed, settings.dispatch)
        note = lambda: console.print("Stopping at the next step; press Ctrl-C again to stop at once.")
        answers: list[str] | None = None
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(progress_bars(console))
            stack.enter_context(graceful_interrupt(note))
            bar = progress.add_task(f"fine-tuning on {settings.task}", total=settings.steps, completed=int(state.step))
            for stop in settings.stops:
                if metrics.of(step=stop) or stop < int(state.step):
                    continue
                try:
                    state, measured = self.trainer.advance(
                        state, batches.batch, stop, on_dispatch=lambda n: progress.advance(bar, n)
                    )
                except Interrupted as stopped:
                    save_state(file, stopped.state)
                    raise
                answers = self.answers(state.params)
                record: dict[str, Any] = {"step": stop, **self.scores(answers)}
                record["validation_loss"] = self.validation_loss(state.params)
                if len(measured["loss"]):
                    # of the last dispatch: a run that was interrupted has all of it too
                    record["loss"] = float(np.mean(measured["loss"][-settings.dispatch :]))
                metrics.write(record)
                save_state(file, state)  # last: what a record is missing for is done again
        return self._finish(state.params, self.answers(state.params) if answers is None else answers)

    def _finish(self, params: Any, answers: list[str]) -> dict[str, Any]:
        examples = self.examples["validation"]
        rows = [{"source": e.source, "target": e.target, "answer": a} for e, a in zip(examples, answers, strict=True)]
        flat = lambda text: " ".join(text.split())
        lines = ["source\ttarget\tanswer", *("\t".join(map(flat, row.values())) for row in rows)]
        atomic.write_text(self.folder / f"{PREDICTIONS}.tsv", "\n".join(lines) + "\n")
        atomic.write_text(self.folder / f"{PREDICTIONS}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        if not (self.folder / CHECKPOINT).exists():
            with atomic.new_folder(self.folder / CHECKPOINT) as temporary:
                save_pretrained(temporary, params, self.network.config)
                copy_tokenizer([pathlib.Path(self.settings.checkpoint)], temporary)
        no_label = sum(self.task.read(a) == NO_LABEL for a in answers) if self.task.kind != "text" else 0
        result = {
            "task": self.settings.task,
            "scores": self.scores(answers),
            "examples": {name: len(examples) for name, examples in self.examples.items()},
            "answers_that_are_no_label": no_label,
            "cut": self.cut,
            "steps": self.settings.steps,
            "provenance": provenance(),
        }
        atomic.write_text(self.folder / SCORES, json.dumps(result, indent=2) + "\n")
        return result


def load_settings(folder: pathlib.Path) -> FinetuneSettings:
    """The settings of an existing run. Raises InputError where the folder holds none."""
    file = folder / SETTINGS
    try:
        return FinetuneSettings(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no fine-tuning run (no {SETTINGS}); give the folder of --out") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}); start a new run") from None
