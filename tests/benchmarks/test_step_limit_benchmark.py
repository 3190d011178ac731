"""The benchmark of the step's parts in its smallest size."""

import json

import pytest

from benchmarks import step_limit
from benchmarks.train_step import SIZES
from fusion_core.models.t5 import step_flops


def test_every_part_is_measured_against_the_best_product(capsys, tmp_path):
    path = tmp_path / "limit.json"
    assert step_limit.main(["--smoke", "--json", str(path)]) == 0
    (size,) = json.loads(path.read_text())["sizes"]
    rows = {row["name"]: row for row in size["rows"]}
    assert size["limit"]["gflops"] == max(size["products"].values())
    assert all(row["share_of_limit"] > 0 for name, row in rows.items() if name != "the rest")
    assert "| logits and loss |" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["smoke", "small"])
def test_the_parts_have_all_products_of_the_step(size, monkeypatch):
    config, *shape = SIZES[size][:4]
    monkeypatch.setattr(step_limit, "both_ways", lambda *arguments: None)  # nothing is compiled
    found = step_limit.parts(config, *shape)
    assert sum(flops for _, flops in found.values()) == pytest.approx(step_flops(config, *shape))
