"""Compilation ahead of the first call, in a thread: what a run will need is compiled while the devices train."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import jax

from fusion_core.memory import give_back

T = TypeVar("T")
_turn = threading.Lock()  # one piece of work at a time, beside the training


def in_turn(work: Callable[[], T]) -> Future[T | None]:
    """Begin ``work`` in a thread, once what was begun before is done; return its result when it is there, None if it fails."""
    made: Future[T | None] = Future()

    def run() -> None:
        found = None
        try:
            with _turn:
                if threading.main_thread().is_alive():  # else the process is ending
                    found = work()
                    give_back()
        except Exception:
            pass  # who needs the result does the work again, and says what is wrong
        finally:
            made.set_result(found)

    # no daemon: a process that ends while XLA compiles in one of its threads may crash
    threading.Thread(target=run, name="compiling ahead").start()
    return made


class Ahead:
    """A function, of ``jax.jit`` or ``data_parallel``, that can be compiled before it is called, for arguments of known shapes.

    Calls with arguments of those shapes take that program, and wait for it if it is not finished; other calls, and those after
    a compilation that failed, compile as ever. The program is the same either way.

    Args:
      function: to be called.
      options: of XLA's compiler, by name.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, str] | None = None) -> None:
        self._function, self._options = function, dict(options or {}) or None
        self._made: dict[Any, Future[Any]] = {}

    def compile(self, *shapes: Any) -> Future[Any]:
        """Begin to compile for arguments of these shapes (``jax.ShapeDtypeStruct`` leaves, laid out as the arguments will be).

        Returns:
          The program, when it is there; None if it could not be compiled.
        """
        key = _key(shapes)
        if key not in self._made:
            self._made[key] = in_turn(lambda: self._compiled(*shapes))
        return self._made[key]

    def compile_now(self, *shapes: Any) -> None:
        """Compile for arguments of these shapes, in a thread that has its turn."""
        made: Future[Any] = Future()
        made.set_result(self._compiled(*shapes))
        self._made[_key(shapes)] = made

    def __call__(self, *arguments: Any) -> Any:
        made = self._made.get(_key(arguments)) if self._made else None
        program = made and made.result()
        if program is None and self._options:
            self.compile_now(*arguments)
            return self(*arguments)
        return (program or self._function)(*arguments)

    def _compiled(self, *arguments: Any) -> Any:
        return self.lower(*arguments).compile(compiler_options=self._options)

    def lower(self, *arguments: Any) -> Any:
        """Return the lowered function, as ``jax.jit``'s."""
        return self._function.lower(*arguments)  # type: ignore[attr-defined]


def _key(arguments: Any) -> Any:
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
