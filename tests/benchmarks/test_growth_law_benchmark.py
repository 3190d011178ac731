"""The benchmark of laws of growth on the committed records, with few draws."""

import json

from benchmarks import growth_law


def test_the_benchmark_judges_laws_and_the_head_start_on_the_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth_law, "FITTED", (1000.0,))
    monkeypatch.setattr(growth_law, "KEPT", growth_law.KEPT[-3:])
    assert growth_law.main(["--draws", "2", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["law"] for row in found["laws"]} == {"head_start", "curves", "two_stage", "curves alone"}
    short, long = (
        next(r for r in found["laws"] if r["longest"] == n and r["law"] == "curves" and not r["past_plateau"])
        for n in (1000.0, 4000.0)
    )
    assert max(map(abs, long["errors"])) < 0.1 < min(map(abs, short["errors"]))  # on the plateau a law knows nothing
    assert not short["holds"]
    kept = {row["arm"]: row["kept"][2][0] for row in found["kept"]}
    assert 0.8 < kept["self"] < kept["two_zero"] < 1.1
    printed = capsys.readouterr().out
    assert "| refused: " in printed
    assert "still rising" in printed
