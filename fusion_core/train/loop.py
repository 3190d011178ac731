"""The loop: dispatch, build the next batches while the device works, fetch what the dispatch before has measured."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import optax

from fusion_core.errors import InputError
from fusion_core.train.step import (
    Batch,
    Params,
    SummedLoss,
    TrainState,
    devices_for,
    evaluate_step,
    replicate,
    shard,
    train_steps,
    unreplicate,
)


class Interrupted(Exception):
    """Ctrl-C came; the loop stopped between two dispatches. ``state`` is whole and can be saved."""

    def __init__(self, state: TrainState) -> None:
        super().__init__(f"interrupted at step {int(state.step)}")
        self.state = state


class TrainingDiverged(Exception):
    """The loss became infinite or not a number."""


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


class Trainer:
    """A loss, an optimizer and the compiled step of one network shape.

    Args:
      loss: ``(params, batch) -> (sum of losses, count)``.
      optimizer: from optax.
      batch_size: of the global batch; the local devices share it.
      steps_per_dispatch: training steps in one dispatch.

    Raises:
      InputError: the devices cannot share the batch.
    """

    def __init__(
        self,
        loss: SummedLoss,
        optimizer: optax.GradientTransformation,
        batch_size: int,
        steps_per_dispatch: int = 10,
    ) -> None:
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.steps_per_dispatch = steps_per_dispatch
        self.devices = devices_for(batch_size)
        self._steps = train_steps(loss, optimizer, self.devices)
        self._evaluate = evaluate_step(loss, self.devices)

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
          batch: ``(step, size) -> batch`` of NumPy arrays; deterministic, so that a run can be resumed anywhere.
          until: the step to end at, a multiple of ``steps_per_dispatch`` away.
          on_dispatch: called with the number of steps done, for a progress bar.

        Returns:
          The state at ``until``, and ``loss`` and ``gradient_norm`` of every step.

        Raises:
          InputError: ``until`` is not a whole number of dispatches away.
          Interrupted: Ctrl-C within ``graceful_interrupt``.
          TrainingDiverged: a loss is not finite.
        """
        start, chunk = int(state.step), self.steps_per_dispatch
        if until < start or (until - start) % chunk:
            raise InputError(f"cannot train from step {start} to {until}: it is not a multiple of {chunk} steps away")
        on_devices = replicate(state, self.devices)
        measured: list[dict[str, np.ndarray]] = []
        pending = None

        def fetch() -> None:
            if pending is None:
                return
            values = {name: np.asarray(value[0]) for name, value in pending.items()}
            bad = ~np.isfinite(values["loss"])
            if bad.any():
                step = start + sum(len(m["loss"]) for m in measured) + int(bad.argmax())
                raise TrainingDiverged(
                    f"the loss of step {step} is {values['loss'][bad.argmax()]}; lower the learning rate"
                )
            measured.append(values)
            on_dispatch(chunk)

        def batches(step: int) -> Batch:
            return shard([batch(step + i, self.batch_size) for i in range(chunk)], self.devices)

        coming = batches(start) if until > start else None
        for step in range(start, until, chunk):
            if _stop.is_set():
                fetch()
                raise Interrupted(unreplicate(on_devices))
            on_devices, metrics = self._steps(on_devices, coming)
            if step + chunk < until:
                coming = batches(step + chunk)
            # one dispatch late, so that the device never waits for the host
            fetch()
            pending = metrics
        fetch()
        final = unreplicate(on_devices)
        if not measured:
            return final, {"loss": np.zeros(0), "gradient_norm": np.zeros(0)}
        return final, {name: np.concatenate([m[name] for m in measured]) for name in measured[0]}

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> float:
        """Mean loss over all tokens of the batches, each of ``batch_size``."""
        sharded = shard(list(batches), self.devices)
        return float(jax.device_get(self._evaluate(replicate(params, self.devices), sharded))[0])
