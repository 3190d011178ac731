"""A run in the terminal: a sparkline of the loss, throughput and time left, in place; plain lines elsewhere."""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from fusion_core.runs import Plan, run_plan
from fusion_core.train.devices import first_process
from fusion_core.train.loop import graceful_interrupt
from fusion_core.train.metrics import Record, TensorBoard

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return the values as bars, from lowest to highest; more than ``width`` of them are averaged in groups."""
    if not values:
        return ""
    n = min(width, len(values))
    cuts = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in means)


def clock(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class View:
    """What a run shows of one node after the other.

    Args:
      console: where lines are printed.
      live: the area that is redrawn in place; None if the console is no terminal.
      every: seconds between plain lines.
    """

    def __init__(self, console: Console, live: Live | None = None, every: float = 10.0) -> None:
        self._console, self._live, self._every = console, live, every
        self._name, self._until = "", 0
        self._losses: list[float] = []
        self._validation: float | None = None
        self._printed = 0.0

    def begin(self, name: str, step: int, until: int) -> None:
        """Begin a node, which trains from ``step`` to ``until``: the next records are of it."""
        self._name, self._until, self._losses, self._validation = name, until, [], None
        self._printed = 0.0
        self.note(f"{name}: steps {step} to {until}")

    def note(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(escape(line), highlight=False, soft_wrap=True)

    def show(self, record: Record) -> None:
        """Show a record of the metrics or of an evaluation, as ``Training`` makes them."""
        if "validation_loss" in record:
            self._validation = record["validation_loss"]
            if self._live is None:
                self.note(f"{self._name}: step {record['step']}: validation loss {self._validation:.4f}")
            return
        self._losses.append(record["loss"])
        line = self._line(record)
        if self._live is not None:
            bars = Text(sparkline(self._losses), style="cyan")
            self._live.update(Group(Text.assemble(f"{self._name:<12} ", bars), Text(line)))
        elif time.monotonic() - self._printed > self._every or record["step"] == self._until:
            self._printed = time.monotonic()
            self.note(f"{self._name}: {line}")

    def _line(self, record: Record) -> str:
        parts = [f"step {record['step']}/{self._until}", f"loss {record['loss']:.4f}"]
        if self._validation is not None and self._live is not None:
            parts.append(f"validation {self._validation:.4f}")
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if record["mfu"] is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        parts.append(f"waiting for input {record['input_wait']:.1%}")
        # the pace of the last record alone, which is the newest
        parts.append(f"left {clock((self._until - record['step']) / max(record['steps_per_second'], 1e-9))}")
        return ", ".join(parts)


@contextmanager
def view_of(console: Console) -> Iterator[View]:
    """Yield a live view if the console is a terminal, a view of plain lines otherwise."""
    if not console.is_terminal:
        yield View(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield View(console, live)


def run_shown(
    plan: Plan, folder: pathlib.Path, *, writers: Sequence[TensorBoard] = (), **options: Any
) -> dict[str, Any] | None:
    """Run a plan and show it in the terminal; the first Ctrl-C stops it between two dispatches.

    Args:
      plan, folder: as ``fusion_core.runs.run_plan`` takes them.
      writers: other places that get every record; they are closed at the end.
      options: further arguments of ``run_plan``.
    """
    with ExitStack() as stack:
        view = stack.enter_context(view_of(Console(stderr=True, quiet=not first_process())))
        for writer in writers:
            stack.callback(writer.close)
        stack.enter_context(
            graceful_interrupt(lambda: view.note("Stopping at the next step; Ctrl-C again stops at once."))
        )

        def show(record: Record) -> None:
            view.show(record)
            for writer in writers:
                writer.write(record)

        return run_plan(plan, folder, show=show, note=view.note, begin=view.begin, **options)
