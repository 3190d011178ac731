"""Files of text as people have them: kinds by any spelling of their names, other encodings, GLUE's own blemishes."""

import gzip
import json
import os
import re
import shutil
import stat
import subprocess

import numpy as np
import pytest
import safetensors.numpy

import fusion_core as fc
from fusion_core import atomic
from fusion_core.text import TextFiles, read_documents
from fusion_core.text.encoding import read_text
from fusion_core.text.tasks import custom_task, named_task
from tests.strategies.texts import tokenizer

TEXTS = ["Größe, naïve.", "Zweitens."]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


@pytest.mark.parametrize(
    "name", ["c.jsonl", "c.JSONL", "c.ndjson", "c.NDJSON", "c.jsonl.gz", "c.Ndjson.GZ", "c.TXT", "c.MD"]
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file_is_what_its_suffix_says_in_any_spelling(tmp_path, name, mark):
    json_lines = "json" in name.lower()
    data = (mark + (LINES if json_lines else "\n\n\n".join(TEXTS))).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert read_documents([tmp_path / name]) == TEXTS
    assert read_documents([tmp_path]) == TEXTS
    assert TextFiles([tmp_path]).files == (tmp_path / name,)


# Encodings

ENCODINGS = {
    "utf-16": "it is UTF-16, by its byte order mark",
    "utf-16-le": "it is UTF-16LE, by its zero bytes",
    "utf-16-be": "it is UTF-16BE, by its zero bytes",
    "utf-32": "it is UTF-32, by its byte order mark",
    "cp1252": "byte 0xf6 at offset 2; convert it (if it is WINDOWS-1252)",
    "latin-1": "byte 0xf6 at offset 2; convert it (if it is LATIN1)",
}


def converted(message: str, folder):
    """What the command in the message makes."""
    command = re.search(r"convert it[^:]*: (.*?), or leave it out", message)[1]
    if shutil.which("iconv") is None:
        pytest.skip("there is no iconv here")
    subprocess.run(["bash", "-c", command], check=True, cwd=folder)
    return re.search(r"> (\S+)$", command)[1].strip("'")


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("name", ["c.txt", "c.txt.gz"])
def test_another_encoding_is_named_with_a_command_that_converts_it(tmp_path, monkeypatch, encoding, name):
    monkeypatch.chdir(tmp_path)
    text = TEXTS[0] + ("\x81" if encoding == "latin-1" else "")
    data = text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(fc.InputError) as refused:
        read_documents([path])
    assert f"{path} is not UTF-8: {ENCODINGS[encoding]}" in str(refused.value)
    new = converted(str(refused.value), tmp_path)
    assert read_documents([new]) == [text]
    if name == "c.txt":
        for read in (read_text, lambda path: named_task("sst2").examples(path)):
            with pytest.raises(fc.InputError, match=re.escape(ENCODINGS[encoding])):
                read(path)


def test_a_file_that_is_mostly_utf8_is_not_converted_from_another_encoding(tmp_path):
    path = tmp_path / "my text.txt"
    path.write_bytes((TEXTS[0] * 3).encode() + b"\xff" + TEXTS[1].encode())
    with pytest.raises(fc.InputError, match="most of it is UTF-8, and this leaves out what is not") as refused:
        read_documents([path])
    if shutil.which("iconv"):
        command = re.search(r"is not\): (.*?), or leave it out", str(refused.value))[1]
        subprocess.run(["bash", "-c", command], check=False)  # it leaves bytes out, and says so
        assert read_documents([tmp_path / "my text.utf8.txt"]) == [TEXTS[0] * 3 + TEXTS[1]]


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain, and then\0something else, which no text has")
    with pytest.raises(fc.InputError, match=r"is no text .a zero byte at offset 15."):
        read_documents([tmp_path / "a.txt"])


# Halves of characters


def test_half_a_character_is_refused_with_file_and_row_everywhere(tmp_path):
    rows = [{"text": "a", "sentence": "a", "label": 1}, {"text": "b \ud83d", "sentence": "b \ud83d", "label": 0}]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    uses = (
        lambda: read_documents([path]),
        lambda: named_task("sst2").examples(path),
        lambda: custom_task("text", "sentence").examples(path),
    )
    for use in uses:
        with pytest.raises(
            fc.InputError, match=rf"{path}, line 2.*: half of a character \(\\ud83d, after 2 characters"
        ):
            use()
    with pytest.raises(fc.InputError, match=r"text 2, 'b \\ud83d': half of a character"):
        tokenizer().encode(["a", "b \ud83d"])


# GLUE's files, with a row of each kind that is known to be in them

BLEMISHED = {
    # a tab within a question, a question over two lines, an empty one
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tWhy not?\t0\n1\t2\t3\tWhy\t?\tWhy not?\t0\n"
        "1\t2\t3\tWhy\n not?\tWhy not?\t0\n1\t2\t3\t\tWhy not?\t0\n",
        ["qqp question1: Why? question2: Why not?"],
        ["has 7 columns, but there are 6", "line 4 has 4 columns", "line 5 has 3 columns", "'question1' is empty"],
    ),
    # no label on which the annotators agreed
    "mnli": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n0\tfiction\tA.\tB.\tneutral\tneutral\n"
        "0\tfiction\tA.\tB.\tneutral\t-\n0\tfiction\tA.\tB.\n",
        ["mnli hypothesis: B. premise: A."],
        ["line 4 has 4 columns", "line 3: the label is '-'"],
    ),
    # a mark at the beginning, quotes that open and do not close, line ends of Windows, empty columns at the end
    "qnli": (
        '\ufeffindex\tquestion\tsentence\tlabel\r\n0\t"Who came?\tAda " came.\tentailment\t\t\r\n'
        "0\tWho?\tIt rains.\tnot_entailment\r\n",
        ['qnli question: "Who came? sentence: Ada " came.', "qnli question: Who? sentence: It rains."],
        [],
    ),
    # test rows among others
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t-1\n1\tA.\tC.\tnot_entailment\n2\tA.\tD.\t\n",
        ["rte sentence1: A. sentence2: C."],
        ["the label is '-1'", "the column 'label' is empty"],
    ),
    # quotes around all names and values, as a spreadsheet writes them
    "sst2": (
        '"sentence"\t"label"\n"a ""bad"" film"\t"0"\n"fine\tfilm"\t"1"\n',
        ['sst2 sentence: a "bad" film', "sst2 sentence: fine\tfilm"],
        [],
    ),
    # without a line of names
    "cola": ("gj04\t1\t\tIt rains.\ngj04\t1\t\n", ["cola sentence: It rains."], ["line 2 has 3 columns"]),
    "stsb": (
        "index\tsentence1\tsentence2\tscore\n0\tA.\tB.\t2.5\n0\tA.\tB.\t-1\n",
        ["stsb sentence1: A. sentence2: B."],
        ["the target is '-1'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BLEMISHED))
def test_glues_known_blemishes_are_left_out_and_counted(tmp_path, name):
    text, sources, reasons = BLEMISHED[name]
    path = tmp_path / "train.tsv"
    path.write_bytes(text.encode())
    examples, left_out = named_task(name).examples_and_blemishes(path)
    assert [example.source for example in examples] == sources
    assert len(left_out) == len(reasons)
    for said, reason in zip(left_out, reasons, strict=True):
        assert reason in said
        assert str(path) in said


def test_microsofts_own_file_of_paraphrases_is_read_under_its_name(tmp_path):
    path = tmp_path / "msr_paraphrase_train.txt"
    path.write_bytes("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t1\t2\tA.\tB.\r\n".encode())
    assert named_task("mrpc").examples(path)[0].source == "mrpc sentence1: A. sentence2: B."


@pytest.mark.parametrize("text", ["sentence\tlabel\na\t-1\nb\t-1\n", "sentence\tlabel\na\t\n"])
def test_a_file_without_any_label_is_refused(tmp_path, text):
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(fc.InputError, match=r"line 2.*\(no row is left; a test file of GLUE has no labels\)"):
        named_task("sst2").examples(tmp_path / "test.tsv")


@pytest.mark.parametrize("text", ["a\tb\nx\ty\tz\nx\ty\n", "a\tb\nx\t\nx\ty\n"])
def test_rows_of_a_users_own_task_are_not_left_out(tmp_path, text):
    (tmp_path / "own.tsv").write_text(text)
    with pytest.raises(fc.InputError, match="line 2"):
        custom_task("a", "b").examples(tmp_path / "own.tsv")


# Rights


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_written_files_and_folders_follow_the_umask(tmp_path, mask):
    """The library writes files that are their owner's alone."""
    before = os.umask(mask)
    try:
        save = lambda path: safetensors.numpy.save_file({"a": np.zeros(2)}, path)
        with atomic.new_file(tmp_path / "one.safetensors") as file:
            save(file)
        with atomic.new_folder(tmp_path / "folder") as folder:
            save(folder / "model.safetensors")
            (folder / "inner").mkdir()
            (folder / "inner" / "a.txt").write_text("a")
        with atomic.new_folder(tmp_path / "folder", replace=True) as folder:
            save(folder / "model.safetensors")
            (folder / "inner").mkdir()
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
