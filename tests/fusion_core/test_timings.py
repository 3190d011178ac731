"""Where the time to the first step goes."""

import sys
import time

import jax
import numpy as np

from fusion_core.timings import COMPILING, Timings


def test_parts_of_one_name_are_added_up_to_the_first_item_of_the_first_steps():
    timings = Timings()
    for _ in range(2):
        with timings.part("a"):
            time.sleep(0.01)
    assert list(timings.first("b", iter("xyz"))) == ["x", "y", "z"]
    with timings.part("c"):
        pass
    assert list(timings.seconds) == list(timings.processor) == ["a", "b"]
    assert timings.seconds["a"] >= 0.02
    assert timings.done
    assert list(Timings().first("b", ())) == []


def test_compilations_are_those_that_jax_reports_within():
    timings = Timings()
    with timings.compilations():
        jax.jit(lambda x: x * 5.25)(2.0)
        timings.done = True
        jax.jit(lambda x: x * 6.25)(2.0)
    found = dict(timings.within)
    timings.done = False
    jax.jit(lambda x: x * 7.25)(2.0)
    assert set(found) == set(COMPILING.values())
    assert timings.within == found
    assert timings.record()["of_these_compiling"] == found


def test_the_peak_of_memory_is_that_of_the_end_of_a_part():
    timings = Timings()
    with timings.part("a"):
        held = np.ones(1 << 23)  # 64 MB that are written to
    with timings.part("b"):
        pass
    del held
    assert timings.record()["peak_bytes"].keys() == {"a", "b"}
    assert timings.peak["a"] <= timings.peak["b"] <= timings.record()["peak"]
    if sys.platform == "linux":
        assert timings.peak["a"] > 1 << 26
