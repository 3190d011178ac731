import pytest

from benchmarks import growing_pause
from benchmarks.growing_pause import DISPATCH, PLAN, SIZES


def test_the_smallest_size_is_grown_and_its_pause_measured(tmp_path):
    model, steps, batch, length = SIZES["smallest"]
    plan = PLAN.format(dispatch=DISPATCH, model=model, steps=steps, batch=batch, length=length, after=2 * DISPATCH)
    (tmp_path / "plan.toml").write_text(plan)
    found = growing_pause.run(tmp_path, ahead=True)
    parts = sum(found[name] for name in growing_pause.PARTS)
    assert found["seconds"] == pytest.approx(parts + found["rest"])
    assert found["rest"] > 0
    assert 0 < found["evaluations"] == pytest.approx(found["seconds"] - found["without_evaluations"])
    assert 0 < found["growth"] < found["to_the_first_evaluation"] < found["seconds"]
    row = {"size": "smallest", "median": {"with": found}, "ratio": 0.5, "same": False}
    assert "smallest: NO" in growing_pause.markdown({"sizes": [row]})
