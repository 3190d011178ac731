"""What fine-tuned networks score, from folders that runs have left."""

import json

import pytest

from fusion_core.errors import InputError
from fusion_core.runs.finetune import settings_from
from paper_figures.experiments import finetuning, record


@pytest.fixture
def tuned(tmp_path):
    """Folders of two arms in two seeds, as fine-tuning leaves them, and their text."""
    for name in ("train", "dev"):
        rows = [f"{word} film\t{label}" for word, label in (("good", 1), ("bad", 0), ("fine", 1))] * 4
        (tmp_path / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    files = {"train": str(tmp_path / "train.tsv"), "validation": str(tmp_path / "dev.tsv")}
    settings = settings_from({"checkpoint": "x", "task": "sst2", "steps": 20, **files})
    for seed in "01":
        for i, arm in enumerate(("scratch", "self")):
            folder = tmp_path / "tuned" / f"seed-{seed}" / arm / "sst2"
            folder.mkdir(parents=True)
            (folder / "settings.json").write_text(json.dumps(vars(settings)))
            scores = {
                "scores": {"accuracy": 0.5 + 0.1 * i + 0.01 * int(seed)},
                "examples": {"train": 12, "validation": 12},
            }
            (folder / "scores.json").write_text(json.dumps(scores))
    return tmp_path / "tuned"


def test_scores_are_gathered_by_task_arm_and_seed_with_their_baselines(tuned):
    (found,) = finetuning.scores_in(tuned, bag_of_words=False).values()
    assert found["arms"] == {"scratch": {"0": 0.5, "1": 0.51}, "self": {"0": 0.6, "1": 0.61}}
    assert (found["metric"], found["rows"], found["majority"]) == ("accuracy", 12, pytest.approx(2 / 3, rel=1e-4))
    assert found["settings"]["steps"] == 20
    assert found["bag_of_words"] is None


def test_a_bag_of_words_reads_the_words(tuned):
    pytest.importorskip("sklearn", reason="the bag of words is an extra: pip install 'deepfusion[data]'")
    assert finetuning.scores_in(tuned)["sst2"]["bag_of_words"] == 1.0


def test_a_folder_without_scores_and_a_run_that_is_not_finished_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no seed-N/ARM/TASK/scores.json"):
        finetuning.scores_in(tmp_path)
    with pytest.raises(InputError, match="is no finished run"):
        finetuning.finetune_arms(tmp_path, tmp_path, tmp_path)


NODE = {"kind": "train", "inputs": [], "step": 1, "validation_loss": []}


def test_scores_are_kept_in_the_record(tuned, tmp_path):
    scores = finetuning.scores_in(tuned, bag_of_words=False)
    made = record.Record("finetune", "name = 'x'", {"0": {"a": NODE}}, None, ({"created": "now"},), scores)
    made.save(tmp_path / "r.json")
    assert record.read_record(tmp_path / "r.json") == made
    bare = record.Record("finetune", "", {}, None, ())
    with pytest.raises(InputError, match=r"the record of finetune has no scores; make them with: .* --glue FOLDER"):
        bare.scored()
