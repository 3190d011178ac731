"""The loop: dispatch, build the next batches while the device works, fetch what the dispatch before has measured."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import optax

from fusion_core.errors import InputError, Interrupted, TrainingDiverged
from fusion_core.train.devices import Batch, devices_for, local_rows, replicate, shard, unreplicate
from fusion_core.train.step import Loss, Params, TrainState, evaluate_step, train_steps

# this process's rows of a batch, and where the data stands after it: anything that JSON has
Feed = Iterator[tuple[Batch, Any]]

_stop = threading.Event()


@contextmanager
def graceful_interrupt(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within it, the first Ctrl-C ends training between two dispatches (``Interrupted``); the second ends at once.

    ``note`` is called at the first, to tell the user.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        if _stop.is_set():
            raise KeyboardInterrupt
        _stop.set()
        note()

    _stop.clear()
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _stop.clear()


def feed_by_step(batch: Callable[[int, int], Batch], start: int, size: int) -> Feed:
    """The feed of ``(step, size) -> global batch`` from step ``start`` on; its position is the next step."""
    step = start
    while True:
        yield local_rows(batch(step, size)), step + 1
        step += 1


class Dispatch(NamedTuple):
    """What came of one dispatch.

    Attributes:
      step: steps taken after it.
      metrics: of each of its steps: ``loss``, ``accuracy``, ``gradient_norm``, ``tokens``.
      finished: steps that the devices had done when it was yielded: these, or those of the next dispatch too.
      position: where the data stands after it.
      idle: seconds of waiting for input, an upper bound: the time in which batches were built, where the device had
        finished before they were.
      replicated: the state after it, on the devices, where the loop pauses; None elsewhere. The next dispatch consumes it.
    """

    step: int
    metrics: dict[str, np.ndarray]
    finished: int
    position: Any
    idle: float
    replicated: TrainState | None


class Trainer:
    """A loss, an optimizer and the compiled step of one network shape.

    Args:
      loss: see ``fusion_core.train.step.Loss``.
      optimizer: from optax.
      batch_size: of the global batch; the devices of all processes share it.
      steps_per_dispatch: training steps in one dispatch.
      accumulate: parts in which a device takes its share of a batch, one after the other.
      seed: of dropout.

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
    ) -> None:
        if steps_per_dispatch < 1:
            raise InputError(f"steps_per_dispatch is {steps_per_dispatch}; it must be at least 1")
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.steps_per_dispatch = steps_per_dispatch
        self.devices = devices_for(batch_size, accumulate)
        self.seed = seed
        self._steps = train_steps(loss, optimizer, accumulate=accumulate)
        self._evaluate = evaluate_step(loss)

    def with_seed(self, seed: int) -> Trainer:
        """The same with another seed of dropout; nothing is compiled again."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def dispatches(
        self, state: TrainState, feed: Feed, until: int, pause: Callable[[int], bool] = lambda step: False
    ) -> Iterator[Dispatch]:
        """Trains from ``state.step`` to ``until``, one dispatch an item; each is yielded after the next one has begun.

        Args:
          state: where to start; it is not consumed.
          feed: this process's batches from there on.
          until: the step to end at, a whole number of dispatches away.
          pause: at which steps the next dispatch waits until the item, with its state, has been looked at; the last always.

        Raises:
          InputError: ``until`` is not a whole number of dispatches away.
          Interrupted: Ctrl-C within ``graceful_interrupt``.
          TrainingDiverged: a loss or a gradient is not finite.
        """
        start, chunk = int(state.step), self.steps_per_dispatch
        if until < start or (until - start) % chunk:
            raise InputError(f"cannot train from step {start} to {until}: it is not a multiple of {chunk} steps away")
        on_devices, position, pending = replicate(state, self.devices), None, None
        seed = replicate(np.uint32(self.seed), self.devices)

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
                raise Interrupted(unreplicate(on_devices), position)
            on_devices, metrics = self._steps(on_devices, coming, seed)
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

    def advance(
        self,
        state: TrainState,
        batch: Callable[[int, int], Batch],
        until: int,
        on_dispatch: Callable[[int], None] = lambda steps: None,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Trains from ``state.step`` to ``until``.

        Args:
          state: where to start; it is not consumed.
          batch: ``(step, size) -> global batch`` of NumPy arrays; deterministic, so that a run can be resumed anywhere.
          until: the step to end at, a multiple of ``steps_per_dispatch`` away.
          on_dispatch: called with the number of steps done, for a progress bar.

        Returns:
          The state at ``until``, and the metrics of every step (``Dispatch.metrics``).

        Raises:
          InputError, Interrupted, TrainingDiverged: as ``dispatches``.
        """
        measured: list[dict[str, np.ndarray]] = []
        for done in self.dispatches(state, feed_by_step(batch, int(state.step), self.batch_size), until):
            measured.append(done.metrics)
            on_dispatch(self.steps_per_dispatch)
            if done.replicated is not None:
                state = unreplicate(done.replicated)
        names = ("loss", "accuracy", "gradient_norm", "tokens")
        return state, {name: np.concatenate([np.zeros(0), *(m[name] for m in measured)]) for name in names}

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> float:
        """Mean loss over all tokens of the global batches, each of ``batch_size``."""
        return self.scores(params, batches)["loss"]

    def scores(self, params: Params, batches: Sequence[Batch], *, replicated: bool = False) -> dict[str, float]:
        """Mean ``loss`` and ``accuracy`` over all tokens of the global batches, each of ``batch_size``; ``tokens``.

        Args:
          params: of the network; with ``replicated``, as they lie on the devices.
        """
        sharded = shard([local_rows(batch) for batch in batches], self.devices)
        found = self._evaluate(params if replicated else replicate(params, self.devices), sharded)
        return {name: float(value.addressable_shards[0].data[0]) for name, value in found.items()}


def _ready(metrics: Any) -> bool:
    return metrics["loss"].is_ready()


def _fetched(
    step: int, metrics: Any, position: Any, idle: float, finished: int, replicated: TrainState | None
) -> Dispatch:
    """The item of a dispatch. Raises TrainingDiverged where it has a loss or a gradient that is not finite."""
    values = {name: np.asarray(value.addressable_shards[0].data[0]) for name, value in metrics.items()}
    loss, norm = values["loss"], values["gradient_norm"]
    bad = ~(np.isfinite(loss) & np.isfinite(norm))
    if bad.any():
        i = int(bad.argmax())
        at = step - len(loss) + i
        what = f"loss of step {at} is {loss[i]}" if not np.isfinite(loss[i]) else f"gradient of step {at} is {norm[i]}"
        raise TrainingDiverged(f"the {what}; lower the learning rate", at)
    return Dispatch(step, values, max(step, finished), position, idle, replicated)
