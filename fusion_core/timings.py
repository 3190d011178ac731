"""Where the time to the first step goes, and the memory: seconds by part, on the clock and of the processors."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from fusion_core.memory import peak_memory

# JAX's events of a compilation -> the parts they are
COMPILING = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling, or taking from the cache",
}


T = TypeVar("T")


@dataclasses.dataclass
class Timings:
    """Seconds of the parts of a run up to its first step; parts of one name are added up.

    Attributes:
      seconds: on the clock, by part, in the order in which the parts began.
      processor: of the processors, all threads and finished child processes counted; not of what JAX reports.
      peak: largest resident memory of this process up to the end of the part, in bytes; 0 where it is not known.
      within: parts that lie within others, so that they do not add to the whole: what JAX reports of its compilations.
      done: whether the first step has been taken; nothing is added after that.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    processor: dict[str, float] = dataclasses.field(default_factory=dict)
    peak: dict[str, int] = dataclasses.field(default_factory=dict)
    within: dict[str, float] = dataclasses.field(default_factory=dict)
    done: bool = False

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what is done within to a part."""
        clock, processor = time.perf_counter(), _processor()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - clock, _processor() - processor)

    def add(self, name: str, seconds: float, processor: float) -> None:
        """Add seconds to a part, unless the first step has been taken."""
        if not self.done:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.processor[name] = self.processor.get(name, 0.0) + processor
            self.peak[name] = self._peak()

    def first(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; add the time of the first, a dispatch of the first steps, to a part: the last that counts."""
        coming = iter(items)
        with self.part(name):
            item = next(coming, None)
        self.done = True
        if item is not None:
            yield item
            yield from coming

    @contextlib.contextmanager
    def compilations(self) -> Iterator[None]:
        """Add up meanwhile what JAX reports of its compilations, up to the first step."""
        import jax

        def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if event in COMPILING and not self.done:
                name = COMPILING[event]
                self.within[name] = self.within.get(name, 0.0) + duration_secs

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    def _peak(self) -> int:
        return max(peak_memory(), *self.peak.values(), 0)  # the system's number is rounded, and may go down a little

    def record(self) -> dict[str, Any]:
        """Return seconds and memory as JSON values; ``peak`` is up to now."""
        return {
            "seconds": self.seconds,
            "processor_seconds": self.processor,
            "of_these_compiling": self.within,
            "peak_bytes": self.peak,
            "peak": self._peak(),
        }


def _processor() -> float:
    found = os.times()
    return time.process_time() + found.children_user + found.children_system
