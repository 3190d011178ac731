from benchmarks import growing_pause
from benchmarks.growing_pause import DISPATCH, PLAN, SIZES


def test_the_smallest_size_is_grown_and_its_pause_measured(tmp_path):
    model, steps, batch, length = SIZES["smallest"]
    plan = PLAN.format(dispatch=DISPATCH, model=model, steps=steps, batch=batch, length=length, after=2 * DISPATCH)
    (tmp_path / "plan.toml").write_text(plan)
    found = growing_pause.run(tmp_path, ahead=True)
    assert found["seconds"] > found["to_the_first_evaluation"] - found["dispatch"]
    assert found["to_the_first_evaluation"] > 0
    row = {"size": "smallest", "median": {"with": found}, "ratio": 0.5, "same": False}
    assert "smallest: NO" in growing_pause.markdown({"sizes": [row]})
