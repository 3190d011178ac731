"""The benchmark of growth in a PyTorch run in its smallest size, and the table that is made of its record."""

import json
import warnings

import pytest

from benchmarks import pytorch_growth as benchmark
from tests.strategies.texts import documents

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
    pytest.importorskip("torch", reason="the benchmark trains in PyTorch: pip install 'deepfusion[parity]'")
    pytest.importorskip(
        "transformers", reason="the benchmark trains transformers' networks: pip install 'deepfusion[parity]'"
    )


def test_the_page_has_the_table_of_the_record():
    text = benchmark.DOC.read_text(encoding="utf-8")
    record = json.loads(benchmark.RECORD.read_text(encoding="utf-8"))
    assert text == benchmark.with_table(text, benchmark.markdown(record))


@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_follows_every_arm(tmp_path, monkeypatch, capsys):
    for table, kept in (("OPTIMIZERS", "AdamW"), ("GROWTHS", "hypercloning")):
        monkeypatch.setattr(benchmark, table, {kept: getattr(benchmark, table)[kept]})
    monkeypatch.setattr(benchmark, "default_corpus", lambda packages: documents(0, 60))
    found = benchmark.main(["--smoke", "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(json.dumps(found))
    losses = {row["arm"]: row["losses"] for row in found["rows"]}
    assert losses.keys() == benchmark.ARMS.keys()
    small = losses.pop("the small network")
    for arm in losses.values():
        assert arm["0"] == pytest.approx(small["0"], abs=1e-5)  # the growth keeps the function
    # exact copies with everything carried go on as the small network, the others do not
    carried = [abs(losses["factors and moments"][step] - small[step]) for step in ("1", "2")]
    neither = [abs(losses["neither"][step] - small[step]) for step in ("1", "2")]
    assert max(carried) < min(neither)
    assert capsys.readouterr().out.count("\n") == 2 + len(benchmark.ARMS)
