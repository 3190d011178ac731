"""The checkpoints of one network: written while training continues, read newest first, kept by a policy."""

from __future__ import annotations

import pathlib
import re
import threading
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from fusion_core.errors import InputError
from fusion_core.train.loop import TrainingDiverged
from fusion_core.train.state_files import DamagedCheckpoint, load_state, save_state
from fusion_core.train.step import TrainState
from fusion_core.train.writer import Writer

NAME = re.compile(r"step-(\d+)\.safetensors")


def check_finite(state: TrainState) -> None:
    """Raise TrainingDiverged, with its name, if a parameter is not finite."""
    step = int(state.step)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise TrainingDiverged(f"{name} is not finite after step {step - 1}; lower the learning rate", step - 1)


class Checkpoints:
    """A folder of files ``step-N.safetensors``.

    Args:
      folder: of the files; it need not exist yet.
      run: identity of the run (JSON values), written into each file: states of another run are refused.
      keep_last: number of newest checkpoints that are kept, at least 1.
      keep_every: checkpoints at multiples of this step are kept too; 0: off.
      pinned: steps whose checkpoints are kept too.
      writer: by which they are written, after what it was given before; if None, one of their own.

    Raises:
      InputError: keep_last or keep_every is out of range.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        run: dict[str, Any],
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        pinned: Collection[int] = (),
        writer: Writer | None = None,
    ) -> None:
        if keep_last < 1 or keep_every < 0:
            raise InputError(
                f"keep_last is {keep_last} and keep_every {keep_every}; keep_last must be at least 1, keep_every at least 0 "
                "(0: off)"
            )
        self.folder, self.run = folder, run
        self.keep_last, self.keep_every, self.pinned = keep_last, keep_every, set(pinned)
        self._writer = writer or Writer()
        self._begun: threading.Thread | None = None

    def steps(self) -> list[int]:
        """Return the steps of the files, in order."""
        if not self.folder.exists():
            return []
        found = (NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step: int) -> pathlib.Path:
        """Return the file of a step."""
        return self.folder / f"step-{step}.safetensors"

    def save(self, state: TrainState, **facts: Any) -> None:
        """Begin to write a state, whose arrays must not change meanwhile, after the write before it has ended.

        Raises:
          InputError: the disk is full.
          TrainingDiverged: a parameter is not finite; nothing is written.
        """
        self.wait()
        self._begun = self._writer.begin(lambda: self._write(state, facts))

    def _write(self, state: TrainState, facts: dict[str, Any]) -> None:
        step = int(state.step)
        check_finite(state)
        save_state(self.path(step), state, run=self.run, **facts)
        known = self.steps()
        for old in known[: -self.keep_last]:
            if old not in self.pinned and not (self.keep_every and old % self.keep_every == 0):
                self.path(old).unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait for the current write, and raise its error if it failed."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            self._writer.wait(begun)

    def restore(
        self, like: Any, step: int | None = None, warn: Callable[[str], None] = lambda line: None
    ) -> tuple[Any, dict[str, Any]] | None:
        """Return the newest undamaged state and its facts; None if there is none. Damaged files are renamed, with a warning.

        Args:
          like: see ``load_state``.
          step: if not None, the state of this step instead.
          warn: called with a line for each damaged file.

        Raises:
          InputError: a state is of another run, or that of ``step`` is missing or damaged.
        """
        if step is not None:
            return self._load(step, like)
        for newest in reversed(self.steps()):
            try:
                return self._load(newest, like)
            except DamagedCheckpoint as error:
                # renamed, since it would count among those to keep
                aside = self.path(newest).with_suffix(".damaged")
                self.path(newest).rename(aside)
                warn(f"{error}; it is now {aside.name}, and the one before is taken")
        return None

    def _load(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        state, facts = load_state(self.path(step), like)
        theirs = facts.get("run", {})
        for name in sorted(self.run.keys() | theirs.keys()):
            if self.run.get(name) != theirs.get(name):
                raise InputError(
                    f"the checkpoint {self.path(step)} is of another run: its {name} is {theirs.get(name)!r}, this run's "
                    f"{self.run.get(name)!r}; use the run's own settings, or another folder"
                )
        return state, facts
