"""Many cases of a target in this process: drawn, kept if they end at a new place, made smaller if they break a promise."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.fuzz.frame import Target, cases_in
from tests.fuzz.guard import Outcome, tried
from tests.fuzz.mutations import LONGEST as LONGEST

MOST_KEPT = 400  # inputs that later ones are made from
SMALLER_SECONDS = 10.0  # that making a case smaller may take


@dataclasses.dataclass
class Tally:
    """What has become of the cases of a target.

    Attributes:
      cases: number of them.
      kinds: how many ended how.
      found: for each mistake, the first outcome and its input.
      slowest, memory: seconds and bytes of the costliest case.
    """

    cases: int = 0
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    found: dict[tuple[str, ...], tuple[Outcome, bytes]] = dataclasses.field(default_factory=dict)
    slowest: float = 0.0
    memory: int = 0

    def add(self, outcome: Outcome, data: bytes) -> bool:
        """Count a case; return whether it is the first of a mistake."""
        self.cases += 1
        self.kinds[outcome.kind] += 1
        self.slowest, self.memory = max(self.slowest, outcome.seconds), max(self.memory, outcome.memory)
        new = outcome.bad and outcome.same not in self.found
        if new:
            self.found[outcome.same] = outcome, data
        return new


class Cases:
    """The cases of a target in a folder.

    Args:
      target: to be run.
      folder: for the files of a case; it must be there.
    """

    def __init__(self, target: Target, folder: pathlib.Path) -> None:
        self.target, self.folder = target, folder
        self.valid = list(target.valid())
        self.kept: list[bytes] = []
        self.seen: set[tuple[str, ...]] = set()

    def outcome(self, data: bytes) -> Outcome:
        """Run one case."""
        caches = (os.environ.get("JAX_COMPILATION_CACHE_DIR"), os.environ.get("MPLCONFIGDIR"))
        folders = self.folder / "case", self.folder / "temporary", *(pathlib.Path(path) for path in caches if path)
        with cases_in(self.folder):
            return tried(self.target.run, data, folders, self.target.allowed, self.target.seconds)

    def warm(self) -> list[Outcome]:
        """Run the valid inputs, which must be read; once before, for imports may do what cases may not."""
        for data in self.valid:
            self.outcome(data)
        return [self.outcome(data) for data in self.valid]

    def drawn(self, rng: random.Random) -> bytes:
        """Return an input: a valid one, or one that ended at a new place, changed once or twice."""
        data = rng.choice(self.kept if self.kept and rng.random() < 0.4 else self.valid)
        for _ in range(rng.choice((1, 1, 1, 2))):
            data = self.target.mutate(rng, data)
        return data

    def keep(self, outcome: Outcome, data: bytes) -> None:
        """Keep an input that ended where none has before."""
        place = (*outcome.same, re.sub(r"[^a-z ]|'[^']*'|/\S*", "", outcome.what)[:80])
        if not outcome.bad and place not in self.seen and len(self.kept) < MOST_KEPT and outcome.seconds < 0.5:
            self.kept.append(data)
        self.seen.add(place)

    def smaller(self, outcome: Outcome, data: bytes) -> bytes:
        """Return a smaller input with the same mistake, if one is found in some seconds."""
        if outcome.kind in ("hang", "memory"):
            return data
        ends = time.monotonic() + SMALLER_SECONDS
        return shrunk(data, lambda part: self.outcome(part).same == outcome.same, lambda: time.monotonic() > ends)


def shrunk(data: bytes, wrong: Callable[[bytes], bool], stop: Callable[[], bool] = lambda: False) -> bytes:
    """Return ``data`` with pieces left out, large ones first, as long as it is ``wrong``."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            if stop():
                return data
            part = data[:at] + data[at + size :]
            if wrong(part):
                data = part
            else:
                at += size
        size //= 2
    return data


def run_cases(cases: Cases, seed: int, numbers: Sequence[int], before: Callable[[int, bytes], None], after: Callable[
    [Tally], None
], found: Callable[[Outcome, bytes], None]) -> Tally:  # fmt: skip
    """Run the cases with these numbers.

    Args:
      cases: of a target.
      seed: case ``i`` is drawn from (seed, target, i) and the inputs that were kept until then.
      numbers: of the cases.
      before: called with the number and the input of a case.
      after: called with the tally after each.
      found: called with the first outcome of every mistake, and its input.
    """
    tally = Tally()
    for number in numbers:
        rng = random.Random(f"{seed}/{cases.target.name}/{number}")
        data = cases.drawn(rng)
        before(number, data)
        outcome = cases.outcome(data)
        if tally.add(outcome, data):
            found(outcome, data)
        cases.keep(outcome, data)
        after(tally)
    return tally
