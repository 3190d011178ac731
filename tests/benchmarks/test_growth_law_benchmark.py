"""The benchmark of laws of growth on the committed records, with few draws."""

import json

import pytest

from benchmarks import growth_law
from paper_figures.experiments import laws


def test_the_benchmark_judges_laws_and_the_head_start_on_the_records(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth_law, "FITTED", {"growth_step": (1500.0, 4000.0)})
    few = [part for part in growth_law.KEPT if part[0] in ("t5_medium", "growth_long")]
    monkeypatch.setattr(growth_law, "KEPT", few)
    monkeypatch.setattr(laws, "JUDGED", ("growth_step", "absent"))
    monkeypatch.setattr(laws, "LAWS", ("curves", "curves alone"))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{growth_law.BEGIN.format('regret')}\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(growth_law, "DOC", page)
    assert growth_law.main(["--draws", "2", "--json", str(tmp_path / "found.json"), "--write"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["laws"]["growth_step"]["rows"]
    assert {row["law"] for row in rows} == {"curves", "curves alone"}
    short, long = (next(r for r in rows if r["longest"] == n and r["plateau"]) for n in (1500.0, 4000.0))
    assert max(map(abs, long["errors"])) < 0.1 < max(map(abs, short["errors"]))  # on the plateau a law knows nothing
    assert not short["holds"]
    assert all("still on its plateau" in r["refused"] for r in rows if r["longest"] == 1500.0 and not r["plateau"])
    kept = {row["arm"]: row["kept"][2][0] for row in found["kept"]}
    assert all(0.8 < kept[arm] < 1.1 for arm in ("self", "two_zero"))
    (late,) = (row["kept"] for row in found["kept"] if row["arm"] == "late_3500")
    assert all(0.8 < late[i][0] < 1.05 for i in (1, -1))  # some 500 and 6,000 steps after the growth
    regrets = {(row["rule"], row["longest"]): row for row in found["regret"]["growth_step"]["rows"]}
    best = min(row["free"] for (_, longest), row in regrets.items() if longest is None)
    assert 1 <= best < 1.01
    assert regrets[laws.RULE, 1000.0]["charged"] > regrets[laws.RULE, 1000.0]["free"] >= 1
    printed = capsys.readouterr().out
    assert "| refused: " in printed
    assert "still rising" in printed
    written = page.read_text()
    assert written.startswith("before\n")
    assert written.endswith("<!-- end -->\nafter\n")
    assert "| fixed at 25% |" in written
    assert "old" not in written


def test_a_rule_that_refuses_grows_at_30_percent_and_has_paid_for_its_curves():
    found = laws.judged("growth_step")
    one = found.of_seed(0)
    assert (len(one.scratch), len(one.small)) == (1, 1)
    made = laws.choice(laws.SURE, one, found.facts, 1000.0, found.budget, True)
    assert not made.holds
    assert made.n1 == pytest.approx(0.3 * (found.budget - 1000))
    assert made.cost == pytest.approx(1000 + 1000 - made.n1)
    assert found.loss_at(found.best()[0], found.budget) == pytest.approx(found.best()[1])
