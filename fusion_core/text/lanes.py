"""Documents dealt to lanes: what a process has to read, to tokenise and to remember of a corpus that several share.

The corpus is read in blocks. A block's documents are dealt to the lanes, each to the one with the fewest characters so far, so
that the lanes go on at nearly the same rate. A lane cuts its share into groups, and a group's documents become rows, which
depend on the group alone. Where a lane is: its block, the group in its share, and how many of the group's rows are taken.
Going on from there reads from the block's start, and tokenises one group.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Callable, Iterator, Sequence

from fusion_core.errors import InputError
from fusion_core.text.documents import Place
from fusion_core.text.sources import Batch

PATIENCE = 1000  # groups one after the other that give no row, until the text is called too short


def deal(texts: Sequence[str], lanes: int, first: int) -> list[list[str]]:
    """The texts' shares: each text goes to the lane with the fewest characters so far, beginning with ``first``."""
    shares: list[list[str]] = [[] for _ in range(lanes)]
    heap = [(0, (lane - first) % lanes, lane) for lane in range(lanes)]
    heapq.heapify(heap)
    for text in texts:
        characters, turn, lane = heap[0]
        shares[lane].append(text)
        heapq.heapreplace(heap, (characters + len(text), turn, lane))
    return shares


def groups(texts: Sequence[str], characters: int, first: int) -> list[list[str]]:
    """Runs of texts; each ends with the text that brings it to so many characters, the first one to ``first``."""
    found: list[list[str]] = []
    room = 0
    for text in texts:
        if room <= 0:
            room = characters if found else first
            found.append([])
        found[-1].append(text)
        room -= len(text)
    return found


class Blocks:
    """Blocks, each read once and dealt; what no lane of ours needs any more is dropped.

    Args:
      reader: the blocks, with their places.
      lanes: how many there are.
      begin: the lanes of this process, and the block that each begins with.
    """

    def __init__(self, reader: Iterator[tuple[Place, list[str]]], lanes: int, begin: dict[int, int]) -> None:
        self.reader, self.lanes, self.begin = reader, lanes, begin
        self.places: dict[int, Place] = {}
        self.waiting: dict[int, collections.deque] = {lane: collections.deque() for lane in begin}

    def next_of(self, lane: int) -> tuple[Place, list[str]]:
        """The lane's share of the next block that it has not had."""
        while not self.waiting[lane]:
            place, texts = next(self.reader)
            self.places[place.number] = place
            shares = deal(texts, self.lanes, place.number % self.lanes)
            for own, queue in self.waiting.items():
                if place.number >= self.begin[own]:
                    queue.append((place, shares[own]))
        return self.waiting[lane].popleft()

    def place_of(self, number: int) -> Place:
        """Where a block begins; those before it are forgotten."""
        self.places = {n: place for n, place in self.places.items() if n >= number}
        return self.places[number]


class Lane:
    """The rows of one lane, group after group.

    Args:
      blocks: where its documents come from.
      lane: its number.
      at: block, group and rows taken of it.
      characters: of a group.
      make: ``(lane, place, group, documents) -> rows``.
    """

    def __init__(
        self,
        blocks: Blocks,
        lane: int,
        at: tuple[int, int, int],
        characters: int,
        make: Callable[[int, Place, int, list[str]], Batch],
    ) -> None:
        self.blocks, self.lane, self.characters, self.make = blocks, lane, characters, make
        self.block, self.group, self.row = at
        self._enter()
        self._make()

    def _enter(self) -> None:
        self.place, texts = self.blocks.next_of(self.lane)
        self.block = self.place.number
        # groups of several lanes should not all be made in one step
        self.groups = groups(texts, self.characters, self.characters * (self.lane + 1) // self.blocks.lanes)

    def _make(self) -> None:
        texts = self.groups[self.group] if self.group < len(self.groups) else []
        self.rows = self.make(self.lane, self.place, self.group, texts)

    def take(self, n: int) -> Iterator[Batch]:
        """The next n rows, in parts. Raises InputError where group after group gives none."""
        idle = 0
        while n:
            left = len(self.rows["targets"]) - self.row
            if not left:
                idle += 1
                if idle > PATIENCE:
                    raise InputError(
                        f"{PATIENCE} groups of documents gave no row: joined, they are shorter than a window; give more "
                        "text, a shorter source, fewer lanes, or pack documents"
                    )
                self.group, self.row = self.group + 1, 0
                if self.group >= len(self.groups):
                    self.group = 0
                    self._enter()
                self._make()
                continue
            idle = 0
            taken = min(n, left)
            yield {name: array[self.row : self.row + taken] for name, array in self.rows.items()}
            self.row, n = self.row + taken, n - taken
