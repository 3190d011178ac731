"""Valid inputs, from which the mutations begin: tiny, made without JAX, and made once a process."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import safetensors.numpy
import sentencepiece

from tests.strategies.hub import ARCHITECTURES
from tests.strategies.laws import GROWN, SHORT, pretend_run, write_plan
from tests.strategies.plans import ARMS, BUDGET, HEAD, MODEL, SOURCES
from tests.strategies.plans import GROWN as FUSED
from tests.strategies.texts import documents, sentences, tokenizer

GROW = '[node.wide]\nfrom = "a"\noperator = "net2net_width"\nwidth = { d_ff = 24 }\nnoise = 0.1\nseed = 1\n'
FULL = f"""
seeds = [0, 1]
measure = false
{HEAD}
schedule = {{ kind = "rsqrt", warmup = 10 }}
compute = {{ dtype = "bfloat16" }}
[node.a]
model = {MODEL}
steps = 20
arm = "one"
"""
PLANS = (HEAD + SOURCES + FUSED, BUDGET + ARMS, FULL, HEAD + SOURCES + GROW)


@functools.cache
def tokenizer_files() -> dict[str, bytes]:
    """A tokenizer that was trained here: name -> content."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer().save(pathlib.Path(folder))
        return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


@functools.cache
def sentencepiece_model() -> bytes:
    """A unigram model of sentencepiece with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(0, 100)), model_writer=model, model_type="unigram", vocab_size=300,
        byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return model.getvalue()


def _config(name: str) -> dict[str, object]:
    kind, values = ARCHITECTURES[name]
    own = {"vocab_size": tokenizer().vocab_size} if name == "T5" else {}
    return (
        {"model_type": kind, **values, "num_layers": 1, **own}
        if kind.endswith("t5")
        else {"model_type": kind, **values}
    )


@functools.cache
def configs() -> tuple[bytes, ...]:
    """The ``config.json`` of every architecture."""
    return tuple(json.dumps(_config(name)).encode() for name in ARCHITECTURES)


@functools.cache
def checkpoint(name: str, shards: int = 1) -> dict[str, bytes]:
    """A checkpoint of an architecture with random weights: name -> content; T5 has a tokenizer."""
    from fusion_core.models.registry import config_from_json, layouts

    values, rng = _config(name), np.random.default_rng(0)
    shapes = {name: layout.shape for name, layout in layouts(config_from_json(dict(values))).items()}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    files = {"config.json": json.dumps(values).encode()} | (tokenizer_files() if name == "T5" else {})
    if shards == 1:
        return files | {"model.safetensors": safetensors.numpy.save(tensors)}
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        files[file] = safetensors.numpy.save({name: tensors[name] for name in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], file)
    return files | {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def written(folder: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
    """Write files into a folder, which is made if it is not there; return it."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@functools.cache
def texts() -> dict[str, bytes]:
    """A text of every kind: suffix -> content."""
    import pyarrow
    import pyarrow.parquet

    some = [text.replace("an", "ä") for text in documents(0, 6, 3)]
    table, parquet = pyarrow.table({"text": some, "id": list(range(6))}), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet, row_group_size=4)
    lines = (
        "\n".join(json.dumps({"text": text, "id": i}, ensure_ascii=i % 2 == 0) for i, text in enumerate(some)) + "\n"
    )
    return {
        ".txt": "\n\n\n".join(some).encode(),
        ".jsonl": lines.encode(),
        ".parquet": parquet.getvalue(),
    }


GLUE = {
    "cola": "gj04\t1\t\tA sentence.\nks08\t0\t*\tBad a is it.\n",
    "sst2": "sentence\tlabel\nit is fine\t1\nit is not\t0\n",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t10\t11\tOne text.\tAnother.\n0\t12\t13\tA\tB\n",
    "stsb": "index\tsentence1\tsentence2\tscore\n0\tA plane.\tAn air plane.\t5.000\n1\ta\tb\t0.2\n",
    "qqp": "id\tquestion1\tquestion2\tis_duplicate\n1\tWhy?\tWhy so?\t1\n2\ta\tb\t0\n",
    "mnli": "index\tsentence1\tsentence2\tgold_label\n0\ta\tb\tneutral\n1\tc\td\t-\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
}


@functools.cache
def growth_file() -> bytes:
    """The ``growth.json`` of a fusion of two T5s."""
    from fusion_core import checkpoints

    with tempfile.TemporaryDirectory() as place:
        source = checkpoints.open_checkpoint(written(pathlib.Path(place) / "a", checkpoint("T5")))
        event = checkpoints.Event(weights=(0.5, 0.5), equal=False)
        return json.dumps(checkpoints.growth_record([source, source], event).json()).encode()


@functools.cache
def run_files() -> tuple[bytes, dict[str, bytes]]:
    """A plan file and the folder of a finished run of it that a law can be fitted to: (plan, name -> content)."""
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        plan = write_plan(folder, SHORT + GROWN.format(model=MODEL, steps=200))
        run = pretend_run(plan, folder / "run")
        files = {path.name: path.read_bytes() for path in sorted(run.iterdir())}
        return plan.read_bytes(), {name: content.replace(place.encode(), HERE) for name, content in files.items()}


HERE = b"@HERE@"  # the folder of the plan, in its run
TEXT = "\n\n\n".join(documents(0, 60)).encode()  # the text of those plans


@functools.cache
def laws() -> tuple[bytes, ...]:
    """Saved laws of every kind that the run's curves allow."""
    from fusion_core.runs import fit_runs, read_plan

    plan, files = run_files()
    found = []
    with tempfile.TemporaryDirectory() as place, mock.patch("fusion_core.runs.law.text_of", return_value="text"):
        folder = written(pathlib.Path(place), {"plan.toml": plan, "text.txt": TEXT})
        run = written(folder / "run", {name: content.replace(HERE, place.encode()) for name, content in files.items()})
        for kind in ("curves",):
            fit_runs(read_plan(folder / "plan.toml"), [run], kind=kind, draws=3).save(folder / f"{kind}.json")
            found.append((folder / f"{kind}.json").read_bytes())
    return tuple(found)


def trials() -> tuple[bytes, ...]:
    """The rule of trials, before its first trial and after it."""
    from fusion_core.schedule import TrialRule

    rule = TrialRule.start(sources=2, small_flops=4e8, grown_flops=1e9, total_flops=4e12, batches=8, dispatch=10)
    losses = np.exp(np.random.default_rng(0).normal(1.0, 0.1, (2, 3, 8)))
    later = rule.decide(rule.next_decision, small=losses[:, :2], grown=losses[:, 2])
    found = []
    with tempfile.TemporaryDirectory() as place:
        for one in (rule, later):
            one.save(pathlib.Path(place) / "rule.json")
            found.append((pathlib.Path(place) / "rule.json").read_bytes())
    return tuple(found)


def states(state: object) -> tuple[bytes, ...]:
    """A training state as a file."""
    from fusion_core.train.state_files import save_state

    with tempfile.TemporaryDirectory() as place:
        save_state(pathlib.Path(place) / "state", state, position=[1, 2])
        return ((pathlib.Path(place) / "state").read_bytes(),)


def tokens() -> tuple[bytes, ...]:
    """The tokens of a run."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, train=np.arange(50, dtype=np.int32), validation=np.arange(9, dtype=np.int32))
    return (file.getvalue(),)


def finetune_settings(given: dict[str, object]) -> tuple[bytes, ...]:
    """The settings of a fine-tuning run."""
    from fusion_core.runs.finetune import settings_from

    return (json.dumps(dataclasses.asdict(settings_from(given))).encode(),)


def demo_settings() -> tuple[bytes, ...]:
    """The settings of a run of the demo."""
    from deepfusion.commands.demo import DemoSettings

    return (json.dumps(dataclasses.asdict(DemoSettings())).encode(),)


RECORD = {
    "format": 1, "name": "x", "plan": "name = 'x'", "text": None, "provenance": [{"commit": None}], "scores": {},
    "seeds": {"0": {"a": {"kind": "train", "inputs": [], "step": 1, "validation_loss": [[1, 2.5]]}}},
}  # fmt: skip


def figures() -> tuple[bytes, ...]:
    """The numbers of a figure."""
    from paper_figures.results import Results

    arrays = {"loss": np.asarray([[1.0, np.nan], [2.0, np.inf]]), "empty": np.zeros(0)}
    with tempfile.TemporaryDirectory() as place:
        Results("x", "smoke", 0, {"a": 1}, arrays, 1.0, "2026", {"jax": "1"}, "cpu", None).save(
            pathlib.Path(place) / "x"
        )
        return ((pathlib.Path(place) / "x").read_bytes(),)
