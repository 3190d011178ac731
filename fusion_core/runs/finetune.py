"""Fine-tuning: a T5 trained on a text-to-text task and scored by its answers, through the engine of all runs."""

from __future__ import annotations

import dataclasses
import filecmp
import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fusion_core import atomic
from fusion_core.checked import checked, explained
from fusion_core.checkpoints.pretrained import write_pretrained
from fusion_core.checkpoints.tokenizers import copy_tokenizer
from fusion_core.errors import InputError
from fusion_core.lock import locked
from fusion_core.models.t5.decoding import Decoding
from fusion_core.models.t5.flops import step_flops
from fusion_core.provenance import provenance
from fusion_core.runs.answers import answer, open_network
from fusion_core.runs.settings import FORBID, Count, Seed, Whole
from fusion_core.sealed import read_sealed, write_sealed
from fusion_core.text.cache import file_sum
from fusion_core.text.examples import ExampleBatches, batches_by_length, encode_texts, padded, width_for
from fusion_core.text.scores import NO_LABEL
from fusion_core.text.tasks import custom_task, named_task
from fusion_core.train import (
    Cadence,
    Record,
    Trainer,
    Training,
    TrainState,
    adafactor,
    constant_schedule,
    init_state,
    t5_loss,
)
from fusion_core.train.devices import unreplicate

FILES = "files.json"
SETTINGS, SCORES, PREDICTIONS, CHECKPOINT = "settings.json", "scores.json", "predictions", "checkpoint"
READ = (".json", ".safetensors", ".model")  # kinds of files of a checkpoint folder that a run reads
LONGEST_DISPATCH = 10

Length = Annotated[int, Field(strict=True, ge=2)]  # room for a token and the end


@dataclass(frozen=True, config=FORBID)
class FinetuneSettings:
    """Settings of a fine-tuning run; ``settings_from`` makes them from values that may be wrong.

    Attributes:
      checkpoint: folder of a T5 with its tokenizer.
      train, validation: files of examples.
      task: one of GLUE's nine, or "custom".
      input_column, target_column, prefix: of a custom task.
      steps: of training.
      batch: examples in a global batch.
      learning_rate: Adafactor's, constant, relative to each parameter's size.
      seed: of the examples' order and of dropout.
      every: steps between evaluations; 0 is a fifth of the steps.
      source_length, target_length: largest numbers of tokens; longer texts are cut.
      dropout: share of units dropped in training; if None, that of the checkpoint.
    """

    checkpoint: str
    train: str
    validation: str
    task: str
    input_column: str | None = None
    target_column: str | None = None
    prefix: str = ""
    steps: Count = 1000
    batch: Count = 32
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.001
    seed: Seed = 0
    every: Whole = 0
    source_length: Length = 512
    target_length: Length = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        columns = (self.input_column, self.target_column)
        if self.task == "custom" and None in columns:
            raise InputError("a custom task needs input_column and target_column, the names of the files' columns")
        if self.task != "custom" and (any(columns) or self.prefix):
            raise InputError("input_column, target_column and prefix are for the task custom; leave them out")

    @property
    def interval(self) -> int:
        """Steps between evaluations."""
        return min(self.every or max(1, self.steps // 5), self.steps)

    @property
    def dispatch(self) -> int:
        """Steps in one dispatch: the most, up to ``LONGEST_DISPATCH``, of which the evaluations and the end are multiples."""
        common = math.gcd(self.steps, self.interval)
        return next(d for d in range(LONGEST_DISPATCH, 0, -1) if common % d == 0)


def settings_from(values: Mapping[str, Any]) -> FinetuneSettings:
    """Return checked settings.

    Raises:
      InputError: a value is missing, unknown or out of range; the message has all such errors.
    """
    try:
        return TypeAdapter(FinetuneSettings).validate_python(dict(values))
    except ValidationError as error:
        found = [explained(one, ".".join(map(str, one["loc"]))) for one in error.errors()]
        raise InputError(", and ".join(found)) from None


def load_settings(folder: pathlib.Path) -> FinetuneSettings:
    """Return the settings of an existing run. Raise InputError if the folder holds none."""
    file = folder / SETTINGS
    try:
        values = read_sealed(file, "start a new run")
    except FileNotFoundError:
        raise InputError(f"{folder} holds no fine-tuning run (no {SETTINGS}); give the folder of a run") from None
    try:
        return settings_from(values)
    except InputError as error:
        raise InputError(f"{file} cannot be read ({error}); start a new run") from None


def _checked_files(settings: FinetuneSettings, noted: pathlib.Path) -> dict[str, str]:
    """Return the sums of all files that a run reads. Raises InputError if they are not those that it was begun with."""
    checkpoint = pathlib.Path(settings.checkpoint)
    own = (path for path in checkpoint.iterdir() if path.suffix in READ) if checkpoint.is_dir() else ()
    paths = [pathlib.Path(settings.train), pathlib.Path(settings.validation), *sorted(own)]
    try:
        found = {str(path): file_sum(path) for path in paths if path.is_file()}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}); check its rights") from None
    if not noted.exists():
        return found
    try:
        known = checked(dict[str, str], read_sealed(noted, "start a new run"))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{noted} cannot be read ({error}); start a new run") from None
    for path, expected in known.items():
        if found.get(path) != expected:
            what = "has another content now" if path in found else "is not there now"
            raise InputError(
                f"the run in {noted.parent} was begun with {path}, which {what}; put that file back, or start a new run"
            )
    return known


class Finetuning:
    """A fine-tuning run in its folder. Creating it reads and checks all input; it compiles and writes nothing.

    Attributes:
      examples: of the files ``train`` and ``validation``.
      left_out: of each file, a sentence on every row that is known to be broken in GLUE's own files.
      ids: sources and targets of each file as ids.
      cut: numbers of texts of each file that were longer than allowed.
      network: the T5 at its start, with its tokenizer.
      longest: tokens of the longest target or label.
      trainer: the compiled step.

    Raises:
      InputError: a file or the checkpoint is missing, damaged or of another kind, or cannot write a label of the task.
    """

    def __init__(self, settings: FinetuneSettings, folder: pathlib.Path) -> None:
        self.settings, self.folder = settings, folder
        atomic.check_apart(folder, [pathlib.Path(settings.checkpoint)])
        self.files = _checked_files(settings, folder / FILES)
        if settings.task == "custom":
            self.task = custom_task(settings.input_column or "", settings.target_column or "", settings.prefix)
        else:
            self.task = named_task(settings.task)
        paths = {"train": settings.train, "validation": settings.validation}
        read = {name: self.task.examples_and_blemishes(pathlib.Path(path)) for name, path in paths.items()}
        self.examples = {name: examples for name, (examples, _) in read.items()}
        self.left_out = {name: blemishes for name, (_, blemishes) in read.items()}
        self.network = open_network(pathlib.Path(settings.checkpoint))
        self.ids: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self.cut: dict[str, dict[str, int]] = {}
        for name, examples in self.examples.items():
            sides = {"sources": settings.source_length, "targets": settings.target_length}
            texts = {"sources": [e.source for e in examples], "targets": [e.target for e in examples]}
            found = {side: encode_texts(self.network.tokenizer, texts[side], most) for side, most in sides.items()}
            self.ids[name] = found["sources"][0], found["targets"][0]
            self.cut[name] = {side: cut for side, (_, cut) in found.items()}
        targets = [*self.ids["train"][1], *self.ids["validation"][1], *self._label_ids()]
        self.longest = max(map(len, targets))
        config = self.network.config
        if settings.dropout is not None:
            config = dataclasses.replace(config, dropout_rate=settings.dropout)
        self.trainer = Trainer(t5_loss(config), adafactor(), settings.batch, settings.dispatch, seed=settings.seed)
        self._answered: tuple[int, list[str]] = (-1, [])

    def _label_ids(self) -> list[np.ndarray]:
        """Return the ids of the labels. Raise InputError if the network cannot write one: all its answers would be wrong."""
        words = self.network.tokenizer.encode_ended(self.task.labels)
        for label, ids in zip(self.task.labels, words, strict=True):
            if len(ids) > self.settings.target_length:
                raise InputError(
                    f"target_length is {self.settings.target_length}, but the label {label!r} has {len(ids)} tokens, its "
                    "end included; allow more"
                )
            if (spelled := self.network.tokenizer.decode(ids)) != label:
                raise InputError(
                    f"{self.settings.checkpoint}: the tokenizer spells the label {label!r} as {spelled!r}; take a network "
                    "whose vocabulary has its characters"
                )
        return words

    def validation_loss(self, params: Any) -> float:
        """Return the mean over the tokens of all validation targets, in nats, at replicated parameters."""
        (sources, targets), pad = self.ids["validation"], self.network.config.pad_token_id
        groups: dict[int, list[dict[str, np.ndarray]]] = {}
        for rows in batches_by_length([len(x) for x in sources], self.settings.batch):
            width = width_for(max(len(sources[i]) for i in rows))
            batch = {
                "encoder_ids": padded([sources[i] for i in rows], width, pad),
                "targets": padded([targets[i] for i in rows], self.longest, pad),
            }
            batch["targets"][len(np.unique(rows)) :] = pad  # what fills the last batch
            groups.setdefault(width, []).append(batch)
        found = [self.trainer.scores(params, batches, replicated=True) for batches in groups.values()]
        return sum(one["loss"] * one["tokens"] for one in found) / sum(one["tokens"] for one in found)

    def answers(self, params: Any) -> list[str]:
        """Return the text that the network writes for each validation source, greedily."""
        network = self.network._replace(params=params)
        return answer(network, self.ids["validation"][0], Decoding(self.longest), batch=max(32, self.settings.batch))

    def scores(self, answers: list[str]) -> dict[str, float | None]:
        """Return the task's metrics of the answers; an undefined one is None."""
        found = self.task.scores([e.target for e in self.examples["validation"]], answers)
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def evaluate(self, state: TrainState) -> Record:
        """Return the scores and the validation loss of a replicated state."""
        self._answered = int(state.step[0]), self.answers(unreplicate(state.params))
        return {**self.scores(self._answered[1]), "validation_loss": self.validation_loss(state.params)}

    def training(
        self, show: Callable[[Record], None] = lambda record: None, note: Callable[[str], None] = lambda line: None
    ) -> Training:
        """Return the training of the network; ``show`` and ``note`` as in ``Training``."""
        settings = self.settings
        source, target = (round(np.mean([len(x) for x in ids])) for ids in self.ids["train"])
        read = hashlib.sha256()
        for ids in (ids for sides in self.ids.values() for side in sides for ids in side):
            read.update(ids.tobytes())
        return Training(
            name=settings.task,
            trainer=self.trainer,
            data=ExampleBatches(*self.ids["train"], settings.seed, settings.dispatch, self.network.config.pad_token_id),
            folder=self.folder,
            run={"settings": dataclasses.asdict(settings), "examples": read.hexdigest()[:16]},
            cadence=Cadence(
                log=settings.dispatch * math.ceil(LONGEST_DISPATCH / settings.dispatch),
                evaluate=settings.interval,
                checkpoint=settings.interval,
                keep_last=1,
            ),
            schedule=constant_schedule(),  # as T5 is fine-tuned
            step_tokens=settings.batch * (source + target),
            step_flops=step_flops(self.network.config, settings.batch, source, target),
            evaluate=self.evaluate,
            show=show,
            note=note,
        )

    def start(self) -> TrainState:
        """Return the state before the first step."""
        return init_state(self.network.params, self.trainer.optimizer, self.settings.learning_rate)

    def run(
        self,
        *,
        show: Callable[[Record], None] = lambda record: None,
        note: Callable[[str], None] = lambda line: None,
        begin: Callable[[str, int, int], None] = lambda name, step, until: None,
    ) -> dict[str, Any]:
        """Train to the end, evaluating on the way, and write everything; an interrupted run is continued.

        Args:
          show, note: as in ``training``.
          begin: called when the training begins, with its name, its first step and its last.

        Returns:
          The content of ``scores.json``.

        Raises:
          InputError: the folder is of another run or in use, or the disk is full.
          Interrupted: Ctrl-C or SIGTERM; the folder holds what a resumed run needs.
          TrainingDiverged: a loss is not finite.
        """
        with locked(self.folder):
            atomic.sweep(self.folder)
            return self._run(show, note, begin)

    def _run(
        self, show: Callable[[Record], None], note: Callable[[str], None], begin: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        if not (self.folder / SETTINGS).exists():  # first: with it alone the run can be resumed
            write_sealed(self.folder / SETTINGS, dataclasses.asdict(self.settings))
        if not (self.folder / FILES).exists():
            write_sealed(self.folder / FILES, self.files)
        training = self.training(show, note)
        begin(training.name, max(training.checkpoints.steps(), default=0), self.settings.steps)
        state = training.to(self.start(), self.settings.steps)
        step, answers = self._answered
        if step != self.settings.steps:  # evaluated by the process before this one
            answers = self.answers(state.params)
        return self._finish(state.params, answers)

    def _write_checkpoint(self, params: Any) -> None:
        """Write the network; raise InputError if it has been written before and is not what is written now."""
        written, fill = self.folder / CHECKPOINT, lambda folder: self._fill(folder, params)
        if not written.exists():
            with atomic.new_folder(written) as temporary:
                return fill(temporary)
        again = atomic.own_folder(written)
        try:
            fill(again)
            for file in sorted(path.name for path in again.iterdir()):
                if not ((written / file).is_file() and filecmp.cmp(again / file, written / file, shallow=False)):
                    raise InputError(
                        f"{written / file} is not what the run has written; remove {written}: it is written again"
                    )
        finally:
            shutil.rmtree(again, ignore_errors=True)

    def _fill(self, folder: pathlib.Path, params: Any) -> None:
        write_pretrained(folder, params, self.network.config)
        copy_tokenizer([pathlib.Path(self.settings.checkpoint)], folder)

    def _finish(self, params: Any, answers: list[str]) -> dict[str, Any]:
        """Write answers, checkpoint and scores."""
        examples = self.examples["validation"]
        rows = [{"source": e.source, "target": e.target, "answer": a} for e, a in zip(examples, answers, strict=True)]
        flat = lambda text: " ".join(text.split())
        lines = ["source\ttarget\tanswer", *("\t".join(map(flat, row.values())) for row in rows)]
        atomic.write_text(self.folder / f"{PREDICTIONS}.tsv", "\n".join(lines) + "\n")
        atomic.write_text(self.folder / f"{PREDICTIONS}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._write_checkpoint(params)
        no_label = sum(self.task.read(a) == NO_LABEL for a in answers) if self.task.kind != "text" else 0
        result = {
            "task": self.settings.task,
            "scores": self.scores(answers),
            "examples": {name: len(examples) for name, examples in self.examples.items()},
            "left_out": {name: len(rows) for name, rows in self.left_out.items()},
            "answers_that_are_no_label": no_label,
            "cut": self.cut,
            "steps": self.settings.steps,
            "provenance": provenance(),
        }
        atomic.write_text(self.folder / SCORES, json.dumps(result, indent=2) + "\n")
        return result
