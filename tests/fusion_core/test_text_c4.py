"""Streams through the datasets library, on small files of C4's schema: no network."""

import gzip
import itertools
import json
import sys

import pytest

import fusion_core as fc
from fusion_core.text import StreamedSpans
from fusion_core.text.c4 import Streamed, c4
from fusion_core.text.documents import Documents
from tests.strategies.texts import documents, tokenizer

pytest.importorskip("datasets", reason="needs the extra c4")

TEXTS = documents(seed=4, n=24, length=3)
TOKENIZER = tokenizer()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files as C4 has 1,024: lines of text, timestamp and url."""
    folder = tmp_path_factory.mktemp("c4")
    paths = []
    for i in range(3):
        paths.append(folder / f"c4-train.{i:05}-of-00003.json.gz")
        with gzip.open(paths[-1], "wt", encoding="utf-8") as file:
            for text in TEXTS[8 * i : 8 * i + 8]:
                example = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/a"}
                file.write(json.dumps(example) + "\n")
    return paths


def test_the_documents_come_in_order_and_go_on_after_any(files):
    corpus = c4(files=files)
    assert isinstance(corpus, Documents)
    found = list(corpus.read(0, 0))
    assert [text for text, _ in found] == TEXTS
    for i in (0, 6, 7, 8, 20, 23):
        position = json.loads(json.dumps(found[i][1]))
        assert [text for text, _ in corpus.read(0, 0, position)] == TEXTS[i + 1 :]


def test_going_on_again_and_again_loses_nothing(files):
    """The library's state after going on is not the one of going through, but means the same."""
    corpus, position, found = c4(files=files), None, []
    for _ in range(len(TEXTS)):
        text, position = next(corpus.read(0, 0, position))
        found.append(text)
    assert found == TEXTS


def test_batches_go_on_identically_and_the_state_is_small(files):
    source = StreamedSpans(c4(files=files), TOKENIZER, 64, 0, block_documents=7)
    batches = list(itertools.islice(source.batches(8), 12))
    state = json.loads(json.dumps(batches[5][1]))
    assert state["from"]["position"]
    assert len(json.dumps(state)) < 2000
    for (batch, after), (other, later) in zip(batches[6:], source.batches(8, state), strict=False):
        assert after["lanes"] == later["lanes"]
        for name in batch:
            assert (batch[name] == other[name]).all()


def test_c4_is_asked_for_as_the_hub_has_it(monkeypatch, files):
    """The call for the network's C4, answered from files."""
    import datasets

    real, asked = datasets.load_dataset, []

    def load(*words, **settings):
        asked.append((words, settings))
        return real("json", data_files=[str(files[0])], split="train", streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [text for text, _ in c4("validation").read(0, 0)] == TEXTS[:8]
    assert asked == [(("allenai/c4", "en"), {"split": "validation", "streaming": True})]


def test_corpora_are_told_apart(files):
    prints = [c4(files=files), c4(files=files[:2]), c4(), c4("validation"), c4(config="de")]
    assert len({corpus.fingerprint() for corpus in prints}) == 5


def test_bad_files_are_refused(tmp_path, files):
    with pytest.raises(fc.InputError, match=r"there is no file .*absent\.json\.gz; give C4's"):
        c4(files=[tmp_path / "absent.json.gz"])
    with pytest.raises(fc.InputError, match="there is no file"):
        c4(files=[])
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(files[0].read_bytes()[:-30])
    with pytest.raises(fc.InputError, match=r"c4 of cut\.json\.gz:\d+ cannot be read after 0 documents from here"):
        list(c4(files=[cut]).read(0, 0))
    bad = tmp_path / "bad.json"
    bad.write_text("not json\n")
    with pytest.raises(fc.InputError, match="cannot be read after 0 documents"):
        list(c4(files=[bad]).read(0, 0))


def test_another_column_must_be_named(files):
    import datasets

    def load():
        return datasets.load_dataset("json", data_files=[str(files[0])], split="train", streaming=True)

    with pytest.raises(fc.InputError, match=r"x has no text in column body .*: text, timestamp, url"):
        next(Streamed("x", load, "body").read(0, 0))
    assert next(Streamed("x", load, "url").read(0, 0))[0] == "https://example.org/a"


def test_a_network_that_is_not_there_is_said(monkeypatch):
    import datasets

    def fail(*words, **settings):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        fc.InputError, match=r"allenai/c4 en train cannot be read after 0 .*\(no route\); check the files"
    ):
        next(c4().read(0, 0))


def test_a_missing_library_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(fc.InputError, match=r"needs the package datasets; pip install 'deepfusion\[c4\]'"):
        c4()
