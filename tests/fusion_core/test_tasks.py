import json
import os
import pathlib

import pytest

import fusion_core as fc
from fusion_core.text.tasks import TASKS, custom_task, named_task

# A row or two of each of GLUE's files, in their own schema, and what T5 reads and writes for them.
FILES = {
    "cola": (
        "gj04\t1\t\tThe sailors rode the breeze clear of the rocks.\nclc95\t0\t*\tThe more does Bill smoke.\n",
        [
            ("cola sentence: The sailors rode the breeze clear of the rocks.", "acceptable"),
            ("cola sentence: The more does Bill smoke.", "unacceptable"),
        ],
    ),
    "sst2": (
        "sentence\tlabel\nwell-conceived\t1\na \"bad film\t0\n",
        [("sst2 sentence: well-conceived", "positive"), ('sst2 sentence: a "bad film', "negative")],
    ),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said so.\tHe said it.\n0\t7\t8\tA.\tB.\n",
        [
            ("mrpc sentence1: He said so. sentence2: He said it.", "equivalent"),
            ("mrpc sentence1: A. sentence2: B.", "not_equivalent"),
        ],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tAn air plane.\t5.000\n"
        "1\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tA cat.\t0.511\n"
        "2\tnews\tf\t2012\t1\tnone\tnone\tA plane.\tA bird.\t2.5\n",
        [
            ("stsb sentence1: A plane. sentence2: An air plane.", "5.0"),
            ("stsb sentence1: A plane. sentence2: A cat.", "0.6"),
            ("stsb sentence1: A plane. sentence2: A bird.", "2.4"),  # 12.5 to the even 12
        ],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tWhy not?\t0\n4\t5\t6\tWhen?\tWhen is it?\t1\n",
        [
            ("qqp question1: Why? question2: Why not?", "not_duplicate"),
            ("qqp question1: When? question2: When is it?", "duplicate"),
        ],
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t1\t1n\tfiction\tIt rains.\tIt is wet.\tneutral\tentailment\n",
        [("mnli hypothesis: It is wet. premise: It rains.", "entailment")],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWho came?\tAda came.\tentailment\n1\tWho?\tIt rains.\tnot_entailment\n",
        [
            ("qnli question: Who came? sentence: Ada came.", "entailment"),
            ("qnli question: Who? sentence: It rains.", "not_entailment"),
        ],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tOil fell.\tOil rose.\tnot_entailment\n",
        [("rte sentence1: Oil fell. sentence2: Oil rose.", "not_entailment")],
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tI put it in, and it fit.\tThe pin fit.\t1\n",
        [("wnli sentence1: I put it in, and it fit. sentence2: The pin fit.", "entailment")],
    ),
}  # fmt: skip


def write(tmp_path, text, name="train.tsv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs(examples):
    return [(e.source, e.target) for e in examples]


@pytest.mark.parametrize("name", sorted(FILES))
def test_glues_files_become_t5s_words(tmp_path, name):
    text, expected = FILES[name]
    assert pairs(named_task(name).examples(write(tmp_path, text))) == expected


def test_all_nine_are_there():
    assert set(TASKS) == set(FILES)
    assert len(TASKS) == 9


@pytest.mark.parametrize("name", sorted(FILES))
def test_right_answers_have_full_scores(tmp_path, name):
    """Every label of the task, and in stsb different numbers."""
    task = named_task(name)
    targets = list(task.labels) or ["0.0", "2.4", "5.0"]
    assert task.scores(targets, targets) == pytest.approx(dict.fromkeys(task.metrics, 1.0))
    assert set(task.metrics) == {
        "cola": {"matthews"}, "mrpc": {"f1", "accuracy"}, "qqp": {"f1", "accuracy"}, "stsb": {"pearson", "spearman"}
    }.get(name, {"accuracy"})  # fmt: skip


def test_rows_of_hugging_faces_datasets_are_read_too(tmp_path):
    """JSON lines with T5's own names, and labels by number."""
    lines = [
        {"premise": "It rains.", "hypothesis": "It is dry.", "label": 2, "idx": 0},
        {"premise": "It rains.\u2028", "hypothesis": "It is wet.", "label": 0, "idx": 1},
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, lines)) + "\n\n", "mnli.jsonl")
    assert pairs(named_task("mnli").examples(path)) == [
        ("mnli hypothesis: It is dry. premise: It rains.", "contradiction"),
        ("mnli hypothesis: It is wet. premise: It rains.\u2028", "entailment"),
    ]


def test_a_custom_task_takes_any_two_columns(tmp_path):
    path = write(tmp_path, "de\ten\tnote\nHaus\thouse\tx\nBaum\ttree\ty\n")
    task = custom_task("en", "de", "translate English to German:")
    assert pairs(task.examples(path)) == [
        ("translate English to German: house", "Haus"),
        ("translate English to German: tree", "Baum"),
    ]
    assert task.scores(["Haus", "Baum"], ["Haus", " Busch"]) == {"accuracy": 0.5}
    assert pairs(custom_task("en", "de").examples(path))[0] == ("house", "Haus")


def test_an_answer_that_is_no_label_counts_as_wrong():
    sst2 = named_task("sst2")
    assert sst2.scores(["positive", "negative"], ["positive ", "positively"]) == {"accuracy": 0.5}
    assert named_task("stsb").read("no number") == named_task("stsb").read("nan") == -1.0


# What is refused


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("sst2", "a.tsv", "sentence\tlabel\nfine\t2\n", "a.tsv, line 2: the label is '2'; sst2 has negative, positive"),
        ("rte", "a.tsv", "sentence1\tsentence2\tlabel\na\tb\tmaybe\n", "the label is 'maybe'; rte has entailment, not_ent"),
        ("mnli", "a.jsonl", '{"premise": "a", "hypothesis": "b", "label": -1}\n', "line 1: the label is -1"),
        ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\t5.2\n", "the target is '5.2'; stsb has numbers from 0 to 5"),
        ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n", "the target is 'high'"),
        ("sst2", "a.tsv", "text\tlabel\nfine\t1\n", "a.tsv, line 2: there is no column 'sentence'; there are text, label"),
        ("qqp", "a.jsonl", '{"question1": "a", "label": 1}\n', "there is no column 'question2'"),
        ("sst2", "a.tsv", "sentence\tlabel\n", "a.tsv has no rows"),
        ("sst2", "a.tsv", "", "a.tsv has no rows"),
        ("sst2", "a.jsonl", "\n", "a.jsonl has no rows"),
        ("sst2", "a.tsv", "sentence\tlabel\na\tb\t1\n", "a.tsv, line 2 has 3 columns, but there are 2 (sentence, label)"),
        ("sst2", "a.tsv", "sentence\tlabel\n\t1\n", "a.tsv, line 2: the column 'sentence' is empty"),
        ("sst2", "a.jsonl", '{"sentence": "a", "label": 1}\n{"sent', "a.jsonl, line 2 is not JSON"),
        ("sst2", "a.jsonl", "[1]\n", "a.jsonl, line 1 is no JSON object"),
        ("sst2", "a.csv", "sentence,label\n", "a.csv is neither .tsv nor .jsonl"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_with_their_place(tmp_path, name, file, text, message):
    path = write(tmp_path, text, file)
    with pytest.raises(fc.InputError) as refused:
        named_task(name).examples(path)
    assert message in str(refused.value)


def test_missing_files_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(fc.InputError, match=r"there is no file .*none.tsv"):
        named_task("sst2").examples(tmp_path / "none.tsv")
    (tmp_path / "a.tsv").write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(fc.InputError, match="is not UTF-8"):
        named_task("sst2").examples(tmp_path / "a.tsv")


def test_unknown_tasks_and_one_column_for_both_are_refused():
    with pytest.raises(fc.InputError, match=r"there is no task 'sst'; there are cola, sst2, .*wnli, and custom"):
        named_task("sst")
    with pytest.raises(fc.InputError, match="input and target are both the column 'a'"):
        custom_task("a", "a")


# GLUE's own files


def glue() -> pathlib.Path:
    root = pathlib.Path(__file__).parents[2]
    folder = pathlib.Path(os.environ.get("DEEPFUSION_GLUE", root.parent / "shared" / "data" / "glue"))
    if not folder.is_dir():
        pytest.skip("GLUE's files are not here; name their folder in DEEPFUSION_GLUE")
    return folder


@pytest.mark.parametrize(
    ("name", "folder", "rows"),
    [("sst2", "SST-2", {"train": 60614, "dev": 6735, "test": 872}), ("rte", "RTE", {"train": 3367, "dev": 800})],
)
def test_glues_files_are_read_whole(name, folder, rows):
    task = named_task(name)
    for split, count in rows.items():
        path = glue() / folder / f"{split}.tsv"
        examples = task.examples(path)
        lines = path.read_text(encoding="utf-8").split("\n")
        assert len(examples) == count == sum(bool(line.strip()) for line in lines) - 1
        assert {e.target for e in examples} == set(task.labels)
        assert all(e.source.startswith(f"{name} sentence") for e in examples)
