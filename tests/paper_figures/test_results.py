import dataclasses
import json
import time

import numpy as np
import pytest

from paper_figures.results import Results, ResultsError


def results(**arrays):
    return Results.of("tiny", "smoke", 0, {"sizes": (2, 3)}, arrays or {"x": [1.0]}, time.perf_counter())


def test_results_come_back_as_they_were_saved(tmp_path):
    rng = np.random.default_rng(0)
    odd = [np.nan, np.inf, -np.inf]
    saved = results(scalar=1 / 3, matrix=rng.standard_normal((2, 3)), empty=np.zeros((0, 2)), odd=odd)
    saved.save(tmp_path / "r.json")
    loaded = Results.load(tmp_path / "r.json")
    for name, array in saved.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
    assert dataclasses.replace(loaded, arrays={}) == dataclasses.replace(saved, arrays={})


def test_the_file_is_standard_json_that_says_where_the_numbers_came_from(tmp_path):
    results(x=[np.nan]).save(tmp_path / "r.json")
    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    record = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    assert record["arrays"]["x"] == {"shape": [1], "values": ["nan"]}
    assert {"config", "seed", "versions", "device", "commit", "created", "seconds"} <= set(record)
    assert record["config"] == {"sizes": [2, 3]}
    assert "jax" in record["versions"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    results(x=[1.0]).save(path)
    old = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        results(x=[2.0]).save(path)
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


def change(**fields):
    return lambda record: record | fields


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(format=0), "has results format 0, but this version reads 1"),
        (lambda record: [record], "holds no JSON object"),
        (lambda record: {k: v for k, v in record.items() if k != "seed"}, "has no 'seed'"),
        (change(seed="zero"), "has 'zero' for 'seed'"),
        (change(arrays={"x": {"shape": [2], "values": [1.0]}}), "has a garbled array"),
        (change(arrays={"x": {"values": [1.0]}}), "has a garbled array"),
        (change(arrays={"x": 3}), "has a garbled array"),
    ],
)
def test_a_file_that_cannot_be_drawn_from_is_refused(tmp_path, edit, message):
    path = tmp_path / "r.json"
    results().save(path)
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(ResultsError, match=message):
        Results.load(path)


@pytest.mark.parametrize(("content", "message"), [(b"{", "is not JSON"), (b"\xff", "is not JSON")])
def test_a_file_that_is_not_json_is_refused(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ResultsError, match=message):
        Results.load(tmp_path / "r.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"r.json does not exist: draw the figure first"):
        Results.load(tmp_path / "r.json")
