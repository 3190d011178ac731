"""Documents in memory: folders and files, the split, the documentation of the installed packages."""

import gzip
import random

import pytest

import fusion_core as fc
from fusion_core.text import TextFiles, corpus, read_documents, split_documents
from tests.strategies.texts import documents

# Files


def test_a_folder_is_read_in_the_order_of_its_paths_and_other_files_are_passed_over(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "sub" / "a.md").write_text("sub a")
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write("zipped ä")
    (tmp_path / "c.jsonl").write_text('{"text": "json"}\n')
    assert read_documents([str(tmp_path)]) == ["zipped ä", "b", "json", "sub a"]


@pytest.mark.parametrize("read", [read_documents, TextFiles])
def test_paths_that_are_missing_or_without_text_are_refused(tmp_path, read):
    (tmp_path / "a.png").write_bytes(b"x")
    for path, message in (
        (tmp_path / "absent", "there is no file or folder .*absent; check the path"),
        (tmp_path, r"no text in .*\(0 files read\).*\.txt.*\.jsonl .or these with \.gz"),
    ):
        with pytest.raises(fc.InputError, match=message) as caught:
            read([path])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", " \n\t\n\n\n\n"])
def test_text_that_is_empty_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(fc.InputError, match=r"no text in .*a\.txt \(1 files read\)"):
        read_documents([tmp_path / "a.txt"])


def test_a_single_string_is_no_list_of_paths(tmp_path):
    with pytest.raises(fc.InputError, match="give a list of paths"):
        TextFiles(str(tmp_path))


# The split

TEXTS = documents(seed=0, n=400, length=1)


def test_the_split_keeps_documents_whole_and_every_one_on_one_side():
    train, validation = split_documents(TEXTS, 0.1, seed=0)
    assert sorted(train + validation) == sorted(TEXTS)
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / len(TEXTS) < 0.15


def test_the_split_depends_on_seed_and_content_alone():
    _, validation = split_documents(TEXTS, 0.1, seed=0)
    assert split_documents(TEXTS, 0.1, seed=0)[1] == validation
    assert split_documents(TEXTS, 0.1, seed=1)[1] != validation
    shuffled = random.Random(0).sample(TEXTS, len(TEXTS))
    assert sorted(split_documents(shuffled, 0.1, seed=0)[1]) == sorted(validation)
    # a document more moves no other
    assert [t for t in split_documents([*TEXTS, "another"], 0.1, seed=0)[1] if t != "another"] == validation


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_documents_have_both_sides(n):
    texts = documents(seed=1, n=n, length=20)
    for seed in range(5):
        for fraction in (0.05, 0.95):
            train, validation = split_documents(texts, fraction, seed)
            assert min(map(len, train)) > 0 < min(map(len, validation))
            assert sum(map(len, train + validation)) == sum(map(len, texts))


# The default corpus


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Stands for the installed packages: sources with docstrings, texts, and what is not to be read."""
    long = "A sentence that says something. " * 10
    (tmp_path / "tests").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.py").write_text(
        f'"""Module. {long}"""\ndef f():\n    """Function.\n\n    Indented."""\n    return "no"\n'
    )
    (tmp_path / "a.rst").write_text(f"Text. {long}\n")
    (tmp_path / "sub" / "copy.rst").write_text(f"Text.  {long}\n\n")
    (tmp_path / "sub" / "latin.py").write_bytes(f'# -*- coding: latin-1 -*-\n"""Grün. {long}"""\n'.encode("latin-1"))
    (tmp_path / "broken.py").write_text('"""Broken."""\ndef f(:\n')
    (tmp_path / "binary.md").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.py").write_text('"""Short."""\n')
    (tmp_path / "tests" / "t.py").write_text(f'"""Test. {long}"""\n')
    (tmp_path / "data.csv").write_text(long)
    monkeypatch.setattr(corpus, "default_folders", lambda packages: [tmp_path])
    return tmp_path


def test_the_default_corpus_is_docstrings_and_texts_in_order_without_repetitions(library):
    found = corpus.default_corpus(packages=())
    assert [text.split()[0] for text in found] == ["Text.", "Module.", "Grün."]
    assert found[1].endswith("Function.\n\nIndented.")
    assert corpus.default_corpus(packages=()) == found


def test_the_files_of_the_default_corpus_are_named_below_their_folder(library):
    assert [name.removeprefix(f"{library.name}/") for name, _ in corpus.corpus_files(())] == [
        "a.rst", "b.py", "binary.md", "broken.py", "short.py", "sub/copy.rst", "sub/latin.py"
    ]  # fmt: skip


def test_the_default_corpus_comes_from_the_standard_library_and_from_what_is_installed():
    folders = corpus.default_folders(("numpy", "no_such_package_at_all"))
    assert [folder.name for folder in folders[1:]] == ["numpy"]
    assert (folders[0] / "json" / "__init__.py").exists()
