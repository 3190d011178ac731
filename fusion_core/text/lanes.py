"""Documents dealt to lanes, by which several processes share a corpus.

The corpus is read in blocks. A block's documents are dealt to the lanes, each to the one with the fewest characters so far, so
that the lanes advance at nearly the same rate. A lane cuts its share into groups, and a group's documents become rows, which
depend on the group alone. The position of a lane is its block, the group in its share, and the number of the group's rows that
are taken. To continue from there, the block is read from its start, and one group is tokenized.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Callable, Iterator, Sequence

from fusion_core.errors import InputError
from fusion_core.text.documents import BlockStart
from fusion_core.text.sources import Batch

PATIENCE = 1000  # successive groups without a row after which the text is too short


def deal(texts: Sequence[str], lanes: int, first: int) -> list[list[str]]:
    """Return each lane's share: each text goes to the lane with the fewest characters so far, beginning with ``first``."""
    shares: list[list[str]] = [[] for _ in range(lanes)]
    heap = [(0, (lane - first) % lanes, lane) for lane in range(lanes)]
    heapq.heapify(heap)
    for text in texts:
        characters, turn, lane = heap[0]
        shares[lane].append(text)
        heapq.heapreplace(heap, (characters + len(text), turn, lane))
    return shares


def groups(texts: Sequence[str], characters: int, first: int) -> list[list[str]]:
    """Cut texts into runs; each ends with the text that brings it to ``characters``, the first run to ``first`` characters."""
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
    """The blocks of a corpus, each read once and dealt; shares that all lanes of this process have taken are dropped.

    Args:
      reader: yields the blocks with their starts.
      lanes: number of all lanes.
      begin: the lanes of this process, and the first block of each.
    """

    def __init__(self, reader: Iterator[tuple[BlockStart, list[str]]], lanes: int, begin: dict[int, int]) -> None:
        self.reader, self.lanes, self.begin = reader, lanes, begin
        self.starts: dict[int, BlockStart] = {}
        self.waiting: dict[int, collections.deque] = {lane: collections.deque() for lane in begin}

    def next_of(self, lane: int) -> tuple[BlockStart, list[str]]:
        """Return the lane's share of its next block, and the block's start."""
        while not self.waiting[lane]:
            start, texts = next(self.reader)
            self.starts[start.number] = start
            shares = deal(texts, self.lanes, start.number % self.lanes)
            for own, queue in self.waiting.items():
                if start.number >= self.begin[own]:
                    queue.append((start, shares[own]))
        return self.waiting[lane].popleft()

    def start_of(self, number: int) -> BlockStart:
        """Return the start of a block, and forget those before it."""
        self.starts = {n: start for n, start in self.starts.items() if n >= number}
        return self.starts[number]


class Lane:
    """The rows of one lane, group after group.

    Args:
      blocks: the blocks of the corpus.
      lane: its number.
      at: its position: block, group, and rows taken of the group.
      characters: of a group.
      make: ``(lane, start of the block, group, documents) -> rows``.
    """

    def __init__(
        self,
        blocks: Blocks,
        lane: int,
        at: Sequence[int],
        characters: int,
        make: Callable[[int, BlockStart, int, list[str]], Batch],
    ) -> None:
        self.blocks, self.lane, self.characters, self.make = blocks, lane, characters, make
        self.block, self.group, self.row = at
        self._enter()
        self._make()

    def _enter(self) -> None:
        self.start, texts = self.blocks.next_of(self.lane)
        self.block = self.start.number
        # groups of several lanes should not all be made in one step
        self.groups = groups(texts, self.characters, self.characters * (self.lane + 1) // self.blocks.lanes)

    def _make(self) -> None:
        texts = self.groups[self.group] if self.group < len(self.groups) else []
        self.rows = self.make(self.lane, self.start, self.group, texts)

    def take(self, n: int) -> Iterator[Batch]:
        """Yield the next n rows, in parts.

        Raises:
          InputError: ``PATIENCE`` groups in a row give none.
        """
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
