"""Span corruption of a streamed corpus: shuffled, packed or joined, resumable anywhere, shared by processes.

A batch takes equally many rows from every lane (``lanes``). A process that owns some of the lanes makes their rows:
it reads all of the text and tokenizes the documents of its lanes. The batch does not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from fusion_core.errors import InputError
from fusion_core.text.documents import BlockStart, Documents, blocks
from fusion_core.text.lanes import Blocks, Lane
from fusion_core.text.packing import corrupt_each, pack, windows_of
from fusion_core.text.sources import Batch, State, check_noise, check_process, check_source
from fusion_core.text.span_corruption import (
    MEAN_SPAN,
    NOISE_DENSITY,
    check_sentinels,
    corrupt,
    noise_masks,
    window_length,
)
from fusion_core.text.tokenizer import Tokenizer

# rows of a group, about: many, since its last row is half empty; few, since they are made at once
GROUP_ROWS = 64
CHARACTERS = 4  # characters of a token, about


def _state(fingerprint: str, step: int, lanes: int, start: BlockStart, at: dict[int, list[int]]) -> State:
    """Return the state after ``step`` batches: where the earliest block begins that a lane is in, and each lane's position."""
    first = dataclasses.asdict(start)
    return {"source": fingerprint, "step": step, "of": lanes, "from": first, "lanes": {str(i): at[i] for i in at}}


@dataclasses.dataclass(frozen=True)
class StreamedSpans:
    """Batches of span corruption over a streamed corpus.

    ``packed``: each document is corrupted on its own, in windows if it is longer than one, and rows hold many documents
    (``packing``); every document's tokens come exactly once an epoch. Otherwise a group's documents are joined, each
    ending with the end token, and cut into windows, as T5 does; the rest of a group, less than a window, is left out
    in that epoch.

    Attributes:
      documents: the corpus.
      tokenizer: text to ids, with sentinels.
      source: tokens of a corrupted source.
      seed: of the order and the masks.
      target: tokens of a target; if None, those that a window of ``source`` gives.
      packed: many documents in a row, or windows of joined ones.
      noise_density: share of tokens that are noise.
      mean_span: mean length of a noise span, in tokens.
      lanes: largest number of lanes; the largest common divisor with the batch is taken, a multiple of the processes.
      block_documents: largest number of documents that are shuffled together.
      block_characters: largest number of their characters.
      process_index, process_count: of this process and of all that share the batch.

    Raises:
      InputError: a number out of range, windows that need more sentinels than there are, or a tokenizer without them.
    """

    documents: Documents
    tokenizer: Tokenizer
    source: int
    seed: int
    target: int | None = None
    packed: bool = True
    noise_density: float = NOISE_DENSITY
    mean_span: float = MEAN_SPAN
    lanes: int = 8
    block_documents: int = 8192
    block_characters: int = 1 << 24
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        for name, least in (("source", 3), ("lanes", 1), ("block_documents", 1), ("block_characters", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        check_process(self.process_index, self.process_count)
        check_noise(self.noise_density, self.mean_span)
        special = self.tokenizer.special
        special.check_sentinels()
        check_sentinels(self.source, self.noise_density, self.mean_span, len(special.sentinels))
        target = self._window()[1]
        if self.target is not None and self.target < target:
            raise InputError(
                f"a target of {self.target} is too short: a source of {self.source} has one of {target} tokens"
            )

    def _window(self) -> tuple[int, int]:
        return window_length(self.source, self.noise_density, self.mean_span)

    def fingerprint(self) -> str:
        """Return a few characters that differ where the rows differ."""
        tokenizer = hashlib.sha256(self.tokenizer.backend.to_str().encode()).hexdigest()[:12]
        parts = (self.documents.fingerprint(), tokenizer, self.source, self.seed, self.target or self._window()[1])
        more = (int(self.packed), self.noise_density, self.mean_span, self.block_documents, self.block_characters)
        return " ".join(map(str, parts + more))

    def batches(self, size: int, state: State | None = None) -> Iterator[tuple[Batch, State]]:
        """Yield this process's rows of the batches of ``size`` rows, see ``DataSource``.

        A state has this process's lanes; ``merge_states`` joins those of all, and any number of processes can continue from
        the result.

        Raises:
          InputError: the processes cannot share the batch, ``state`` is of another source or lacks lanes of this process; in
            the course of reading, a file cannot be read.
        """
        lanes = math.gcd(size, self.lanes) if size > 0 else 0
        if not lanes or lanes % self.process_count:
            raise InputError(
                f"{self.process_count} processes cannot share a batch of {size} in {self.lanes} lanes; the number of lanes "
                f"and the batch must be multiples of {self.process_count}"
            )
        each = lanes // self.process_count
        mine = range(self.process_index * each, (self.process_index + 1) * each)
        fingerprint = self.fingerprint()
        if state is None:
            state = _state(fingerprint, 0, lanes, BlockStart(), {i: [0, 0, 0] for i in mine})
        self._check(state, fingerprint, lanes, mine)
        return self._batches(state, lanes, mine, size // lanes)

    @staticmethod
    def _check(state: State, fingerprint: str, lanes: int, mine: range) -> None:
        check_source(state, fingerprint)
        if state["of"] != lanes:
            raise InputError(
                f"the state has {state['of']} lanes, but these are {lanes}; keep batch and lanes as they were"
            )
        missing = [lane for lane in mine if str(lane) not in state["lanes"]]
        if missing:
            raise InputError(
                f"the state has no lanes {missing}, it is another process's; save the result of merge_states of all states"
            )

    def _batches(self, state: State, lanes: int, mine: range, rows: int) -> Iterator[tuple[Batch, State]]:
        at = {lane: state["lanes"][str(lane)] for lane in mine}
        reader = blocks(
            self.documents, self.seed, BlockStart(**state["from"]), self.block_documents, self.block_characters
        )
        shares = Blocks(reader, lanes, {lane: at[lane][0] for lane in mine})
        characters = GROUP_ROWS * self._window()[0] * CHARACTERS
        taking = {lane: Lane(shares, lane, at[lane], characters, self._rows) for lane in mine}
        for step in itertools.count(state["step"] + 1):
            parts = [part for lane in mine for part in taking[lane].take(rows)]
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            first = shares.start_of(min(lane.block for lane in taking.values()))
            at = {i: [lane.block, lane.group, lane.row] for i, lane in taking.items()}
            yield batch, _state(state["source"], step, lanes, first, at)

    def _rows(self, lane: int, start: BlockStart, group: int, texts: Sequence[str]) -> Batch:
        """Return all rows of a group of documents, shuffled."""
        rng = np.random.default_rng((self.seed, 4, start.epoch, start.index, lane, group))
        window, target = self._window()
        special = self.tokenizer.special
        noise = self.noise_density, self.mean_span
        ids = self.tokenizer.encode_ended(texts)
        if self.packed:
            windows = [part for x in ids for part in windows_of(x[:-1], window)]
            batch = pack(corrupt_each(rng, windows, special, *noise), self.source, self.target or target, special.pad)
        else:
            stream = np.concatenate(ids) if ids else np.zeros(0, np.int32)
            n = len(stream) // window
            batch = {name: np.zeros((0, 1), np.int32) for name in ("encoder_ids", "targets")}
            if n:
                masks = noise_masks(rng, n, window, *noise)
                sources, targets = corrupt(stream[: n * window].reshape(n, window), masks, special)
                padding = ((0, 0), (0, (self.target or target) - targets.shape[1]))
                batch = {
                    "encoder_ids": sources,
                    "targets": np.pad(targets, padding, constant_values=special.pad),
                }
        order = rng.permutation(len(batch["targets"]))
        return {name: array[order] for name, array in batch.items()}
