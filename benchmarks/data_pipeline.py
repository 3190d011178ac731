"""Speed of making batches from text, against a corpus held in memory, and the share of time that the device waits.

``python -m benchmarks.data_pipeline`` writes the documentation of the installed packages (or ``--text``) as one file of
each format, and measures, in processor time of one core (the tokenizer's threads are off):

- reading each format, and tokenising alone, which limits the rest;
- ``StreamedSpans`` packed and joined: source tokens of the batches a second, and how full packed rows are, against one
  document a row;
- ``SpanCorruption``, the plain source of windows held in memory: the same, once with tokenising and once without;
- ``prepare_tokens``, the tokens of a run: made (reading, training the tokenizer, tokenising) and taken from the cache;
- ``prefetch``: the share of its time that a device waits whose step takes 2 or 5 times the time of making a batch (a sleep
  takes the device's place), without prefetching and with 2 or 8 batches ahead. This is wall time, which other work on the
  machine changes.

``--json FILE`` (``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.output import hand_over
from fusion_core.provenance import provenance
from fusion_core.text import (
    SpanCorruption,
    StreamedSpans,
    TextFiles,
    Tokenizer,
    default_corpus,
    packing_efficiency,
    prefetch,
    read_documents,
    train_tokenizer,
)
from fusion_core.text.cache import VARIABLE
from fusion_core.text.packing import windows_of
from fusion_core.text.prepared import TextSettings, prepare_tokens
from fusion_core.text.span_corruption import corrupted_lengths

Batches = Iterator[tuple[dict[str, np.ndarray], Any]]


def write_formats(folder: pathlib.Path, documents: list[str]) -> dict[str, pathlib.Path]:
    """Write the documents as one file of each format whose package is installed."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    plain = "\n\n\n".join(" ".join(text.split()) for text in documents).encode()
    files = {".txt": plain, ".jsonl": lines, ".jsonl.gz": gzip.compress(lines, 6, mtime=0)}
    try:
        import zstandard

        files[".jsonl.zst"] = zstandard.ZstdCompressor().compress(lines)
    except ImportError:
        pass
    paths = {}
    for suffix, data in files.items():
        paths[suffix] = folder / suffix[1:] / f"text{suffix}"
        paths[suffix].parent.mkdir()
        paths[suffix].write_bytes(data)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return paths
    paths[".parquet"] = folder / "parquet" / "text.parquet"
    paths[".parquet"].parent.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), paths[".parquet"], row_group_size=1000)
    return paths


def cpu(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median of the processor seconds of ``work``, and its result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds), result


def tokens_of(batches: Batches, steps: int) -> tuple[int, list[dict[str, np.ndarray]]]:
    """Return the source tokens, without padding, of the next ``steps`` batches, and the batches."""
    taken = [batch for batch, _ in itertools.islice(batches, steps)]
    return sum(int((batch["encoder_ids"] != 0).sum()) for batch in taken), taken


def waiting(batches: Batches, step: float, steps: int, ahead: int) -> float:
    """Return the share of wall time that a consumer with steps of ``step`` seconds waits; no prefetching if ``ahead`` is 0."""
    waited, begun = 0.0, time.perf_counter()
    if ahead:
        with prefetch(batches, ahead) as items:
            for _ in itertools.islice(items, steps):
                time.sleep(step)
            waited = items.waited
    else:
        for _ in range(steps):
            start = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - start
            time.sleep(step)
    return waited / (time.perf_counter() - begun)


def preparing(text: pathlib.Path, folder: pathlib.Path, vocabulary: int) -> dict[str, float]:
    """Return the processor seconds of making the tokens of a run, and of taking them from the cache."""
    settings = TextSettings((str(text),), (), "", vocabulary, 0.05, 0)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder / "cache")
    found = {
        kind: cpu(lambda kind=kind: prepare_tokens(settings, folder / kind, lambda line: None), 1)[0]
        for kind in ("made", "cached")
    }
    os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
    return found


def compute(
    documents: list[str], vocabulary: int, source: int, batch: int, steps: int, repeats: int,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:  # fmt: skip
    """Return all measurements on these documents, as JSON."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    report("training the tokenizer")
    tokenizer: Tokenizer = train_tokenizer(documents[:500], vocabulary)
    characters = sum(map(len, documents))
    result: dict[str, Any] = {
        "config": {"documents": len(documents), "characters": characters, "vocabulary": vocabulary, "source": source,
                   "batch": batch, "steps": steps, "repeats": repeats},
        "provenance": provenance(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="data-") as name:
        report("reading")
        paths = write_formats(pathlib.Path(name), documents)
        result["reading_characters_per_s"] = {
            suffix: characters / cpu(lambda path=path: sum(len(t) for t, _ in TextFiles([path]).read(0, 0)), repeats)[0]
            for suffix, path in paths.items()
        }
        report("tokenising")
        seconds, ids = cpu(lambda: tokenizer.encode(documents), repeats)
        tokens = sum(map(len, ids))
        result["characters_per_token"] = characters / tokens
        result["tokenising_tokens_per_s"] = tokens / seconds
        streamed = {}
        for kind, packed in (("packed", True), ("joined", False)):
            report(f"streaming, {kind}")
            made = StreamedSpans(TextFiles([paths[".jsonl"]]), tokenizer, source, 0, packed=packed)
            stream = made.batches(batch)
            tokens_of(stream, steps // 4 + 1)  # the first groups are made ahead of demand, later ones on demand
            spent, (taken, batches) = cpu(lambda stream=stream: tokens_of(stream, steps), repeats)
            streamed[kind] = {"tokens_per_s": taken / spent, "s_per_batch": spent / steps}
            if packed:
                full = np.mean([packing_efficiency(b) for b in batches], axis=0)
                streamed[kind] |= {"source_filled": float(full[0]), "target_filled": float(full[1])}
        result["streamed"] = streamed
        window = made._window()[0]
        lengths = [corrupted_lengths(len(w))[0] for x in ids for w in windows_of(x[:-1], window)]
        result["one_document_a_row_filled"] = sum(lengths) / (source * len(lengths))
        report("windows in memory")
        plain = SpanCorruption.from_documents(ids, tokenizer, source, 0)
        spent, (taken, _) = cpu(lambda: tokens_of(plain.batches(batch), steps), repeats)
        # a window of text has more tokens than the source that is made of it
        tokenised = taken / (spent + seconds / tokens * taken * window / source)
        result["in_memory"] = {"tokens_per_s": taken / spent, "with_tokenising_tokens_per_s": tokenised}
        result["ratio"] = {
            "packed_to_in_memory_with_tokenising": streamed["packed"]["tokens_per_s"] / tokenised,
            "packed_to_in_memory": streamed["packed"]["tokens_per_s"] / result["in_memory"]["tokens_per_s"],
            "packed_to_tokenising": streamed["packed"]["tokens_per_s"] / result["tokenising_tokens_per_s"],
        }
        report("preparing")
        result["preparing_s"] = preparing(paths[".jsonl"], pathlib.Path(name), vocabulary)
        report("prefetching")
        result["device_waits"] = {}
        for factor in (2, 5):
            step = factor * streamed["packed"]["s_per_batch"]
            shares = {}
            for ahead in (0, 2, 8):
                made = StreamedSpans(TextFiles([paths[".jsonl"]]), tokenizer, source, 0)
                stream = made.batches(batch)
                next(stream)
                shares[f"{ahead} ahead"] = waiting(stream, step, steps, ahead)
            result["device_waits"][f"{factor} times"] = {"step_s": step} | shares
    return result


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    streamed, memory, waits = result["streamed"], result["in_memory"], result["device_waits"]
    million = lambda value: f"{value / 1e6:.2f} M"
    rows = [
        *((f"reading {k}, characters/s", million(v)) for k, v in result["reading_characters_per_s"].items()),
        ("tokenising alone, tokens/s", million(result["tokenising_tokens_per_s"])),
        ("streamed and packed, source tokens/s", million(streamed["packed"]["tokens_per_s"])),
        ("streamed and joined, source tokens/s", million(streamed["joined"]["tokens_per_s"])),
        ("in memory, tokenised before, source tokens/s", million(memory["tokens_per_s"])),
        ("in memory, tokenising counted, source tokens/s", million(memory["with_tokenising_tokens_per_s"])),
        ("packed to in memory with tokenising", f"{result['ratio']['packed_to_in_memory_with_tokenising']:.2f}"),
        ("packed rows filled, source", f"{streamed['packed']['source_filled']:.1%}"),
        ("packed rows filled, target", f"{streamed['packed']['target_filled']:.1%}"),
        ("one document or window a row, source", f"{result['one_document_a_row_filled']:.1%}"),
        *((f"tokens of a run, {kind}, s", f"{value:.2f}") for kind, value in result["preparing_s"].items()),
        *(
            (f"device waits, steps of {w['step_s'] * 1e3:.0f} ms, {k}", f"{v:.1%}")
            for w in waits.values()
            for k, v in w.items()
            if k != "step_s"
        ),
    ]
    return "\n".join(["| measured on one core | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", help="files or folders; default: the installed packages' documentation")
    parser.add_argument("--source", type=int, default=512, help="length of a source (default 512)")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch (default 64)")
    parser.add_argument("--steps", type=int, default=60, help="batches measured (default 60)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="pieces of the tokenizer (default 8000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    documents = (
        read_documents(arguments.text) if arguments.text else default_corpus(() if arguments.smoke else ("numpy",))
    )
    sizes = {name: getattr(arguments, name) for name in ("vocabulary", "source", "batch", "steps", "repeats")}
    if arguments.smoke:
        documents = documents[:60]
        sizes = {"vocabulary": 400, "source": 64, "batch": 8, "steps": 4, "repeats": 1}
    with Console(stderr=True).status("") as status:
        result = compute(documents, **sizes, report=lambda what: status.update(what))
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
