"""Tokens and tokenizer of a run: made once, kept in its folder and in the cache."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fusion_core as fc
from fusion_core import atomic
from fusion_core.runs.data import RunData
from fusion_core.runs.plan import plan_values
from fusion_core.runs.plan_file import read_plan
from fusion_core.runs.settings import DataSettings
from fusion_core.text import cache, corpus, prepared, train_tokenizer
from fusion_core.text.prepared import TOKENIZER_FILES, TOKENS, read_tokens
from tests.strategies.texts import documents, sentences

ROOT = pathlib.Path(__file__).parent.parent.parent
TEXTS = documents(seed=0, n=60, length=3)
FILES = [*TOKENIZER_FILES, TOKENS]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / "text" / "a.txt")


def write(path, texts=TEXTS):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n\n\n".join(texts), encoding="utf-8")
    return path


def made(folder, path, seed=0, **changes):
    """The data of a run in a new folder, what was said, and whether the cache gave it."""
    notes = []
    data = RunData(DataSettings(**{"text": (str(path),), "vocab": 320} | changes), seed, folder, notes.append)
    return data, notes, any("from the cache" in note for note in notes)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def entries(root):
    return sorted(path.name for path in root.iterdir())


def fail(*arguments, **options):
    raise AssertionError("this is not to be done again")


@pytest.mark.parametrize("packages", [None, ("numpy",)], ids=["files", "documentation"])
def test_a_second_run_neither_reads_nor_tokenizes(tmp_path, text, packages, monkeypatch):
    changes = {}
    if packages:
        write(tmp_path / "docs" / "a.rst")
        (tmp_path / "docs" / "b.py").write_text(f'"""{" ".join(sentences(1, 30))}"""\n')
        monkeypatch.setattr(corpus, "default_folders", lambda packages: [tmp_path / "docs"])
        changes = {"text": (), "packages": packages}
    first, notes, _ = made(tmp_path / "1", text, **changes)
    assert notes == ["reading the text", "training the tokenizer, 320 pieces", "tokenizing"]
    for owner, name in (
        (prepared, "read_documents"), (corpus, "documentation_of"), (prepared, "train_tokenizer"), (prepared, "write_tokens")
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, fail)
    second, notes, cached = made(tmp_path / "2", text, **changes)
    assert cached
    assert len(notes) == 1
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": 321},
        {"seed": 1},
        {"validation_share": 0.06},
        {"tokenizer": "tokenizer"},
        {"tokenizer_sample": 3000},
        {"texts": [*TEXTS[1:], TEXTS[0]]},  # of the same size, under the same name
        {"name": "b.txt"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_tokens_is_in_the_key(tmp_path, text, change, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "1", text)
    if "tokenizer" in change:
        (tmp_path / "tokenizer").mkdir()
        train_tokenizer(sentences(2, 200), 330).save(tmp_path / "tokenizer")
    if "texts" in change or "name" in change:
        text.unlink()
        text = write(text.with_name(change.pop("name", text.name)), change.pop("texts", TEXTS))
    assert not made(tmp_path / "2", text, **change)[2]
    assert made(tmp_path / "3", text, **change)[2]


def test_documentation_is_read_beside_the_text(tmp_path, text, monkeypatch):
    monkeypatch.setattr(prepared, "corpus_files", lambda packages: [("d.py", text)])
    monkeypatch.setattr(prepared, "default_corpus", lambda packages: sentences(3, 100))
    alone, both = made(tmp_path / "1", text), made(tmp_path / "2", text, documentation=True)
    assert not both[2]
    assert read_tokens(tmp_path / "2")["train"].size > read_tokens(tmp_path / "1")["train"].size
    assert alone[0].digest != both[0].digest


def test_where_the_text_lies_is_not_in_the_key(tmp_path, text):
    made(tmp_path / "1", text)
    shutil.copytree(text.parent, tmp_path / "elsewhere")
    assert made(tmp_path / "2", tmp_path / "elsewhere")[2]


def test_what_makes_the_tokens_is_in_the_key(tmp_path, text, monkeypatch):
    made(tmp_path / "1", text)
    monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)
    assert not made(tmp_path / "2", text)[2]
    monkeypatch.setattr(prepared.importlib.metadata, "version", lambda name: "9")
    assert not made(tmp_path / "3", text)[2]


def test_a_run_keeps_its_tokens_without_cache_and_text_but_is_refused_under_other_text(tmp_path, text, root):
    data, _, _ = made(tmp_path / "1", text)
    shutil.rmtree(root)
    text.unlink()
    again, notes, _ = made(tmp_path / "1", text)
    assert notes == []
    assert again.digest == data.digest
    for one, other in zip(data.validation(16, 4), again.validation(16, 4), strict=True):
        np.testing.assert_array_equal(one["encoder_ids"], other["encoder_ids"])
    write(text, TEXTS[::-1])
    with pytest.raises(fc.InputError, match=f"{text} has another content than the text that the run was begun with"):
        made(tmp_path / "1", text)
    # made anew it is another text, which no checkpoint of the run agrees with
    shutil.rmtree(tmp_path / "1")
    assert made(tmp_path / "1", text)[0].digest != data.digest


@pytest.mark.parametrize("left", [[], list(TOKENIZER_FILES[:1]), list(TOKENIZER_FILES)])
def test_what_was_cut_off_is_done_again(tmp_path, text, left):
    data, _, _ = made(tmp_path / "1", text)
    for name in left:
        (tmp_path / "2" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "2" / name).write_text("{}")
    assert made(tmp_path / "2", text)[0].digest == data.digest
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def replaced(path):
    """Another file under the name; the run's, which is the same file by another name, stays."""
    path.unlink()
    path.write_bytes(b"damaged")


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: replaced(entry / TOKENS),
        lambda entry: replaced(entry / TOKENIZER_FILES[1]),
        lambda entry: (entry / TOKENS).unlink(),
        lambda entry: (entry / cache.SUMS).unlink(),
        lambda entry: replaced(entry / cache.SUMS),
        lambda entry: (entry / cache.SUMS).write_text("[]"),
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path, text, root, damage):
    made(tmp_path / "1", text)
    (entry,) = root.iterdir()
    damage(entry)
    _, notes, cached = made(tmp_path / "2", text)
    assert not cached
    assert notes[0].startswith(f"{entry} is damaged")
    assert notes[0].endswith("it is made again")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert made(tmp_path / "3", text)[1:] == ([f"took the tokenized text from the cache ({entry.name[:8]})"], True)


def test_a_cache_that_cannot_be_written_is_said_and_the_runs_folder_is_enough(tmp_path, text, root):
    root.write_text("a file where the folder should be")
    for _ in range(2):
        data, notes, cached = made(tmp_path / "1", text)
        assert not cached
    assert notes == []  # the run has its files
    _, notes, _ = made(tmp_path / "2", text)
    assert notes[-1].startswith(f"the cache {root} cannot be written (File exists)")
    assert data.validation(16, 2)


def test_where_the_cache_is(tmp_path, text, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.setenv(cache.VARIABLE, "~/own")
    assert cache.cache_folder() == tmp_path / "home" / "own"
    monkeypatch.delenv(cache.VARIABLE)
    assert cache.cache_folder() == tmp_path / "xdg" / "deepfusion"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "deepfusion"
    monkeypatch.setenv(cache.VARIABLE, "")
    assert cache.cache_folder() is None
    for name in "12":
        assert not made(tmp_path / name, text)[2]
    assert not (tmp_path / "home").exists()


def test_a_copy_serves_where_a_link_cannot_be_made(tmp_path, text, monkeypatch):
    def refuse(*arguments):
        raise OSError("another file system")

    monkeypatch.setattr(cache.os, "link", refuse)
    made(tmp_path / "1", text)
    assert made(tmp_path / "2", text)[2]
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


PREPARE = """
import sys, pathlib
from fusion_core.text.prepared import TextSettings, prepare_tokens
text, folder = sys.argv[1:]
sys.stdin.readline()
prepare_tokens(TextSettings((text,), (), "", 320, 0.05, 0), pathlib.Path(folder), print)
"""


def test_processes_that_make_the_same_at_once_do_not_disturb_each_other(tmp_path, text, root):
    command = [sys.executable, "-c", PREPARE, str(text)]
    running = [
        subprocess.Popen([*command, str(tmp_path / str(i))], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for i in range(3)
    ]
    for process in running:
        process.communicate(b"\n", timeout=120)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(entries(root)) == 1
    assert made(tmp_path / "again", text)[2]


def test_an_entry_that_another_process_has_just_stored_stays(tmp_path, text, root, monkeypatch):
    @contextlib.contextmanager
    def slow(path, real=atomic.new_folder):
        with real(path) as temporary:
            yield temporary
            if path.parent == root:
                shutil.copytree(temporary, path)

    monkeypatch.setattr(atomic, "new_folder", slow)
    _, notes, _ = made(tmp_path / "1", text)
    assert notes[-1] == "tokenizing"
    assert len(entries(root)) == 1
    assert made(tmp_path / "2", text)[2]


# Streamed text


def test_the_tokenizer_of_a_streamed_text_is_kept_too(tmp_path, text, root, monkeypatch):
    monkeypatch.setattr(prepared, "LOOKED_AT", 30)
    data, notes, _ = made(tmp_path / "1", text, stream=True)
    assert notes == ["reading the text", "training the tokenizer, 320 pieces"]
    assert not (tmp_path / "1" / TOKENS).exists()
    monkeypatch.setattr(prepared, "train_tokenizer", fail)
    again, _, cached = made(tmp_path / "2", text, stream=True)
    assert cached
    assert again.digest == data.digest
    assert made(tmp_path / "2", text, stream=True)[1] == []
    # what comes after the documents that were looked at decides nothing of the tokenizer, but it is another text
    write(text, [*TEXTS, "more"])
    longer, _, cached = made(tmp_path / "3", text, stream=True)
    assert cached
    assert longer.tokenizer.backend.to_str() == data.tokenizer.backend.to_str()
    assert longer.digest != data.digest
    monkeypatch.undo()
    monkeypatch.setenv(cache.VARIABLE, str(root))
    assert not made(tmp_path / "4", write(text, TEXTS[::-1]), stream=True)[2]


def test_a_given_tokenizer_is_copied_for_a_streamed_text(tmp_path, text, root):
    (tmp_path / "own").mkdir()
    own = train_tokenizer(sentences(2, 200), 330)
    own.save(tmp_path / "own")
    data, notes, _ = made(tmp_path / "1", text, stream=True, tokenizer=str(tmp_path / "own"))
    assert notes == []
    assert data.tokenizer.backend.to_str() == own.backend.to_str()
    assert not root.exists()


def test_a_streamed_text_of_other_content_is_refused_under_any_name(tmp_path, text):
    """Also if size and both ends are equal; another name of the same file is no other text."""
    longer = [*TEXTS, *sentences(9, 200), *TEXTS]
    write(text, longer)
    data, _, _ = made(tmp_path / "1", text, stream=True)
    moved = text.rename(text.with_name("moved.txt"))
    assert made(tmp_path / "1", moved, stream=True)[0].digest == data.digest
    content = moved.read_text()
    middle = len(content) // 2
    moved.write_text(content[:middle] + ("y" if content[middle] == "x" else "x") + content[middle + 1 :])
    with pytest.raises(
        fc.InputError, match=r"moved.txt has .*another content than the text that the run was begun with"
    ):
        made(tmp_path / "1", moved, stream=True)
    assert made(tmp_path / "2", moved, stream=True)[0].digest != data.digest
    shutil.copy(moved, moved.with_name("more.txt"))
    with pytest.raises(fc.InputError, match="the text has 2 files, but the run was begun with 1"):
        made(tmp_path / "1", moved.parent, stream=True)


def test_a_streamed_text_that_is_replaced_between_nodes_is_refused(tmp_path, text):
    data, _, _ = made(tmp_path / "1", text, stream=True)
    assert data.training(16, 4, 0)
    write(text, TEXTS[::-1])
    with pytest.raises(fc.InputError, match=f"{text} has another content than the text that the run was begun with"):
        data.training(16, 4, 1)
    with pytest.raises(fc.InputError, match=f"{text} has another content"):
        data.validation(16, 4)


def test_a_large_text_is_known_by_blocks_of_it(tmp_path, monkeypatch):
    from fusion_core.text import documents

    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(documents, "WHOLE", 1000)
    before = documents.content_sums(paths)
    assert before[0] == before[1]
    for place in (0, (1 << 20) - 1):  # whatever is between, both ends are among the blocks
        data = bytearray(1 << 20)
        data[place] = 1
        paths[0].write_bytes(data)
        os.utime(paths[0], (place + 1, place + 1))
        assert documents.content_sums(paths)[0] != before[0]
    (tmp_path / "a").write_bytes(bytes((1 << 20) + 1))
    assert documents.content_sums(paths)[0] != before[0]


@pytest.mark.parametrize("stream", [False, True])
def test_fresh_batches_are_no_nodes_and_differ_by_their_number(tmp_path, text, stream):
    data, _, _ = made(tmp_path / "1", text, stream=stream)
    one, other, again = (data.fresh(16, 4, number, 2) for number in (10, 20, 10))
    node = next(data.training(16, 4, 0).batches(4))[0]
    ids = lambda batches: np.stack([batch["encoder_ids"] for batch in batches])
    np.testing.assert_array_equal(ids(one), ids(again))
    assert len(one) == 2
    for found in (other, [node, node]):
        assert not np.array_equal(ids(one), ids(found))


def test_damaged_tokens_of_a_run_are_refused(tmp_path, text):
    made(tmp_path / "1", text)
    replaced(tmp_path / "1" / TOKENS)
    with pytest.raises(fc.InputError, match=r"tokens\.npz cannot be read .*; remove .*, it is made again"):
        made(tmp_path / "1", text)


def test_the_plan_of_a_run_without_a_sample_is_that_of_earlier_versions():
    plan = read_plan(ROOT / "examples" / "plans" / "tiny.toml")
    assert "tokenizer_sample" not in plan_values(plan)["data"]
    sampled = dataclasses.replace(plan, data=dataclasses.replace(plan.data, tokenizer_sample=1000))
    assert plan_values(sampled)["data"] == plan_values(plan)["data"] | {"tokenizer_sample": 1000}
