"""The benchmark runs in its smallest size and prints what it measured. Times are its own business: no test compares any."""

import json

import pytest

from benchmarks import symbolic


def test_the_smoke_run_compares_with_kauri_and_counts_trees(capsys, tmp_path, monkeypatch):
    pytest.importorskip("kauri", reason="kauri is not installed: pip install 'deepfusion[dev]'")
    path = tmp_path / "symbolic.json"
    monkeypatch.setattr(symbolic, "LIMITS", [(*limit[:3], 1e9, limit[4]) for limit in symbolic.LIMITS])
    assert symbolic.main(["--smoke", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["what"] for row in result["limits"]] == ["explicit Euler, order 9", "two fields, order 7"]
    assert [row["trees"] for row in result["limits"]] == [486, 5318]
    (row,) = result["kauri"]
    assert (row["order"], row["trees"]) == (5, 17)
    assert row["off"] < 1e-12
    assert "| explicit Euler, order 9 | 486 |" in capsys.readouterr().out


def test_a_broken_limit_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(symbolic, "LIMITS", [("too fast", "euler", 5, 1e-9, None)])
    assert symbolic.main(["--smoke", "--kauri-order", "0", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["limits"][0]["held"] is False


def test_order_fifteen_has_all_trees_within_the_limit_of_memory():
    found = symbolic.peak_memory("euler", 15)
    assert found["trees"] == 141_083
    assert found["peak"] < 2e9
