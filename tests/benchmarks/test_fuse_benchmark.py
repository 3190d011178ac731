"""The benchmark of fusing in its smallest size: it measures, reports, and leaves nothing behind."""

import json

from benchmarks import fuse


def test_the_benchmark_measures_time_and_memory(tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    path = tmp_path / "fuse.json"
    assert fuse.main(["--smoke", "--folder", str(work), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert not list(work.iterdir())
    assert result["read"] == 4 * result["parameters_each"]
    assert result["written"] == 2 * result["parameters_fused"]
    assert result["runs"]["fuse"][0]["imports"] <= result["peak"] <= result["peak_limit"]
    assert result["ratios"]["copy"] > 0
    printed = capsys.readouterr().out
    assert "| peak memory, MB | at most" in printed
    assert "| mergekit | at least 2 | left out: smoke | |" in printed


def test_a_broken_limit_is_an_exit_code(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(fuse, "MEMORY_LIMIT", -1e9)
    assert fuse.main(["--smoke", "--folder", str(tmp_path)]) == 1
    assert "| NO |" in capsys.readouterr().out
