"""Targets that read checkpoints, tokenizers and texts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np

from fusion_core.errors import InputError
from tests.fuzz import bases, mutations
from tests.fuzz.frame import Run, case, folders, placed, target, unpacked

# checkpoints


def _parts(names: Sequence[str], which: str, shards: int = 1) -> Callable[[], list[bytes]]:
    return lambda: [bases.checkpoint(name, shards)[which] for name in names]


SOME = ("T5", "Llama, yarn", "GPT-2")
EVERY = tuple(bases.ARCHITECTURES)


@target("safetensors", _parts(SOME, "model.safetensors"), mutations.safetensors_file)
def safetensors(data: bytes) -> None:
    from fusion_core.checkpoints.ranges import FLOATS, Reader, read_header

    with Reader() as reader:
        for entry in read_header(placed("model.safetensors", data)).values():
            if entry.dtype in FLOATS:
                reader.whole(entry)


@target("index", _parts(["T5"], "model.safetensors.index.json", 2), mutations.json_file)
def index(data: bytes) -> None:
    from fusion_core.checkpoints.checkpoint import read_entries

    folder = bases.written(case(), bases.checkpoint("T5", 2))
    (folder / "model.safetensors.index.json").write_bytes(data)
    assert read_entries(folder)


@target("config", bases.configs, mutations.json_file)
def config(data: bytes) -> None:
    """Of every architecture; a configuration that is read can be written, and what is written is the same again."""
    from fusion_core.checkpoints.checkpoint import check_kind, read_config
    from fusion_core.models.registry import MODEL_TYPES, architecture, config_from_json

    folder = placed("config.json", data).parent
    values = read_config(folder)
    check_kind(values, str(folder / "config.json"))
    read = config_from_json(values, str(folder / "config.json"))
    hash(read)
    record = architecture(read)
    assert record.files is not None
    assert record.files.model_type in MODEL_TYPES
    written = lambda config: json.loads(json.dumps(record.files.write_config(config), allow_nan=False))
    again = written(read)
    assert written(config_from_json(dict(again))) == again


@target("checkpoint", lambda: folders(EVERY, ("config.json", "model.safetensors")), mutations.one_file(
    [mutations.json_file, mutations.safetensors_file] * len(EVERY)
))  # fmt: skip
def checkpoint(data: bytes) -> None:
    """A folder, of which one file is changed: opened, described and read whole."""
    from fusion_core.checkpoints import describe

    folder = unpacked(data, EVERY, ("config.json", "model.safetensors"), case())
    json.dumps(describe(folder), allow_nan=False)


@target("load_pretrained", lambda: folders(SOME, ("config.json", "model.safetensors")), mutations.one_file(
    [mutations.json_file, mutations.safetensors_file] * len(SOME)
), slow=True)  # fmt: skip
def load_pretrained(data: bytes) -> None:
    from fusion_core.checkpoints.pretrained import load_pretrained as load

    load(unpacked(data, SOME, ("config.json", "model.safetensors"), case()))


# tokenizers


def _used(loaded: Any) -> None:
    """Use a tokenizer as runs do."""
    assert loaded.vocab_size >= 0
    ids = loaded.encode(["A word, and <extra_id_0> another one.", "", "日本 🙂"])
    loaded.special.check_sentinels()
    loaded.decode(np.concatenate(ids))


@target("tokenizer_json", lambda: [bases.tokenizer_files()["tokenizer.json"]], mutations.json_file)
def tokenizer_json(data: bytes) -> None:
    from fusion_core.text import Tokenizer

    _used(Tokenizer.load(placed("tokenizer.json", data)))


@target("tokenizer_config", lambda: [bases.tokenizer_files()["tokenizer_config.json"]], mutations.json_file)
def tokenizer_config(data: bytes) -> None:
    from fusion_core.text import Tokenizer

    folder = bases.written(case(), bases.tokenizer_files())
    (folder / "tokenizer_config.json").write_bytes(data)
    _used(Tokenizer.load(folder))


@target("sentencepiece", lambda: [bases.sentencepiece_model()], mutations.protocol_buffer)
def sentencepiece(data: bytes) -> None:
    from fusion_core.text import Tokenizer

    _used(Tokenizer.load(placed("spiece.model", data)))


VOCABULARY = (
    b'{"<pad>": 0, "a": 1, "b": 2, "ab": 3}', b"#version: 0.2\na b\n", b'{"<x>": 4}',
    b'{"added_tokens_decoder": {"0": {"content": "<pad>"}}}',
)  # fmt: skip
VOCABULARY_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")


@target("vocabulary", lambda: [bytes([i]) + content for i, content in enumerate(VOCABULARY)], mutations.one_file(
    [mutations.json_file, mutations.text_file, mutations.json_file, mutations.json_file]
))  # fmt: skip
def vocabulary(data: bytes) -> None:
    """Tokenizers of several files are compared by what they compute."""
    from fusion_core.text.sameness import difference, meaning

    folder, which = case(), data[0] % len(VOCABULARY) if data else 0
    bases.written(folder, dict(zip(VOCABULARY_FILES, VOCABULARY, strict=True)))
    other = meaning(folder / "vocab.json")
    (folder / VOCABULARY_FILES[which]).write_bytes(data[1:])
    difference(meaning(folder / "vocab.json"), other)


@target("same_tokenizer", lambda: [bases.tokenizer_files()["tokenizer.json"]], mutations.json_file)
def same_tokenizer(data: bytes) -> None:
    from fusion_core.text.sameness import difference, meaning

    path = placed("tokenizer.json", bases.tokenizer_files()["tokenizer.json"])
    other = meaning(path)
    path.write_bytes(data)
    difference(meaning(path), other)


# text


def _text(suffix: str) -> Run:
    def run(data: bytes) -> None:
        from fusion_core.text import TextFiles, read_documents

        path = placed(f"text{suffix}", data)
        try:
            read_documents([path])
        except InputError:  # a stream cuts what is too long to be held
            for number, _ in enumerate(TextFiles([path]).read(0, 0)):
                if number == 1000:
                    break
            raise

    return run


for _suffix, _base, _mutation in (
    (".txt", ".txt", mutations.text_file),
    (".jsonl", ".jsonl", mutations.json_lines),
    (".txt.gz", ".txt", mutations.packed(mutations.text_file, "gz")),
    (".jsonl.zst", ".jsonl", mutations.packed(mutations.json_lines, "zst")),
):
    _packed = lambda base=_base, kind=_suffix.rpartition(".")[2]: [
        mutations.compress(kind, bases.texts()[base]) if kind in ("gz", "zst") else bases.texts()[base]
    ]
    target(f"text{_suffix}", _packed, _mutation)(_text(_suffix))
target("text.parquet", lambda: [bases.texts()[".parquet"]], mutations.flipped)(_text(".parquet"))


@target("large.parquet", lambda: [bases.texts()[".parquet"]], mutations.flipped)
def large_parquet(data: bytes) -> None:
    """A ``.parquet`` that is read as those of more than ``WITHOUT_BUFFER`` bytes are."""
    with mock.patch("fusion_core.text.files.WITHOUT_BUFFER", 0):
        _text(".parquet")(data)


def _task(name: str) -> Run:
    def run(data: bytes) -> None:
        from fusion_core.text.tasks import TASKS

        task = TASKS[name]
        found = task.examples(placed("rows.tsv", data))
        task.scores([one.target for one in found], [one.source[:20] for one in found])

    return run


for _name, _rows in bases.GLUE.items():
    target(f"glue_{_name}", lambda rows=_rows: [rows.encode()], mutations.table_file)(_task(_name))

ROWS = b'{"sentence": "it is fine", "label": 1}\n{"sentence": "no", "label": "negative"}\n'


@target("rows.jsonl", lambda: [ROWS], mutations.json_lines)
def rows_jsonl(data: bytes) -> None:
    from fusion_core.text.tasks import TASKS, custom_task

    path = placed("rows.jsonl", data)
    for task in (TASKS["sst2"], TASKS["stsb"], custom_task("sentence", "label")):
        with contextlib.suppress(InputError):
            task.examples(path)
    TASKS["sst2"].examples(path)
