"""Compilation ahead of the first call, in a thread: what a run will need is compiled while the devices train."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import jax

from fusion_core.memory import give_back
from fusion_core.train.devices import laid_out

_turn = threading.Lock()  # one compilation at a time, beside the training


class Ahead:
    """A ``data_parallel`` function that can be compiled before it is called, for arguments of known shapes.

    Calls with arguments of those shapes take that program, and wait for it if it is not finished; other calls, and those after
    a compilation that failed, compile as ever. The program is the same either way.

    Args:
      function: to be called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._made: dict[Any, concurrent.futures.Future[Any]] = {}

    def compile(self, devices: list[jax.Device], *shapes: Any) -> concurrent.futures.Future[Any]:
        """Begin to compile for arguments of these shapes (``jax.ShapeDtypeStruct`` leaves, the device axis included).

        Args:
          devices: of this process.
          *shapes: of the arguments.

        Returns:
          The program, when it is there; None if it could not be compiled.
        """
        key = _key(shapes)
        if key in self._made:
            return self._made[key]
        made: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._made[key] = made

        def work() -> None:
            program = None
            try:
                with _turn:
                    if threading.main_thread().is_alive():  # else the process is ending
                        program = self.lower(*laid_out(shapes, devices)).compile()
                        give_back()
            except Exception:
                pass  # the call will raise it, if there is one
            finally:
                made.set_result(program)

        # no daemon: a process that ends while XLA compiles in one of its threads may crash
        threading.Thread(target=work, name="compiling ahead").start()
        return made

    def __call__(self, *arguments: Any) -> Any:
        made = self._made.get(_key(arguments)) if self._made else None
        return ((made and made.result()) or self._function)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Return the lowered function, as ``jax.jit``'s."""
        return self._function.lower(*arguments)  # type: ignore[attr-defined]


def _key(arguments: Any) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
