"""The benchmarks of writing and of fine-tuning in their smallest sizes."""

import json

import pytest

from benchmarks import finetune_sst2, generate


def test_the_comparison_with_a_bag_of_words_has_all_its_numbers(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is an extra: pip install 'deepfusion[data]'")
    path = tmp_path / "sst2.json"
    assert finetune_sst2.main(["--smoke", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    row = result["splits"]["dev"]
    assert row["rows"] == 60
    assert row["difference"] == pytest.approx(row["t5"] - row["bag_of_words"])
    # the made-up label is that of a word
    assert row["bag_of_words"] > 0.95
    assert row["t5"] > 0.6
    assert result["finetuning"]["rows"] < 400
    assert [r["step"] for r in result["finetuning"]["tried"]] == [0, 150, 300]
    assert "| dev | 60 |" in capsys.readouterr().out


def test_rows_to_choose_by_are_not_among_those_to_fit(tmp_path):
    folder = finetune_sst2.made_up(tmp_path)
    fit, choose = finetune_sst2.split_train(folder / "train.tsv", tmp_path, 5)
    (fitted, _), (chosen, _) = (finetune_sst2.rows_of([path]) for path in (fit, choose))
    assert fitted
    assert chosen
    assert not set(fitted) & set(chosen)
    assert len(fitted) + len(chosen) == 400


def test_speed_is_measured_on_equal_answers(tmp_path, capsys):
    pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'deepfusion[parity]'")
    pytest.importorskip("transformers", reason="PyTorch is an extra: pip install 'deepfusion[parity]'")
    path = tmp_path / "generate.json"
    assert generate.main(["--smoke", "--rounds", "1", "--json", str(path)]) == 0
    row = json.loads(path.read_text())["cases"]["smoke"]
    assert row["tokens_equal"] == 1.0
    assert row["ratio"] > 0
    assert "| smoke |" in capsys.readouterr().out
