"""Sources of batches in memory; states of several processes."""

import dataclasses
import itertools
import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import fusion_core as fc
from fusion_core.text import DataSource, SpanCorruption, StreamedSpans, TextList, merge_states
from fusion_core.text.examples import ExampleBatches
from fusion_core.text.sources import first_batches
from fusion_core.train.training import merged_position
from tests.strategies.texts import documents, tokenizer

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXTS = documents(seed=1, n=40, length=3)


def first(source, size, n, state=None):
    return list(itertools.islice(source.batches(size, state), n))


def in_memory(kind, **changes):
    """A source whose batch is a function of the step: windows, or pairs of texts."""
    ids = tokenizer().encode(changes.pop("texts", TEXTS))
    if kind is ExampleBatches:
        return ExampleBatches(ids, ids, **({"seed": 5, "dispatch": 3, "pad": 0} | changes))
    source = SpanCorruption.from_documents(ids, tokenizer(), 32, changes.pop("seed", 5))
    return dataclasses.replace(source, **changes)


def test_all_are_data_sources():
    streamed = StreamedSpans(TextList(TEXTS), tokenizer(), 32, 0)
    for source in (streamed, in_memory(SpanCorruption), in_memory(ExampleBatches)):
        assert isinstance(source, DataSource)
        for batch, (other, _) in zip(first_batches(source, 4, 3), first(source, 4, 3), strict=True):
            for name in batch:
                np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("kind", [SpanCorruption, ExampleBatches])
def test_sources_in_memory_are_shared_and_go_on(kind):
    whole = in_memory(kind)
    batches = first(whole, 8, 6)
    for step, (batch, _) in enumerate(batches):
        for name, array in whole.batch(step, 8).items():
            np.testing.assert_array_equal(array, batch[name])
    state = json.loads(json.dumps(batches[2][1]))
    for i in range(2):
        half = in_memory(kind, process_index=i, process_count=2)
        for (batch, after), (part, own) in zip(batches[3:], first(half, 8, 3, state), strict=True):
            assert merge_states([own, own]) == after
            for name, array in batch.items():
                np.testing.assert_array_equal(array[4 * i : 4 * i + 4], part[name])
    with pytest.raises(fc.InputError, match="2 processes cannot share a batch of 7"):
        half.batches(7)
    with pytest.raises(fc.InputError, match="process 2 of 2; count processes from 0"):
        in_memory(kind, process_index=2, process_count=2)


@pytest.mark.parametrize(
    ("kind", "change", "size"),
    [
        (SpanCorruption, {}, 16),
        (SpanCorruption, {"seed": 6}, 8),
        (SpanCorruption, {"texts": TEXTS[1:]}, 8),
        (ExampleBatches, {}, 16),
        (ExampleBatches, {"seed": 6}, 8),
        (ExampleBatches, {"dispatch": 4}, 8),
        (ExampleBatches, {"texts": [*TEXTS[1:], TEXTS[0]]}, 8),
        (ExampleBatches, {"targets": tokenizer().encode(["no"] * len(TEXTS))}, 8),
    ],
)
def test_a_state_of_other_text_in_memory_is_refused(kind, change, size):
    *_, (_, state) = first(in_memory(kind), 8, 2)
    targets = change.pop("targets", None)
    other = in_memory(kind, **change)
    if targets is not None:
        other = dataclasses.replace(other, targets=targets)
    with pytest.raises(fc.InputError, match="the state is of another text or other settings"):
        other.batches(size, state)


# Processes


def share(i, count):
    """The streamed text of one of several processes."""
    return StreamedSpans(TextList(TEXTS), tokenizer(), 32, 0, process_index=i, process_count=count)


def test_states_of_different_steps_or_of_one_process_alone_are_refused():
    a = first(share(0, 2), 8, 2)
    b = first(share(1, 2), 8, 2)
    with pytest.raises(fc.InputError, match="states of step 1 and 2 cannot be merged; take those after one step"):
        merge_states([a[0][1], b[1][1]])
    with pytest.raises(fc.InputError, match=r"the state has no lanes \[4, 5, 6, 7\], it is another process's"):
        share(0, 1).batches(8, a[0][1])


GATHER = r"""
import json, sys
import jax
rank, port, states = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from fusion_core.train.training import merged_position
print(json.dumps(merged_position(states[rank])))
"""


def test_processes_gather_their_states():
    states = [first(share(i, 2), 16, 3)[-1][1] for i in range(2)]
    states[1]["lanes"]["7"][2] += 10_000  # of another length
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", GATHER, str(rank), port, json.dumps(states)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in running]
    assert found == [merge_states(states)] * 2
    assert merged_position(states[0]) == states[0]
