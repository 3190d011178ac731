"""Text that is none, that never ends, or that is more than memory holds."""

import gzip
import json
import os

import numpy as np
import pytest

from fusion_core.errors import InputError
from fusion_core.text import corpus, files, read_documents
from fusion_core.text.documents import TextFiles
from fusion_core.text.tables import read_rows
from tests.strategies.checkpoints import saved_t5

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs devices and pipes")


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    return tmp_path / "pipe.txt"


def test_a_pipe_and_a_device_are_no_text(refused, pipe, tmp_path):
    for path, what in ((pipe, "a pipe"), ("/dev/zero", "a device")):
        for reader in (read_documents, TextFiles):
            with pytest.raises(InputError, match=f"{path} is {what}; only regular files are read"):
                reader([path])
        for preset in ("smoke", "default"):
            refused(f"{path} is {what}", "demo", "--preset", preset, "--text", path, "--out", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.txt"]


@pytest.mark.parametrize("suffix", [".toml", ".tsv", ".jsonl"])
def test_a_pipe_is_no_plan_and_no_table(refused, tmp_path, suffix):
    os.mkfifo(path := tmp_path / f"pipe{suffix}")
    if suffix == ".toml":
        refused("is a pipe", "plan", path)
    else:
        with pytest.raises(InputError, match="is a pipe"):
            read_rows(path)


def test_a_document_and_a_text_that_memory_does_not_hold_are_refused_with_the_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "MOST_DOCUMENT", 1000)
    monkeypatch.setattr(corpus, "MOST_TEXT", 3000)
    cases = {
        "one-line.txt": (b"word " * 200, "a document, from byte 0 on, has more than 1,000 bytes"),
        "many-lines.txt": (b"a\n" * 500, "a document, from byte 0 on, has more than 1,000 bytes"),
        "second.txt": (b"a\n\n\n" + b"word\n" * 200, "a document, from byte 4 on"),
        "line.jsonl": (json.dumps({"text": 1000 * "a"}).encode(), "line 1 has more than 1,000 bytes"),
        "many.txt": (b"word word\n\n\n" * 400, "has more than 3,000 characters; stream it"),
    }
    for name, (content, message) in cases.items():
        for path, data in ((tmp_path / name, content), (tmp_path / f"{name}.gz", gzip.compress(content))):
            path.write_bytes(data)
            with pytest.raises(InputError, match=message):
                read_documents([path])
    text = "".join(text for text, _ in TextFiles([tmp_path / "one-line.txt"]).read(0, 0))
    assert text == "word " * 200  # a stream cuts it


def test_a_word_that_no_tokenizer_gets_through_is_refused(tmp_path):
    (tmp_path / "solid.txt").write_text("ab" * (1 << 20))
    with pytest.raises(InputError, match="more than 1,048,576 characters without a space"):
        read_documents([tmp_path / "solid.txt"])


def test_a_compressed_file_of_zeros_is_no_text_and_is_not_unpacked(tmp_path):
    with gzip.open(tmp_path / "zeros.gz", "wb", 1) as file:
        for _ in range(20):
            file.write(bytes(1 << 20))
    with pytest.raises(InputError, match="zero byte"):
        read_documents([tmp_path / "zeros.gz"])


@pytest.mark.parametrize(
    "row",
    [
        "[" * 100_000,
        '{"label": ' + "9" * 5000 + "}",
        '{"a": "\\ud800"}',
        '{"a": {"b": ' + '{"c":' * 50_000,
        '{"a": "\\ud800',
        "null",
    ],
)
def test_a_row_of_a_table_that_nobody_would_write_is_one_line_with_its_place(tmp_path, row):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": "b"}}\n{row}\n')
    with pytest.raises(InputError, match=r"rows.jsonl, line 2"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_fusion_whose_logits_are_not_finite_is_refused_and_zeros_prove_nothing(run, refused, monkeypatch, tmp_path):
    saved_t5(tmp_path / "a")
    saved_t5(tmp_path / "b", seed=1)
    arguments = ("fuse", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    for number in (np.nan, np.inf):
        monkeypatch.setattr("fusion_core.checkpoints.comparison.logits_of", lambda *_, n=number: np.full((1, 2, 3), n))
        refused(f"the logits of {tmp_path / 'a'} are not finite", *arguments)
        refused(f"the logits of {tmp_path / 'a'} are not finite", "diff", tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    monkeypatch.setattr("fusion_core.checkpoints.comparison.logits_of", lambda *_: np.zeros((2, 12, 20)))
    code, out, err = run("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0, err
    assert out.count("are equal: what they say of it proves nothing") == 2
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "The deviation from the mean says nothing here: all its logits are equal" in out
    assert "not measured (all its logits" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    grow = ("grow", tmp_path / "a", "--operator", "hypercloning", "--factor", 2, "--out", tmp_path / "wide")
    assert "The deviation from the source says nothing here: all its logits are equal" in run(*grow)[1]
    monkeypatch.setattr("fusion_core.checkpoints.comparison.logits_of", lambda *_: np.full((2, 12, 20), np.nan))
    refused(f"the logits of {tmp_path / 'a'} are not finite", *grow[:-1], tmp_path / "wider")
    assert not (tmp_path / "wider").exists()
