"""The time to the first step: text to batches, and a tiny T5 compiled, against the pieces of nanoT5's pipeline.

Both sides read the same JSON lines, train a unigram tokenizer of as many pieces, tokenize every document with an end token
after it, join the tokens, and draw the first batch of span corruption. Ours: ``RunData``. nanoT5's pieces: ``tokenizers``'
``UnigramTrainer``, ``datasets``' JSON reader and ``map`` (its cache is the second run's) in batches on all cores, tokens joined
and cut into windows as its ``tokenize_function`` does. Its tokenizer is a downloaded one, which takes no time: its row
without the training is given too. The masks of a batch are ours on both sides.

Then, in new processes, ``deepfusion train --timings`` of a tiny T5 on the same text, first with empty caches, then again.

Needs ``deepfusion[benchmarks]`` for nanoT5's side; without it, ours alone is measured. ``--json FILE`` (``-`` for the
terminal) writes the numbers. Seconds on the clock depend on what else the machine does; seconds of its processors hardly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.output import hand_over
from fusion_core.provenance import provenance
from fusion_core.runs.data import RunData
from fusion_core.runs.settings import DataSettings
from fusion_core.text import SpanCorruption, Tokenizer, default_corpus, read_documents
from fusion_core.text.cache import VARIABLE
from fusion_core.text.sources import first_batches
from fusion_core.text.tokenizer import SENTINELS
from fusion_core.text.words import t5_pipeline

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ALL = "ours, all text for the tokenizer"  # as nanoT5's
PLAN = """
name = "first-step"
[data]
text = ["{text}"]
vocab = {vocabulary}
tokenizer_sample = {sample}
[defaults]
batch = {batch}
length = {length}
optimizer = {{ name = "adafactor", rate = 0.02 }}
cadence = {{ log = 10, evaluate = 10, checkpoint = 10 }}
[node.a]
model = {{ d_model = 64, d_kv = 16, d_ff = 256, num_heads = 4, num_layers = {layers}, num_decoder_layers = {layers} }}
steps = 10
"""


@contextlib.contextmanager
def caches(folder: pathlib.Path) -> Iterator[None]:
    """Let both sides keep what they cache in a folder."""
    names = {VARIABLE: str(folder / "ours"), "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Return the seconds of ``work``, on the clock and of the processors, and its result."""
    processor = lambda: sum(os.times()[:4])
    clock, spent = time.perf_counter(), processor()
    result = work()
    return {"seconds": time.perf_counter() - clock, "processor_seconds": processor() - spent}, result


def ours(text: pathlib.Path, folder: pathlib.Path, sizes: dict[str, int], sample: int) -> Any:
    """Prepare the text of a run, and draw its first batch."""
    settings = DataSettings(text=(str(text),), vocab=sizes["vocabulary"], tokenizer_sample=sample)
    data = RunData(settings, 0, folder, lambda line: None)
    return next(data.training(sizes["length"], sizes["batch"], 0).batches(sizes["batch"]))[0]


def nanot5(text: pathlib.Path, folder: pathlib.Path, sizes: dict[str, int], trained: pathlib.Path) -> Any:
    """Do the same with ``tokenizers`` and ``datasets``; the tokenizer in ``trained`` is taken, or trained if there is none."""
    import datasets
    import tokenizers
    from tokenizers import trainers

    datasets.disable_progress_bars()
    read = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder))
    if not trained.exists():
        special = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{i}>" for i in reversed(range(SENTINELS)))]
        backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
        t5_pipeline(backend, "</s>", 1)
        trainer = trainers.UnigramTrainer(
            vocab_size=sizes["vocabulary"] + SENTINELS, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        backend.train_from_iterator((batch["text"] for batch in read.iter(1000)), trainer, length=len(read))
        backend.save(str(trained))
    backend = tokenizers.Tokenizer.from_file(str(trained))

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [found.ids for found in backend.encode_batch(batch["text"])]}

    tokens = read.map(tokenize, batched=True, remove_columns=read.column_names)
    joined = np.concatenate([np.asarray(ids, np.int32) for ids in tokens.with_format("arrow")["input_ids"].to_pylist()])
    source = SpanCorruption.from_documents([joined], Tokenizer(backend), sizes["length"], 0)
    return first_batches(source, sizes["batch"], 1)[0]


def first_steps(text: pathlib.Path, folder: pathlib.Path, sizes: dict[str, int], sample: int, layers: int) -> Any:
    """Return the timings of ``deepfusion train`` up to its first step, in new processes: with empty caches, then again."""
    folder.mkdir()
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(text=text, sample=sample, layers=layers, **sizes), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    found = {}
    for run in ("first", "second"):
        command = [
            sys.executable,
            "-m",
            "deepfusion",
            "train",
            str(plan),
            "--out",
            str(folder / run),
            "--timings",
            "--json",
        ]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the {run} run ended with {done.returncode}: {done.stderr[-500:]}")
        found[run] = json.loads(done.stdout)["timings"]
    return found


def compute(
    documents: list[str], sizes: dict[str, int], sample: int, repeats: int, layers: int,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:  # fmt: skip
    """Return all measurements on these documents, as JSON."""
    config = {**sizes, "sample": sample, "repeats": repeats, "layers": layers, "cores": CORES}
    facts = {"documents": len(documents), "characters": sum(map(len, documents))}
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="first-") as name:
        folder = pathlib.Path(name)
        text = folder / "text.jsonl"
        text.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents), encoding="utf-8")
        for i in range(repeats):
            place = folder / str(i)
            trained = place / "theirs.json"
            work = {
                "ours": lambda p=place: ours(text, p / "a", sizes, sample),
                ALL: lambda p=place: ours(text, p / "b", sizes, 0),
                "ours, again": lambda p=place: ours(text, p / "c", sizes, sample),
                "nanoT5's": lambda p=place, t=trained: nanot5(text, p / "d", sizes, t),
                "nanoT5's, tokenizer given": lambda p=place, t=trained: nanot5(text, p / "e", sizes, t),
                "nanoT5's, again": lambda p=place, t=trained: nanot5(text, p / "d", sizes, t),
            }
            with caches(place):
                place.mkdir()
                for what, do in work.items():
                    report(f"{what} ({i + 1} of {repeats})")
                    try:
                        rows.setdefault(what, []).append(timed(do)[0])
                    except ImportError:
                        continue
        median = {
            what: {key: statistics.median(row[key] for row in found) for key in found[0]}
            for what, found in rows.items()
            if found
        }
        report("the first step of a tiny T5")
        with caches(folder / "steps"):
            steps = first_steps(text, folder / "train", sizes, sample, layers)
    pairs = [
        (ALL, "nanoT5's"),
        ("ours", "nanoT5's"),
        ("ours", "nanoT5's, tokenizer given"),
        ("ours, again", "nanoT5's, again"),
    ]
    ratios = {
        f"{b} / {a}": {key: median[b][key] / median[a][key] for key in median[a]} for a, b in pairs if b in median
    }
    return {
        "config": config | facts,
        "provenance": provenance(),
        "text": median,
        "ratio": ratios,
        "first_step": steps,
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as tables."""
    line = lambda name, found, form: f"| {name} | {found['seconds']:{form}} | {found['processor_seconds']:{form}} |"
    lines = ["| text to the first batch | s | processor s |", "|---|---|---|"]
    lines += [line(name, found, ".2f") for name, found in result["text"].items()]
    lines += [line(name, found, ".2f") for name, found in result["ratio"].items()]
    for run, found in result["first_step"].items():
        lines += ["", f"| to the first step, {run} run | s | processor s |", "|---|---|---|"]
        seconds, processor = found["seconds"], found["processor_seconds"]
        lines += [f"| {name} | {value:.2f} | {processor[name]:.2f} |" for name, value in seconds.items()]
        lines += [f"| all | {sum(seconds.values()):.2f} | {sum(processor.values()):.2f} |"]
        lines += [f"| of these {name} | {value:.2f} | |" for name, value in found["of_these_compiling"].items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_step", description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", help="files or folders; default: the installed packages' documentation")
    parser.add_argument("--vocabulary", type=int, default=512, help="pieces of the tokenizer (default 512)")
    parser.add_argument(
        "--sample", type=int, default=2_000_000, help="characters it is trained on (default 2,000,000; 0: all)"
    )
    parser.add_argument("--length", type=int, default=128, help="length of a source (default 128)")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    documents = read_documents(arguments.text) if arguments.text else default_corpus(*[()] if arguments.smoke else [])
    sizes = {name: getattr(arguments, name) for name in ("vocabulary", "length", "batch")}
    sample, repeats, layers = arguments.sample, arguments.repeats, 2
    if arguments.smoke:
        documents, repeats, layers = documents[:60], 1, 1
        sizes, sample = {"vocabulary": 300, "length": 32, "batch": 4}, 20_000
    with Console(stderr=True).status("") as status:
        result = compute(documents, sizes, sample, repeats, layers, report=lambda what: status.update(what))
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
