"""The benchmark of the data pipeline in its smallest size: it measures and reports."""

import json

from benchmarks import data_pipeline
from tests.strategies.texts import documents


def test_the_benchmark_measures_every_source_and_format(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as the benchmark sets it: put back afterwards
    path, text = tmp_path / "data.json", tmp_path / "text.txt"
    text.write_text("\n\n\n".join(documents(seed=0, n=60)))
    assert data_pipeline.main(["--smoke", "--text", str(text), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert {".txt", ".jsonl", ".jsonl.gz"} <= result["reading_characters_per_s"].keys()
    assert result["streamed"]["packed"]["source_filled"] > 0.8
    assert result["ratio"]["packed_to_tokenising"] > 0
    assert 0 <= result["device_waits"]["2 times"]["8 ahead"] <= 1
    assert "| packed to in memory with tokenising |" in capsys.readouterr().out
