"""Plans run by the one engine, with plain lines of what happens."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

from fusion_core.runs import Plan, run_plan
from fusion_core.train.loop import graceful_interrupt

EVERY = 10.0  # seconds between lines


def say(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def run_noted(plan: Plan, folder: pathlib.Path, note: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run a plan by the engine, with a plain line at every evaluation and now and then between them.

    Args:
      plan, folder: as ``fusion_core.runs.run_plan`` takes them; a run that is in the folder is continued.
      note: called with the lines; if None, they are printed to stderr.
    """
    tell = note or say
    last = [0.0]

    def show(values: dict[str, Any]) -> None:
        if "validation_loss" in values:
            tell(f"{values['node']}: step {values['step']}: validation loss {values['validation_loss']:.4f}")
        elif time.monotonic() - last[0] > EVERY:
            last[0] = time.monotonic()
            tell(f"step {values['step']}: loss {values['loss']:.4f}, {values['steps_per_second']:.3g} steps/s")

    begin = lambda name, step, until: tell(f"{name}: steps {step} to {until}")
    with graceful_interrupt(lambda: tell("Stopping at the next step; Ctrl-C again stops at once.")):
        results = run_plan(plan, folder, show=show, note=tell, begin=begin)
    assert results is not None  # all nodes were run
    return results
