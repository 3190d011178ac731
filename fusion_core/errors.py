"""The exceptions that a user of this software meets."""

from __future__ import annotations

import signal
from typing import Any


class InputError(ValueError):
    """Bad input. The message names the thing, its value and the remedy; the command line prints it and exits with 2.

    Of a message longer than 2000 characters, which quotes a long value of a file, the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= 2000 else f"{message[:1000]} … {message[-997:]}")


class Interrupted(Exception):
    """Training was interrupted, by Ctrl-C or by SIGTERM, and stopped between two dispatches.

    Attributes:
      state: the training state after the last dispatch, to be saved.
      position: where the data stands then; None if batches depend on the step alone.
      signal: by which it was interrupted.
    """

    def __init__(self, state: Any, position: Any = None, signal: int = signal.SIGINT) -> None:
        super().__init__(f"interrupted at step {int(state.step)}")
        self.state, self.position, self.signal = state, position, signal


class Terminated(KeyboardInterrupt):
    """SIGTERM came where it is obeyed at once, as Ctrl-C is."""

    signal = signal.SIGTERM


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that a signal has stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + getattr(error, "signal", signal.SIGINT)


class TrainingDiverged(Exception):
    """The loss or the gradient became infinite or not a number.

    Attributes:
      step: the step at which it did.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step
