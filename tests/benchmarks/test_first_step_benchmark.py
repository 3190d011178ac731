"""The benchmark of the first step in its smallest size: both sides make the same tokens, and their times are put in ratio."""

import json

import numpy as np
import pytest

from benchmarks import first_step
from tests.strategies.texts import documents

SIZES = {"vocabulary": 300, "length": 32, "batch": 4}


def test_the_benchmark_puts_both_sides_in_ratio(tmp_path, capsys, monkeypatch):
    pytest.importorskip("datasets")
    steps = {
        "seconds": {"first steps": 2.0},
        "processor_seconds": {"first steps": 1.0},
        "of_these_compiling": {"tracing": 0.5},
    }
    monkeypatch.setattr(
        first_step, "first_steps", lambda *arguments: {"first": steps}
    )  # ``--timings`` is tested elsewhere
    path, text = tmp_path / "first.json", tmp_path / "text.txt"
    text.write_text("\n\n\n".join(documents(seed=0, n=60)))
    assert first_step.main(["--smoke", "--text", str(text), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result["ratio"]) == {
        "nanoT5's / ours",
        f"nanoT5's / {first_step.ALL}",
        "nanoT5's, tokenizer given / ours",
        "nanoT5's, again / ours, again",
    }
    assert all(value > 0 for found in result["ratio"].values() for value in found.values())
    out = capsys.readouterr().out
    assert "| nanoT5's / ours |" in out
    assert "| of these tracing | 0.50 | |" in out


def test_both_sides_draw_a_batch_of_one_shape(tmp_path):
    pytest.importorskip("datasets")
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents(seed=0, n=60)))
    with first_step.caches(tmp_path):
        one = first_step.ours(text, tmp_path / "a", SIZES, 0)
        other = first_step.nanot5(text, tmp_path / "b", SIZES, tmp_path / "theirs.json")
    shapes = {name: array.shape for name, array in one.items()}
    assert shapes == {name: array.shape for name, array in other.items()}
    assert (one["encoder_ids"].dtype, other["encoder_ids"].dtype) == (np.int32, np.int32)
