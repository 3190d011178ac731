"""Training one network in its folder: evaluation, metrics, checkpoints, and going on where an earlier process stopped."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.prefetch import prefetch
from fusion_core.text.sources import Batch, DataSource
from fusion_core.text.states import gathered
from fusion_core.train.devices import host_copy
from fusion_core.train.learning_rate import Schedule
from fusion_core.train.loop import Dispatch, Interrupted, Trainer, TrainingDiverged
from fusion_core.train.metrics import Metrics, Record
from fusion_core.train.step import TrainState
from fusion_core.train.store import Checkpoints

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
WINDOW = 5  # records that the pace is taken over


@dataclasses.dataclass(frozen=True)
class Cadence:
    """How often, in steps. All are whole numbers of dispatches.

    Attributes:
      log, evaluate, checkpoint: a record of the metrics, an evaluation, a checkpoint; each also at the end.
      keep_last, keep_every: see ``Checkpoints``.

    Raises:
      InputError: a number is out of range.
    """

    log: int = 10
    evaluate: int = 100
    checkpoint: int = 100
    keep_last: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "keep_every" else 1
            if not isinstance(value, int) or value < least:
                raise InputError(f"{field.name} is {value!r}; it must be a whole number, at least {least}")

    def check(self, dispatch: int) -> None:
        """Raises InputError where one is no whole number of dispatches of this many steps."""
        for name in ("log", "evaluate", "checkpoint"):
            if getattr(self, name) % dispatch:
                raise InputError(
                    f"{name} is every {getattr(self, name)} steps, but a dispatch has {dispatch}; take a multiple of it"
                )


@dataclasses.dataclass
class Training:
    """One network's training.

    Attributes:
      name: goes into every record.
      trainer, data: what trains it, on what.
      validation: global batches that it is evaluated on; empty: never.
      folder: of its metrics and checkpoints.
      run: what it is (JSON values): checkpoints of anything else are refused.
      cadence: how often what is done.
      schedule: that its optimizer follows, for the metrics alone.
      step_tokens, step_flops: source and target tokens, and model FLOPs, of a step.
      peak_flops: of all devices together, a second; None: not known, and there is no MFU.
      show: is told of every record, as it is written.
      note: is told of what a user should read.
      pinned: steps at which a checkpoint is written too, and kept.
    """

    name: str
    trainer: Trainer
    data: DataSource
    validation: Sequence[Batch]
    folder: pathlib.Path
    run: dict[str, Any]
    cadence: Cadence
    schedule: Schedule
    step_tokens: int
    step_flops: float
    peak_flops: float | None = None
    show: Callable[[Record], None] = lambda record: None
    note: Callable[[str], None] = lambda line: None
    pinned: Collection[int] = ()

    def __post_init__(self) -> None:
        self.cadence.check(self.trainer.steps_per_dispatch)
        self.metrics = Metrics(self.folder / METRICS)
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS,
            self.run,
            keep_last=self.cadence.keep_last,
            keep_every=self.cadence.keep_every,
            pinned=self.pinned,
        )
        self._first = jax.process_index() == 0  # the one that writes

    def restore(self, start: TrainState) -> tuple[TrainState, Any]:
        """The newest checkpoint and the data's position; ``start`` and None where there is none.

        Raises:
          InputError: the checkpoint is of another run, or not every process sees it.
        """
        if jax.process_count() == 1:
            found = self.checkpoints.restore(start, warn=self.note)
        else:
            from jax.experimental import multihost_utils

            found = self.checkpoints.restore(start, warn=self.note) if self._first else None
            step = -1 if found is None else int(found[0].step)
            step = int(multihost_utils.broadcast_one_to_all(np.asarray(step, np.int32)))
            if not self._first and step >= 0:
                found = self.checkpoints.restore(start, step)  # says so where this process does not see the folder
        return (start, None) if found is None else (found[0], found[1]["position"])

    def to(self, start: TrainState, until: int) -> TrainState:
        """Trains on to step ``until``, from the newest checkpoint, or from ``start`` where there is none.

        Raises:
          InputError: a checkpoint is of another run, or the disk is full.
          Interrupted: Ctrl-C; the state is saved.
          TrainingDiverged: a loss is not finite; the message names the last good checkpoint.
        """
        state, position = self.restore(start)
        if self._first:
            self.metrics.keep(lambda record: record["step"] <= int(state.step))
        if int(state.step) >= until:
            return state
        source = self.data.batches(self.trainer.batch_size, position)
        meter = _Meter(self, int(state.step), max(float(rate) for rate in jax.tree.leaves(state.rates)))
        due = lambda step: step in (*self.pinned, until) or not step % self.cadence.checkpoint
        evaluated = lambda step: bool(self.validation) and (step == until or not step % self.cadence.evaluate)
        pause = lambda step: due(step) or evaluated(step)
        try:
            with prefetch(source, self.trainer.steps_per_dispatch) as feed:
                for done in self.trainer.dispatches(state, feed, until, pause):
                    meter.add(done)
                    if done.replicated is None:
                        continue
                    begun = time.perf_counter()
                    if evaluated(done.step):
                        self._evaluate(done.replicated, done.step)
                    if due(done.step):
                        state = host_copy(done.replicated)
                        self._save(state, gathered(done.position))
                    meter.pause(time.perf_counter() - begun)
            self.checkpoints.wait()
        except Interrupted as stopped:
            # of several processes each has stopped where it was: the last checkpoint is what they have in common
            if stopped.position is not None and jax.process_count() == 1:
                self._save(jax.tree.map(np.asarray, stopped.state), stopped.position)
            self.checkpoints.wait()
            raise
        except TrainingDiverged as error:
            kept = self._kept()
            raise TrainingDiverged(f"{self.name}: {error}{kept}", error.step) from None
        return jax.tree.map(jnp.asarray, state)

    def _kept(self) -> str:
        """What is left after a divergence."""
        with contextlib.suppress(TrainingDiverged):  # the same news
            self.checkpoints.wait()
        steps = self.checkpoints.steps()
        return f". The last good checkpoint is of step {steps[-1]}, in {self.checkpoints.folder}" if steps else ""

    def _save(self, state: TrainState, position: Any) -> None:
        if self._first:
            self.checkpoints.save(state, position=position)

    def _evaluate(self, replicated: TrainState, step: int) -> None:
        found = self.trainer.scores(replicated.params, self.validation, replicated=True)
        self._write(
            {
                "node": self.name,
                "step": step,
                "flops": step * self.step_flops,
                "validation_loss": found["loss"],
                "validation_accuracy": found["accuracy"],
            }
        )

    def _write(self, record: Record) -> None:
        if self._first:
            self.metrics.write(record)
            self.show(record)


class _Meter:
    """Means and rates between two records."""

    def __init__(self, training: Training, step: int, rate: float) -> None:
        self.training, self.rate = training, rate
        self.paused, self.idle = 0.0, 0.0
        # (steps finished, seconds of training, of them waiting for input) at the last records: what one record measures
        # depends on when the host looked
        self.marks = collections.deque([(step, time.perf_counter(), 0.0)], maxlen=WINDOW)
        self.compiling = True
        self.parts: list[dict[str, np.ndarray]] = []

    def pause(self, seconds: float) -> None:
        """Time that was not for training."""
        self.paused += seconds

    def add(self, done: Dispatch) -> None:
        """Another dispatch; a record where one is due."""
        self.parts.append(done.metrics)
        self.idle += done.idle
        training = self.training
        if done.step % training.cadence.log and done.replicated is None:
            return
        mean = {name: float(np.mean(np.concatenate([p[name] for p in self.parts]))) for name in self.parts[0]}
        self.parts = []
        mark = (done.finished, time.perf_counter() - self.paused, self.idle)
        steps, seconds, idle = (now - before for now, before in zip(mark, self.marks[0], strict=True))
        if self.compiling:  # the first record has the compilation in it, the next ones have not
            self.marks.clear()
            self.compiling = False
        self.marks.append(mark)
        steps_per_second = steps / max(seconds, 1e-9)
        # the model's own FLOPs: what is recomputed does not count
        pace = steps_per_second * training.step_flops
        training._write(
            {
                "node": training.name,
                "step": done.step,
                "flops": done.step * training.step_flops,
                "loss": mean["loss"],
                "accuracy": mean["accuracy"],
                "gradient_norm": mean["gradient_norm"],
                "learning_rate": self.rate * float(training.schedule(done.step - 1)),  # the largest of any array
                "steps_per_second": steps_per_second,
                "tokens_per_second": steps_per_second * training.step_tokens,
                "flops_per_second": pace,
                "mfu": None if training.peak_flops is None else pace / training.peak_flops,
                "input_wait": min(1.0, idle / max(seconds, 1e-9)),
            }
        )
