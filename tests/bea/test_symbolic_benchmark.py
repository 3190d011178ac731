"""The benchmark runs in its smallest size, holds its limits, and prints what it measured."""

import json

import pytest

from benchmarks import symbolic


def test_the_smoke_run_compares_with_kauri_and_holds_the_limits(capsys, tmp_path):
    pytest.importorskip("kauri", reason="kauri is not installed: pip install 'deepfusion[dev]'")
    path = tmp_path / "symbolic.json"
    assert symbolic.main(["--smoke", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert [row["what"] for row in result["limits"]] == ["explicit Euler, order 9", "two fields, order 7"]
    assert all(row["s"] < row["limit_s"] for row in result["limits"])
    assert [row["trees"] for row in result["limits"]] == [486, 5318]
    (row,) = result["kauri"]
    assert row["off"] < 1e-12
    assert row["ratio"] > 10
    assert "| explicit Euler, order 9 | 486 |" in capsys.readouterr().out


def test_a_broken_limit_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(symbolic, "LIMITS", [("too fast", "euler", 5, 1e-9, None)])
    assert symbolic.main(["--smoke", "--kauri-order", "0", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["limits"][0]["held"] is False


def test_the_limit_on_order_fifteen_holds():
    seconds, _, value = symbolic.seconds(lambda: symbolic.modified_equation("euler", 15), repeats=1)
    assert len(value) == 141_083
    assert seconds < 60
    assert symbolic.peak_memory("euler", 15)["peak"] < 2e9
