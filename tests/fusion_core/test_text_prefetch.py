"""A thread that makes the next items: their order, its errors, its end."""

import gc
import itertools
import threading
import time

import pytest

import fusion_core as fc
from fusion_core.text import prefetch


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    for thread in threads():
        thread.join(5)
    assert not threads()


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_items_come_in_order_and_end(depth):
    items = prefetch(iter(range(20)), depth)
    assert list(items) == list(range(20))
    assert list(items) == []
    assert items.waited > 0


def test_no_more_than_depth_are_made_ahead():
    made = []

    def source():
        for i in itertools.count():
            made.append(i)
            yield i

    with prefetch(source(), 3) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 5
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # one is taken, three are ready
        assert made == [0, 1, 2, 3]


def test_an_error_is_raised_where_items_are_taken_and_after_those_before_it():
    def source():
        yield 1
        raise fc.InputError("the file is damaged")

    items = prefetch(source())
    assert next(items) == 1
    with pytest.raises(fc.InputError, match="the file is damaged"):
        next(items)
    with pytest.raises(StopIteration):
        next(items)


def test_closing_ends_the_thread_and_the_generator():
    closed = threading.Event()

    def source():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = prefetch(source())
    next(items)
    items.close()
    assert closed.is_set()
    assert not threads()
    items.close()
    with pytest.raises(StopIteration):
        next(items)


def test_an_exception_in_the_consumer_ends_the_thread():
    def consume():
        with prefetch(itertools.count()) as items:
            for _ in items:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not threads()


def test_dropping_it_ends_the_thread():
    items = prefetch(itertools.count())
    next(items)
    (thread,) = threads()
    del items
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_waiting_is_counted_and_only_waiting(monkeypatch):
    """By a clock that goes on by one second whenever it is read, in the thread of the consumer."""
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    with prefetch(iter("abc")) as items:
        assert items.waited == 0
        for taken, _ in enumerate(items, 1):
            assert items.waited == taken
            time.perf_counter()  # other work is not waiting


def test_a_depth_below_one_is_refused():
    with pytest.raises(fc.InputError, match="the depth of prefetching is 0; it must be at least 1"):
        prefetch(iter([]), 0)
