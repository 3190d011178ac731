"""The benchmark of norm modes in its smallest size: grouped norms are exact, the others are measured and reported."""

import json

from benchmarks import norm_modes


def test_the_benchmark_measures_every_mode(tmp_path, capsys, monkeypatch):
    # the standard library's own documentation takes half a minute to read
    documents = [
        f"Line {i} of a text about trains, and how the {i % 7} of them run past the hill. " * 9 for i in range(99)
    ]
    monkeypatch.setattr(norm_modes, "default_corpus", lambda packages: documents)
    monkeypatch.setattr(norm_modes, "VOCABULARY", 300)
    monkeypatch.setattr(norm_modes, "CASES", dict(list(norm_modes.CASES.items())[::2]))
    path = tmp_path / "modes.json"
    assert norm_modes.main(["--smoke", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["case"] for row in rows] == list(norm_modes.CASES)
    for row in rows:
        assert row["grouped"]["deviation"] < 1e-5 < 1e-2 < row["plain"]["deviation"] < row["difference"]
        # Jensen: cross-entropy is convex in the logits, and grouped norms give their mean
        assert row["grouped"]["loss"] < sum(row["losses"]) / 2
        assert abs(row["grouped"]["loss"] - row["loss of the mean"]) < 1e-4
    printed = capsys.readouterr().out
    assert all(f"| v1.0, {case} |" in printed for case in norm_modes.CASES)
