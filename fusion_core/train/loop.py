"""The training loop: dispatch steps, build the next batches meanwhile, fetch the metrics of the dispatch before."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fusion_core.errors import InputError, Interrupted, Terminated, TrainingDiverged
from fusion_core.seeds import seed32
from fusion_core.train.ahead import Ahead
from fusion_core.train.devices import Batch, devices_for, laid_out, local_rows, replicate, shard, unreplicate
from fusion_core.train.learning_rate import Schedule, constant_schedule
from fusion_core.train.step import Loss, Params, TrainState, evaluate_step, train_steps

# this process's rows of a batch, and where the data stands after it: anything that JSON has
Feed = Iterator[tuple[Batch, Any]]

_stop = threading.Event()
_stopped_by = [signal.SIGINT]


@contextmanager
def graceful_interrupt(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End training between two dispatches at the first Ctrl-C or SIGTERM (``Interrupted``), at once at the second.

    Args:
      note: called at the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        if _stop.is_set():
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        _stopped_by[0] = signal.Signals(number)
        _stop.set()
        note()

    _stop.clear()
    _stopped_by[0] = signal.SIGINT
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop.clear()


class Dispatch(NamedTuple):
    """The outcome of one dispatch.

    Attributes:
      step: steps taken after it.
      metrics: ``loss``, ``accuracy``, ``gradient_norm`` and ``tokens`` of each of its steps.
      finished: steps that the devices had done when it was yielded: these, or those of the next dispatch too.
      position: of the data after it.
      idle: upper bound on the seconds of waiting for input: the time in which batches were built, if the device had
        finished before they were.
      replicated: the state after it, on the devices, if the loop pauses here; else None. The next dispatch consumes it.
    """

    step: int
    metrics: dict[str, np.ndarray]
    finished: int
    position: Any
    idle: float
    replicated: TrainState | None


class Trainer:
    """The compiled step of one loss and one optimizer, and the loop around it.

    Args:
      loss: see ``fusion_core.train.step.Loss``.
      optimizer: from optax.
      batch_size: of the global batch; the devices of all processes share it.
      steps_per_dispatch: training steps in one dispatch.
      accumulate: parts in which a device takes its share of a batch, one after the other.
      seed: of dropout.
      compiler_options: of XLA, for the step (``Compute.compiler_options``).

    Raises:
      InputError: the devices cannot share the batch, or there is no step in a dispatch.
    """

    def __init__(
        self,
        loss: Loss,
        optimizer: optax.GradientTransformation,
        batch_size: int,
        steps_per_dispatch: int = 10,
        *,
        accumulate: int = 1,
        seed: int = 0,
        compiler_options: Mapping[str, str] | None = None,
    ) -> None:
        if steps_per_dispatch < 1:
            raise InputError(f"steps_per_dispatch is {steps_per_dispatch}; it must be at least 1")
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.steps_per_dispatch = steps_per_dispatch
        self.devices = devices_for(batch_size, accumulate)
        self.seed = seed
        self._steps = Ahead(train_steps(loss, optimizer, accumulate=accumulate), compiler_options)
        self._evaluate = Ahead(evaluate_step(loss))

    def with_seed(self, seed: int) -> Trainer:
        """Return the same trainer with another seed of dropout; nothing is compiled again."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def compile_ahead(self, state: TrainState, batches: Sequence[Batch]) -> list[Future[Any]]:
        """Begin to compile the step and the evaluation, each in a thread, and return when each will be done.

        Args:
          state: shapes and dtypes of the state (``jax.ShapeDtypeStruct`` leaves) that training will begin with.
          batches: the global batches of an evaluation; those of training have the same shapes.
        """
        n, chunk = len(self.devices), self.steps_per_dispatch
        on_each = lambda x, *axes: jax.ShapeDtypeStruct((n, *axes, *x.shape), x.dtype)
        mine = local_rows(batches[0])
        rows = lambda count: jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (n, count, len(x) // n, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
            ),
            mine,
        )
        state = jax.tree.map(on_each, state)
        scales, seed = on_each(np.zeros(chunk, np.float32)), on_each(np.zeros((), np.uint32))
        placed = lambda tree: laid_out(tree, self.devices)
        return [
            self._evaluate.compile(*placed((state.params, rows(len(batches))))),
            self._steps.compile(*placed((state, rows(chunk), scales, seed))),
        ]

    def dispatches(
        self,
        state: TrainState,
        feed: Feed,
        until: int,
        schedule: Schedule = constant_schedule(),
        pause: Callable[[int], bool] = lambda step: False,
    ) -> Iterator[Dispatch]:
        """Train from ``state.step`` to ``until``; yield each dispatch after the next one has begun.

        Args:
          state: where to start; it is not consumed.
          feed: this process's batches from there on.
          until: the step to end at, a whole number of dispatches away.
          schedule: of the learning rate: a factor on the state's rates, of the step.
          pause: whether the next dispatch waits at this step until the item, with its state, has been used; at the last
            step it always does.

        Raises:
          InputError: ``until`` is not a whole number of dispatches away.
          Interrupted: Ctrl-C or SIGTERM within ``graceful_interrupt``.
          TrainingDiverged: a loss or a gradient is not finite.
        """
        start, chunk = int(state.step), self.steps_per_dispatch
        if until < start or (until - start) % chunk:
            raise InputError(f"cannot train from step {start} to {until}: it is not a multiple of {chunk} steps away")
        on_devices, position, pending = replicate(state, self.devices), None, None
        seed = replicate(np.uint32(seed32(self.seed)), self.devices)
        at = lambda step: np.asarray(schedule(np.arange(step, step + chunk)), np.float32)

        def batches() -> tuple[Batch, Any, float]:
            begun = time.perf_counter()
            drawn = [next(feed) for _ in range(chunk)]
            sharded = shard([batch for batch, _ in drawn], self.devices)
            return sharded, drawn[-1][1], time.perf_counter() - begun

        for step in range(start, until, chunk):
            if step == start:
                coming, coming_position, idle = batches()
            if _stop.is_set():
                if pending is not None:
                    yield _fetched(*pending, step, None)
                raise Interrupted(unreplicate(on_devices), position, _stopped_by[0])
            on_devices, metrics = self._steps(on_devices, coming, replicate(at(step), self.devices), seed)
            position, waited = coming_position, idle
            if step + chunk < until:
                coming, coming_position, idle = batches()
                if not _ready(metrics):
                    idle = 0.0
            # one dispatch late, so that the device never waits for the host
            if pending is not None:
                done = _fetched(*pending, step, None)
                yield done._replace(finished=step + chunk) if _ready(metrics) else done
            pending = (step + chunk, metrics, position, waited)
            if step + chunk == until or pause(step + chunk):
                yield _fetched(*pending, step + chunk, on_devices)
                pending = None

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> float:
        """Return the mean loss over all tokens of the global batches, each of ``batch_size``."""
        return self.scores(params, batches)["loss"]

    def scores(self, params: Params, batches: Sequence[Batch], *, replicated: bool = False) -> dict[str, float]:
        """Return the mean ``loss`` and ``accuracy`` over all ``tokens`` of the global batches, each of ``batch_size``.

        Args:
          params: of the network.
          batches: global ones.
          replicated: whether ``params`` are replicated over the devices.
        """
        sharded = shard([local_rows(batch) for batch in batches], self.devices)
        found = self._evaluate(params if replicated else replicate(params, self.devices), sharded)
        return {name: float(value.addressable_shards[0].data[0]) for name, value in found.items()}


def _ready(metrics: Any) -> bool:
    return metrics["loss"].is_ready()


def _fetched(
    step: int, metrics: Any, position: Any, idle: float, finished: int, replicated: TrainState | None
) -> Dispatch:
    """Return the item of a dispatch. Raise TrainingDiverged if a loss or a gradient is not finite."""
    values = {name: np.asarray(value.addressable_shards[0].data)[0] for name, value in metrics.items()}
    loss, norm = values["loss"], values["gradient_norm"]
    bad = ~(np.isfinite(loss) & np.isfinite(norm))
    if bad.any():
        i = int(bad.argmax())
        at = step - len(loss) + i
        what = f"loss of step {at} is {loss[i]}" if not np.isfinite(loss[i]) else f"gradient of step {at} is {norm[i]}"
        raise TrainingDiverged(f"the {what}; lower the learning rate", at)
    return Dispatch(step, values, max(step, finished), position, idle, replicated)
