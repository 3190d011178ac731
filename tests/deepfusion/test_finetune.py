import json
import shutil
import sys

import jax.numpy as jnp
import pytest

import fusion_core as fc
from deepfusion import cli
from fusion_core.runs.finetune import FinetuneSettings, Finetuning
from fusion_core.text import Tokenizer, train_tokenizer
from fusion_core.text.examples import ExampleBatches, padded
from fusion_core.train import loop
from tests.strategies import decoders
from tests.strategies.decoding import lively
from tests.strategies.networks import mean_loss, random_t5, tiny
from tests.strategies.texts import sentences

TEXTS = sentences(seed=0, n=200)
# of about equal length: one shape to compile
SHORT = [text for text in (" ".join(text.split()[:3]) for text in TEXTS) if 16 <= len(text) <= 20]
ROWS = [(text, i % 2) for i, text in enumerate(SHORT[:12])]
STEPS = ("--steps", 200, "--every", 100, "--batch", 12, "--learning-rate", 0.03, "--dropout", 0.02)


def write_rows(path, rows=ROWS, header="sentence\tlabel"):
    path.write_text("\n".join([header, *(f"{text}\t{label}" for text, label in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with its tokenizer, and the rows of a tiny SST-2."""
    folder = tmp_path_factory.mktemp("finetune")
    tokenizer = train_tokenizer([*TEXTS, "sst2 sentence: positive negative"], 320)
    config = tiny("v1.1", vocab_size=tokenizer.vocab_size, num_layers=1, num_decoder_layers=1)
    fc.save_pretrained(folder / "small", random_t5(config, 0), config)
    tokenizer.save(folder / "small")
    write_rows(folder / "rows.tsv")
    return folder


def task(folder, *more):
    files = ("--train", folder / "rows.tsv", "--validation", folder / "rows.tsv")
    return ("finetune", folder / "small", "--task", "sst2", *files, *more)


def records(out):
    """Return the records of the evaluations and of the training, without what depends on the time."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "loss", "accuracy", "gradient_norm", "learning_rate", "validation_loss")
    kept = [{key: record[key] for key in kept if key in record} for record in found]
    evaluations = [record for record in kept if "validation_loss" in record]
    return evaluations, [record for record in kept if "loss" in record]


def files(out):
    """Return all that two runs of the same settings have in common, bit for bit."""
    names = ("settings.json", "predictions.tsv", "predictions.jsonl", "checkpoint/model.safetensors")
    return {name: (out / name).read_bytes() for name in names}, records(out)


@pytest.fixture(scope="module")
def whole(folder):
    """A run from beginning to end, through the command line."""
    out = folder / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, ["deepfusion", *task(folder, "--out", out, *STEPS)])))
        with pytest.raises(SystemExit) as left:
            cli.main()
    assert not left.value.code
    return out


def test_a_run_leaves_scores_answers_metrics_and_a_checkpoint(folder, whole):
    result = json.loads((whole / "scores.json").read_text())
    assert result["examples"] == {"train": 12, "validation": 12}
    assert result["cut"] == {name: {"sources": 0, "targets": 0} for name in ("train", "validation")}
    lines = (whole / "predictions.tsv").read_text().splitlines()
    assert lines[0] == "source\ttarget\tanswer"
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[0] for row in rows] == [f"sst2 sentence: {text}" for text, _ in ROWS]
    assert [row[1] for row in rows] == ["negative", "positive"] * 6
    assert [row[2] for row in rows] == [row[1] for row in rows]  # learned by heart
    assert result["scores"] == {"accuracy": 1.0}
    assert result["answers_that_are_no_label"] == 0
    assert len((whole / "predictions.jsonl").read_text().splitlines()) == 12
    evaluations, training = records(whole)
    assert [r["step"] for r in evaluations] == [0, 100, 200]
    assert evaluations[0]["accuracy"] < evaluations[-1]["accuracy"] == 1
    assert evaluations[-1]["validation_loss"] < evaluations[0]["validation_loss"]
    assert [r["step"] for r in training] == [*range(10, 201, 10)]
    assert training[-1]["loss"] < training[0]["loss"]
    assert [r["learning_rate"] for r in training] == pytest.approx([0.03] * 20)


def test_the_validation_loss_is_the_mean_over_all_tokens(folder, whole):
    """The last batch is filled up, and rows are sorted; neither counts."""
    path = str(folder / "rows.tsv")
    run = Finetuning(
        FinetuneSettings(checkpoint=str(folder / "small"), train=path, validation=path, task="sst2"), folder / "nowhere"
    )
    sources, targets = (padded(ids, max(map(len, ids)), 0) for ids in run.ids["validation"])
    batch = {"encoder_ids": jnp.asarray(sources), "targets": jnp.asarray(targets)}
    first = records(whole)[0][0]
    expected = float(mean_loss(run.network.config)(run.network.params, batch))
    assert first["validation_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_checkpoint_answers_as_the_predictions_say(folder, whole, run):
    sources = folder / "sources.txt"
    expected = [line.split("\t") for line in (whole / "predictions.tsv").read_text().splitlines()[1:]]
    sources.write_text("\n".join(row[0] for row in expected) + "\n")
    code, out, _ = run("generate", whole / "checkpoint", "--file", sources, "--max-length", 16, "--json")
    assert code == 0
    answers = json.loads(out)["answers"]
    assert [a["source"] for a in answers] == [row[0] for row in expected]
    assert [" ".join(a["answer"].split()) for a in answers] == [row[2] for row in expected]


def test_a_run_interrupted_and_killed_ends_where_the_whole_one_does(folder, whole, run, monkeypatch):
    """Ctrl-C between two evaluations, then death while the answers are written, then nothing more."""
    out, batch, answers = folder / "interrupted", ExampleBatches.batch, Finetuning.answers

    def interrupt(self, step, size):
        if step == 155:
            loop._stop.set()
        return batch(self, step, size)

    def die(self, params):
        raise KeyboardInterrupt

    monkeypatch.setattr(ExampleBatches, "batch", interrupt)
    code, _, err = run(*task(folder, "--out", out, *STEPS))
    assert code == 130
    assert f"deepfusion finetune --resume {out}" in err
    write_rows(folder / "rows.tsv", [*ROWS[1:], ROWS[0]])
    code, _, err = run("finetune", "--resume", out)
    assert code == 2
    assert f"was begun with {folder / 'rows.tsv'}, which has another content now" in err
    write_rows(folder / "rows.tsv")
    monkeypatch.setattr(ExampleBatches, "batch", batch)
    monkeypatch.setattr(Finetuning, "answers", die)
    assert run("finetune", "--resume", out)[0] == 130
    assert not (out / "scores.json").exists()
    monkeypatch.setattr(Finetuning, "answers", answers)
    code, printed, _ = run("finetune", "--resume", out, "--json")
    assert code == 0
    assert files(out) == files(whole)
    assert json.loads(printed)["scores"] == {"accuracy": 1.0}


def test_a_custom_task_of_json_lines_runs_and_long_texts_are_cut_and_counted(folder, run):
    rows = [{"question": text, "answer": " ".join(text.split()[:3])} for text in TEXTS[:8]]
    path = folder / "qa.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    columns = ("--task", "custom", "--input-column", "question", "--target-column", "answer", "--prefix", "answer:")
    length = ("--source-length", 12, "--target-length", 5, "--steps", 2, "--batch", 4)
    files = ("--train", path, "--validation", path, "--out", folder / "qa")
    code, out, err = run("finetune", folder / "small", *columns, *files, *length, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["cut"]["train"]["sources"] == 8
    assert 0 < result["cut"]["train"]["targets"] <= 8
    assert "8 of 8 train sources were longer than allowed and were cut (--source-length)" in err
    lines = (folder / "qa" / "predictions.jsonl").read_text().splitlines()
    assert all(json.loads(line)["source"].startswith("answer: ") for line in lines)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--task", "sst"), "there is no task 'sst'; there are cola, sst2"),
        (("--task", "rte"), "there is no column 'sentence1'"),
        (("--train", "none.tsv"), "there is no file"),
        (("--train", "empty.tsv"), "empty.tsv has no rows"),
        (("--validation", "label.tsv"), "label.tsv, line 3: the label is '2'; sst2 has negative, positive"),
        (("--steps", 0), "steps is 0; it must be at least 1"),
        (("--steps", 0, "--batch", 0), "steps is 0; it must be at least 1, and batch is 0; it must be at least 1"),
        (("--learning-rate", 0), "learning_rate is 0.0; it must be above 0"),
        (("--seed", -1), "seed is -1"),
        (("--every", -1), "every is -1"),
        (("--source-length", 1), "source_length is 1; it must be at least 2"),
        (("--target-length", 4), "target_length is 4, but the label 'negative' has"),
        (("--dropout", 1), "dropout is 1.0; it must be below 1"),
        (("--prefix", "a"), "are for the task custom"),
        (("--task", "custom"), "a custom task needs input_column and target_column"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(folder, run, monkeypatch, change, message):
    (folder / "empty.tsv").write_text("")
    write_rows(folder / "label.tsv", [("a", 0), ("b", 2)])
    monkeypatch.chdir(folder)
    arguments = [*task(folder, "--out", "refused")]
    if change[0] in arguments:
        arguments[arguments.index(change[0]) + 1] = change[1]
    else:
        arguments += change
    refused_with(run, message, *arguments)
    assert not (folder / "refused").exists()


def refused_with(run, message, *arguments):
    code, out, err = run(*arguments)
    assert code == 2, err
    assert not out
    assert err.startswith("Error:")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize("name", ["rows.tsv", "small/tokenizer.json", "small/model.safetensors"])
def test_a_run_is_not_resumed_on_other_files_of_the_same_names(folder, whole, run, name):
    file = folder / name
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + b"~")  # of equal size
        refused_with(run, f"begun with {file}, which has another content now", "finetune", "--resume", whole)
        file.unlink()
        refused_with(run, f"begun with {file}, which is not there now", "finetune", "--resume", whole)
    finally:
        file.write_bytes(content)


def test_a_tokenizer_that_cannot_spell_a_label_is_refused(folder, run, tmp_path):
    """Every answer would be wrong, and nothing would say why."""
    shutil.copytree(folder / "small", tmp_path / "small")
    file = tmp_path / "small" / "tokenizer.json"
    values = json.loads(file.read_text())
    values["normalizer"] = {"type": "Replace", "pattern": {"String": "g"}, "content": "k"}
    file.write_text(json.dumps(values))
    arguments = list(task(folder, "--out", tmp_path / "out"))
    arguments[1] = tmp_path / "small"
    refused_with(run, "the tokenizer spells the label 'negative' as 'nekative'", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_cannot_be_used_is_refused(folder, run, tmp_path):
    tokenizer = Tokenizer.load(folder / "small")
    size = tokenizer.vocab_size
    cases = {
        "smaller": (
            {"vocab_size": size - 1},
            f"the tokenizer has {size} pieces, but the network has {size - 1} tokens",
        ),
        "pad": (
            {"vocab_size": size, "pad_token_id": 5},
            "the tokenizer's <pad> has the id 0, but the configuration says that",
        ),
        "end": ({"vocab_size": size, "eos_token_id": 9}, "the tokenizer's </s> has the id 1"),
    }
    for name, (changes, message) in cases.items():
        config = tiny("v1.0", num_layers=1, num_decoder_layers=1, **changes)
        fc.save_pretrained(tmp_path / name, lively(config, 0), config)
        if name == "smaller":
            refused_with(run, f"there is no {tmp_path / name / 'tokenizer.json'}", "generate", tmp_path / name, "a")
        tokenizer.save(tmp_path / name)
        refused_with(run, message, "generate", tmp_path / name, "a")
    refused_with(run, "there is no folder", "generate", tmp_path / "none", "a")
    config = decoders.small("llama", vocab_size=size)
    fc.save_pretrained(tmp_path / "llama", decoders.random_params(config, 0), config)
    tokenizer.save(tmp_path / "llama")
    refused_with(run, "is a Llama; this needs a T5", "generate", tmp_path / "llama", "a")


def test_a_folder_with_something_in_it_and_changes_to_a_resumed_run_are_refused(folder, whole, run, tmp_path):
    refused_with(run, "exists and is not an empty folder", *task(folder, "--out", whole))
    refused_with(run, "--steps cannot be changed by a resumed run", "finetune", "--resume", whole, "--steps", 9)
    refused_with(run, "the checkpoint cannot be changed", "finetune", folder / "small", "--resume", whole)
    refused_with(run, "holds no fine-tuning run", "finetune", "--resume", folder)
    for text, message in (("{", "is not JSON"), ('{"speed": 1}', "speed is unknown; leave it out")):
        (tmp_path / "settings.json").write_text(text)
        refused_with(run, message, "finetune", "--resume", tmp_path)
    refused_with(run, "give a checkpoint folder", "finetune", "--task", "sst2")
    refused_with(run, "--out is missing", *task(folder))


# deepfusion generate


def test_generate_prints_a_line_for_every_text(folder, run):
    code, out, _ = run("generate", folder / "small", TEXTS[0], TEXTS[1], "--max-length", 4, "--beams", 2)
    assert code == 0
    assert len(out.splitlines()) == 2


def test_samples_depend_on_the_seed_and_not_on_the_batch(folder, run):
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS[:5]) + "\n\n")
    drawn = ("generate", folder / "small", "--file", path, "--max-length", 6, "--sample", "--top-k", 40)
    first = run(*drawn, "--seed", 1)
    assert first[0] == 0
    assert len(first[1].splitlines()) == 5
    assert run(*drawn, "--seed", 1, "--batch", 2)[1] == first[1]
    assert run(*drawn, "--seed", 2)[1] != first[1]


def test_a_source_that_is_cut_is_said(folder, run):
    code, out, err = run("generate", folder / "small", TEXTS[0], "a", "--max-length", 4, "--source-length", 6, "--json")
    assert code == 0
    assert json.loads(out)["cut"] == 1
    assert "1 of 2 sources had more than 6 tokens and were cut" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either texts or --file"),
        (("a", "--file", "b.txt"), "give either texts or --file"),
        (("--file", "none.txt"), "there is no file none.txt"),
        (("a", "--beams", 2, "--sample"), "--beams searches and --sample draws"),
        (("a", "--temperature", 0.5), "--temperature has a meaning with --sample only"),
        (("a", "--length-penalty", 2), "--length-penalty has a meaning with --beams only"),
        (("a", "--sample", "--top-p", 1.5), "top_p is 1.5"),
        (("a", "--sample", "--temperature", 0), "the temperature is 0.0"),
        (("a", "--beams", 0), "beams is 0"),
        (("a", "--beams", 10**4), "--beams is 10000; a vocabulary of"),
        (("a", "--max-length", 0), "max_length is 0"),
        (("a", "--batch", 0), "--batch is 0"),
        (("a", "--source-length", 1), "allow at least 2"),
    ],
)
def test_impossible_options_are_refused(folder, run, options, message):
    refused_with(run, message, "generate", folder / "small", *options)


@pytest.mark.parametrize("command", ["finetune", "generate"])
def test_the_help_teaches_by_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert [line for line in out.splitlines() if line.strip(" │").startswith(f"deepfusion {command}")]
