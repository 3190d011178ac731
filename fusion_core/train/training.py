"""Training one network in its folder: evaluation, metrics, checkpoints, and resuming after an earlier process stopped."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from fusion_core.errors import InputError
from fusion_core.memory import give_back
from fusion_core.text.prefetch import prefetch
from fusion_core.text.sources import DataSource, merge_states
from fusion_core.timings import Timings
from fusion_core.train.devices import broadcast, first_process, gather, host_copy, processes, replicate
from fusion_core.train.distributed import collectives
from fusion_core.train.learning_rate import Schedule
from fusion_core.train.loop import Dispatch, Interrupted, Trainer, TrainingDiverged
from fusion_core.train.metrics import NOT_OURS, Metrics, Record
from fusion_core.train.step import Ramp, TrainState, rates_at
from fusion_core.train.store import Checkpoints, check_finite
from fusion_core.train.writer import Writer

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
WINDOW = 5  # records over which the pace is averaged

Steps = Annotated[int, Field(strict=True, ge=1)]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Cadence:
    """Intervals, in steps, each a whole number of dispatches.

    Attributes:
      log: between records of the metrics.
      evaluate: between evaluations; there is one at the start and one at the end too.
      checkpoint: between checkpoints; there is one at the end too.
      keep_last: newest checkpoints that are kept.
      keep_every: checkpoints at multiples of this step are kept too; 0: none.

    Raises:
      ValidationError: a number is out of range.
    """

    log: Steps = 10
    evaluate: Steps = 100
    checkpoint: Steps = 100
    keep_last: Steps = 2
    keep_every: Annotated[int, Field(strict=True, ge=0)] = 0

    def check(self, dispatch: int) -> None:
        """Raise InputError if an interval is no whole number of dispatches of this many steps."""
        for name in ("log", "evaluate", "checkpoint"):
            if getattr(self, name) % dispatch:
                raise InputError(
                    f"{name} is every {getattr(self, name)} steps, but a dispatch has {dispatch}; take a multiple of it"
                )


Unrecorded = dict[str, list[Any]]  # name -> [dtype, values], as JSON has them to the last bit


@dataclasses.dataclass
class Training:
    """The training of one network.

    Attributes:
      name: of the network, in every record.
      trainer: the compiled step.
      data: of this process.
      folder: of its metrics and checkpoints.
      run: identity of the training (JSON values): checkpoints with another one are refused.
      cadence: intervals of records, evaluations and checkpoints.
      schedule: of the learning rate, a factor on the state's rates.
      step_tokens: source and target tokens of a step.
      step_flops: model FLOPs of a step.
      evaluate: returns the numbers of an evaluation, given the replicated state; if None, there is no evaluation.
      stop: whether the training ends early, given the record of an evaluation.
      peak_flops: FLOP/s of all devices together; if None, the records have no MFU.
      show: called with every record, as it is written.
      note: called with sentences for the user.
      pinned: steps with a checkpoint that is kept.
      position: of the data where the training begins; if None, its beginning.
      timings: of the parts up to the first step.
      begun: called after the first dispatch.
      writer: by which checkpoints are written; the training ends before the last one is written. If None, it waits for it.
    """

    name: str
    trainer: Trainer
    data: DataSource
    folder: pathlib.Path
    run: dict[str, Any]
    cadence: Cadence
    schedule: Schedule
    step_tokens: int
    step_flops: float
    evaluate: Callable[[TrainState], Record] | None = None
    stop: Callable[[Record], bool] = lambda record: False
    peak_flops: float | None = None
    show: Callable[[Record], None] = lambda record: None
    note: Callable[[str], None] = lambda line: None
    pinned: Collection[int] = ()
    position: Any = None
    timings: Timings = dataclasses.field(default_factory=Timings)
    begun: Callable[[], None] = lambda: None
    writer: Writer | None = None

    def __post_init__(self) -> None:
        self.cadence.check(self.trainer.steps_per_dispatch)
        self.metrics = Metrics(self.folder / METRICS)
        self._sum: str | None = None  # of the records up to the checkpoint that was restored
        self._unrecorded: Unrecorded = {}  # of the steps since the last of them
        self.checkpoints = Checkpoints(
            self.folder / CHECKPOINTS,
            self.run,
            keep_last=self.cadence.keep_last,
            keep_every=self.cadence.keep_every,
            pinned=self.pinned,
            writer=self.writer,
        )

    def restore(self, start: TrainState) -> tuple[TrainState, Any]:
        """Return the newest checkpoint and the data's position; if there is none, ``start`` and where the training begins.

        Raises:
          InputError: the checkpoint has another identity, or not every process can read it.
        """
        found = self.checkpoints.restore(start, warn=self.note) if first_process() else None
        step = broadcast(-1 if found is None else int(found[0].step))
        if not first_process() and step >= 0:
            found = self.checkpoints.restore(start, step)
        if found is None:
            return start, self.position
        self._sum, self._unrecorded = found[1].get("metrics"), found[1].get("unrecorded") or {}
        return found[0], found[1]["position"]

    @collectives()
    def to(self, start: TrainState, until: int) -> TrainState:
        """Train to step ``until``, from the newest checkpoint, or from ``start`` if there is none.

        Raises:
          InputError: a checkpoint has another identity, or the disk is full.
          Interrupted: Ctrl-C; the state is saved.
          TrainingDiverged: a loss is not finite; the message names the last good checkpoint.
        """
        state, position = self.restore(start)
        step = int(state.step)
        if first_process():
            self.metrics.keep(lambda record: record["step"] <= step)
            if self._sum is not None and self._sum != self.metrics.sum():
                raise InputError(f"{self.metrics.path} {NOT_OURS}, or remove it with {self.checkpoints.folder}")
        evaluated = [record for record in self.metrics.records if "learning_rate" not in record]
        stopped = bool(broadcast(bool(evaluated) and self.stop(evaluated[-1])))
        if self.evaluate is not None and not broadcast(bool(evaluated)):
            with self.timings.part("first evaluation"):
                stopped = self._evaluate(replicate(state, self.trainer.devices), step)
                give_back()  # what compiling took
        if step >= until or stopped:
            return state
        source = self.data.batches(self.trainer.batch_size, position)
        meter = _Meter(self, step, state, self._unrecorded)
        saves = lambda step: step in (*self.pinned, until) or not step % self.cadence.checkpoint
        evaluates = lambda step: self.evaluate is not None and (step == until or not step % self.cadence.evaluate)
        pause = lambda step: saves(step) or evaluates(step)
        try:
            with prefetch(source, self.trainer.steps_per_dispatch) as feed:
                dispatches = self.trainer.dispatches(state, feed, until, self.schedule, pause)
                for i, done in enumerate(self.timings.first("first steps", dispatches)):
                    meter.add(done)
                    if i == 0:
                        give_back()
                        self.begun()
                    if done.replicated is None:
                        continue
                    begun = time.perf_counter()
                    if evaluates(done.step):
                        stopped = self._evaluate(done.replicated, done.step)
                    if saves(done.step) or stopped:
                        state = host_copy(done.replicated)
                        self._save(state, merged_position(done.position))
                    meter.pause(time.perf_counter() - begun)
                    if stopped:
                        break
            if self.writer is None:
                self.checkpoints.wait()
            else:
                check_finite(state)
        except Interrupted as interrupted:
            # several processes stop at different steps: they resume from their last common checkpoint
            if interrupted.position is not None and processes()[1] == 1:
                self._save(jax.tree.map(np.asarray, interrupted.state), interrupted.position, meter.unrecorded())
            self.checkpoints.wait()
            raise
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{self.name}: {error}{self._last_good()}", error.step) from None
        return jax.tree.map(jnp.asarray, state)

    def _last_good(self) -> str:
        with contextlib.suppress(TrainingDiverged):  # the same news
            self.checkpoints.wait()
        steps = self.checkpoints.steps()
        return f". The last good checkpoint is of step {steps[-1]}, in {self.checkpoints.folder}" if steps else ""

    def _save(self, state: TrainState, position: Any, unrecorded: Unrecorded | None = None) -> None:
        if first_process():
            facts = {"unrecorded": unrecorded} if unrecorded else {}
            self.checkpoints.save(state, position=position, metrics=self.metrics.sum(), **facts)

    def _evaluate(self, replicated: TrainState, step: int) -> bool:
        """Record an evaluation; return whether the training ends here."""
        assert self.evaluate is not None
        record = {"node": self.name, "step": step, "flops": step * self.step_flops, **self.evaluate(replicated)}
        self.write(record)
        return self.stop(record)

    def write(self, record: Record) -> None:
        """Append a record to the metrics and show it."""
        if first_process():
            self.metrics.write(record)
            self.show(record)


def merged_position(position: Any) -> Any:
    """Return the position of the run's data from those of all processes, on each of them."""
    if position is None or processes()[1] == 1:
        return position
    return merge_states([json.loads(text) for text in gather(json.dumps(position).encode())])


def largest_rate(state: TrainState) -> Callable[[int], float]:
    """Return the largest learning rate of any entry, as a function of the step, without the schedule's factor."""
    largest = lambda rates: max(float(jnp.max(rate)) for rate in jax.tree.leaves(rates))
    if not isinstance(state.ramp, Ramp):
        rate = largest(state.rates)
        return lambda step: rate
    # of the entries with one rate, those with the largest factor have the largest one, at every step
    tops = jax.tree.map(lambda r, f: f if jnp.ndim(r) else jnp.max(f), state.rates, state.ramp.first)
    kept = state._replace(params=(), opt_state=(), ramp=state.ramp._replace(first=tops))
    return lambda step: largest(rates_at(kept._replace(step=jnp.asarray(step, jnp.int32))))


class _Meter:
    """Means and rates between two records."""

    def __init__(self, training: Training, step: int, state: TrainState, unrecorded: Unrecorded) -> None:
        self.training, self.rate = training, largest_rate(state)
        self.paused, self.idle = 0.0, 0.0
        # (steps finished, seconds of training, of them waiting for input) at the last records; one interval alone depends
        # on when the host looked
        self.marks = collections.deque([(step, time.perf_counter(), 0.0)], maxlen=WINDOW)
        self.compiling = True
        self.parts: list[dict[str, np.ndarray]] = []
        if unrecorded:
            self.parts.append({name: np.array(values, dtype) for name, (dtype, values) in unrecorded.items()})

    def unrecorded(self) -> Unrecorded:
        """Return the numbers of the steps since the last record."""
        names = self.parts[0] if self.parts else ()
        joined = {name: np.concatenate([part[name] for part in self.parts]) for name in names}
        return {name: [values.dtype.name, values.tolist()] for name, values in joined.items()}

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self.paused += seconds

    def add(self, done: Dispatch) -> None:
        """Take in another dispatch; write a record if one is due."""
        self.parts.append(done.metrics)
        self.idle += done.idle
        training = self.training
        if done.step % training.cadence.log and done.replicated is None:
            return
        mean = {name: float(np.mean(np.concatenate([p[name] for p in self.parts]))) for name in self.parts[0]}
        self.parts = []
        mark = (done.finished, time.perf_counter() - self.paused, self.idle)
        steps, seconds, idle = (now - before for now, before in zip(mark, self.marks[0], strict=True))
        if self.compiling:  # the first record includes the compilation, the next ones do not
            self.marks.clear()
            self.compiling = False
        self.marks.append(mark)
        steps_per_second = steps / max(seconds, 1e-9)
        # the model's own FLOPs: what is recomputed does not count
        pace = steps_per_second * training.step_flops
        training.write(
            {
                "node": training.name,
                "step": done.step,
                "flops": done.step * training.step_flops,
                "loss": mean["loss"],
                "accuracy": mean["accuracy"],
                "gradient_norm": mean["gradient_norm"],
                "learning_rate": self.rate(done.step - 1) * float(training.schedule(done.step - 1)),
                "steps_per_second": steps_per_second,
                "tokens_per_second": steps_per_second * training.step_tokens,
                "flops_per_second": pace,
                "mfu": None if training.peak_flops is None else pace / training.peak_flops,
                "input_wait": min(1.0, idle / max(seconds, 1e-9)),
            }
        )
