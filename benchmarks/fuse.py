r"""Time and memory of fusing checkpoints, against a plain copy and against mergekit.

``python -m benchmarks.fuse`` writes two synthetic bf16 checkpoints of one billion parameters (T5 v1.1 XL's widths, 8 of
its 24 layers, four shards each) into a temporary folder, fuses them, and measures in the same run and on the same disk,
with the sources out of the cache and all earlier writes finished before each measurement:

- ``shutil.copyfile`` of as many bytes as fusing reads and writes (half of their sum: a copy reads and writes each);
- plain reads and writes of exactly the bytes that fusing reads and writes;
- mergekit's linear merge of the same files, if ``--mergekit`` names its executable (``mergekit-yaml``).

Each is run ``--repeats`` times in turn; ratios are of medians. On a busy machine compare the processor times. Needs 20 GB
of disk. ``--json FILE`` (``-`` for the terminal) writes the numbers; the exit code is 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from rich.console import Console

from benchmarks.output import hand_over
from fusion_core import T5Config
from fusion_core.checkpoints import fusion_recipe, open_checkpoint
from fusion_core.checkpoints.ranges import INDEX
from fusion_core.models.t5 import parameter_shapes
from fusion_core.models.t5.files import config_to_json
from fusion_core.models.units import by_name

COPY_LIMIT, MEMORY_LIMIT, MERGEKIT_LIMIT = 1.5, 300e6, 2.0
PIECE = 1 << 19  # bytes of a plain read or write
ROOT = pathlib.Path(__file__).resolve().parent.parent
BILLION = T5Config.named("t5-v1_1-xl", num_layers=8, num_decoder_layers=8)
SMOKE = T5Config.named("t5-v1_1-small", num_layers=1, num_decoder_layers=1, vocab_size=4096)
# ru_maxrss of a child starts at its parent's, VmHWM at zero
FUSE_PROGRAM = r"""
import json, pathlib, re, resource, sys, time
from fusion_core.checkpoints import fusion_recipe, write_recipe
def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
imports, start, cpu = peak(), time.perf_counter(), time.process_time()
write_recipe(fusion_recipe(sys.argv[1:3]), sys.argv[3], probe=False)
print(json.dumps({"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, "imports": imports, "peak": peak()}))
"""


def write_source(folder: pathlib.Path, config: T5Config, seed: int, shards: int) -> None:
    """Write a checkpoint of random bf16 weights; entries repeat after a million, since drawing billions takes minutes."""
    folder.mkdir()
    drawn = np.random.default_rng(seed).standard_normal(1_000_003, np.float32).astype(ml_dtypes.bfloat16)
    shapes = by_name(parameter_shapes(config))
    total = sum(int(np.prod(struct.shape)) for struct in shapes.values())
    weight_map: dict[str, str] = {}
    tensors: dict[str, np.ndarray] = {}
    done = number = 0
    for name, struct in shapes.items():
        tensors[name] = np.resize(drawn, struct.shape)
        done += tensors[name].size
        if done * shards >= total * (number + 1):
            number += 1
            file = f"model-{number:05}-of-{shards:05}.safetensors"
            safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
            tensors = {}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config_to_json(config) | {"dtype": "bfloat16"}))


def settle(folders: list[pathlib.Path]) -> None:
    """Finish all writes and take the sources' files out of the page cache."""
    os.sync()
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        handle = os.open(file, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def copy_files(sources: list[pathlib.Path], target: pathlib.Path, total: int) -> None:
    """Copy the sources' files by ``shutil.copyfile``, repeatedly until ``total`` bytes are copied."""
    target.mkdir()
    files = [file for folder in sources for file in sorted(folder.glob("*.safetensors"))]
    number = 0
    while total > 0:
        copied = target / str(number)
        shutil.copyfile(files[number % len(files)], copied)
        total, number = total - copied.stat().st_size, number + 1


def read_and_write(sources: list[pathlib.Path], target: pathlib.Path, written: int) -> None:
    """Read the sources' files once and write ``written`` bytes, evenly over the reading."""
    files = [file for folder in sources for file in sorted(folder.glob("*.safetensors"))]
    size = sum(file.stat().st_size for file in files)
    piece = bytearray(PIECE)
    read = put = 0
    with target.open("wb", buffering=0) as out:
        for file in files:
            with file.open("rb", buffering=0) as source:
                while count := source.readinto(piece):
                    read += count
                    while put * size < read * written:
                        put += out.write(memoryview(piece)[: min(PIECE, written - put)])


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of ``work``, its processor seconds, and the seconds until its writes are on the disk."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    os.sync()
    return {"s": seconds, "cpu_s": cpu, "synced_s": time.perf_counter() - start}


def run_fuse(sources: list[pathlib.Path], target: pathlib.Path) -> dict[str, float]:
    """Fuse in a fresh process; return its seconds without imports (``s``), those of the process, peak memory in bytes."""
    start = time.perf_counter()
    words = [sys.executable, "-c", FUSE_PROGRAM, *map(str, sources), str(target)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    process = time.perf_counter() - start
    os.sync()
    synced = time.perf_counter() - start
    facts = json.loads(done.stdout)
    return facts | {"process_s": process, "synced_s": synced - process + facts["s"]}


def run_mergekit(executable: str, sources: list[pathlib.Path], target: pathlib.Path) -> dict[str, float]:
    """Merge linearly in a fresh process, and subtract the start-up time, measured by a process that prints its help."""
    recipe = target.with_suffix(".yaml")
    models = "".join(f"  - model: {source}\n    parameters:\n      weight: 0.5\n" for source in sources)
    recipe.write_text(f"models:\n{models}merge_method: linear\ndtype: bfloat16\n")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}

    def process(*words: str) -> float:
        start = time.perf_counter()
        done = subprocess.run([executable, *words], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"mergekit failed: {done.stderr.strip().splitlines()[-1:]}")
        return time.perf_counter() - start

    whole = process(str(recipe), str(target), "--no-copy-tokenizer", "--no-write-model-card", "--quiet")
    os.sync()
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return {"process_s": whole, "start_s": process("--help"), "bytes": float(size)}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def compute(
    *, config: T5Config, shards: int, repeats: int, mergekit: str | None, folder: pathlib.Path,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:  # fmt: skip
    """Return all figures as plain numbers; ``folder`` is an empty one to work in."""
    sources = [folder / "a", folder / "b"]
    for seed, source in enumerate(sources):
        report(f"writing source {source.name}")
        write_source(source, config, seed, shards)
    recipe = fusion_recipe(sources)
    read = sum(entry.nbytes for tensor in recipe.tensors for entry in tensor.entries)
    written = recipe.nbytes
    largest = max(tensor.nbytes for tensor in recipe.tensors)
    runs: dict[str, list[dict[str, float]]] = {}
    works: dict[str, Callable[[pathlib.Path], dict[str, float]]] = {
        "copy": lambda out: timed(lambda: copy_files(sources, out, (read + written) // 2)),
        "plain": lambda out: timed(lambda: read_and_write(sources, out, written)),
        "fuse": lambda out: run_fuse(sources, out),
    }
    if mergekit:
        works["mergekit"] = lambda out: run_mergekit(mergekit, sources, out)
    for repeat in range(repeats):
        for name, work in works.items():
            report(f"{name}, run {repeat + 1} of {repeats}")
            out = folder / "out"
            settle(sources)
            runs.setdefault(name, []).append(work(out))
            if name == "fuse" and repeat == 0:
                open_checkpoint(out)  # raises if the headers are not those of a whole checkpoint
            with contextlib.suppress(FileNotFoundError):
                out.unlink() if out.is_file() else shutil.rmtree(out)
    middle = {name: medians(rows) for name, rows in runs.items()}
    peak = max(row["peak"] for row in runs["fuse"])
    ratios = {name: middle["fuse"]["s"] / middle[name]["s"] for name in ("copy", "plain")}
    synced = {name: middle["fuse"]["synced_s"] / middle[name]["synced_s"] for name in ("copy", "plain")}
    cpu = {name: middle["fuse"]["cpu_s"] / middle[name]["cpu_s"] for name in ("copy", "plain")}
    result: dict[str, Any] = {
        "parameters_each": recipe.sources[0].parameters,
        "parameters_fused": recipe.parameters,
        "read": read,
        "written": written,
        "largest_tensor": largest,
        "runs": runs,
        "medians": middle,
        "ratios": ratios,
        "synced_ratios": synced,
        "cpu_ratios": cpu,
        "peak": peak,
        "peak_limit": 2 * largest + MEMORY_LIMIT,
        "copy_limit": COPY_LIMIT,
        "mergekit": None,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    held = {"copy": ratios["copy"] <= COPY_LIMIT, "memory": peak <= result["peak_limit"]}
    if mergekit:
        theirs, ours = middle["mergekit"], middle["fuse"]
        a_byte = (theirs["process_s"] - theirs["start_s"]) / theirs["bytes"] / (ours["s"] / written)
        whole = theirs["process_s"] / theirs["bytes"] / (ours["process_s"] / written)
        result["mergekit"] = {"without_start": a_byte, "whole_process": whole, "limit": MERGEKIT_LIMIT}
        held["mergekit"] = min(a_byte, whole) >= MERGEKIT_LIMIT
    return result | {"held": held}


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as tables."""
    middle, held = result["medians"], result["held"]
    lines = [
        f"Two checkpoints of {result['parameters_each']:,} parameters into one of {result['parameters_fused']:,}: "
        f"{result['read'] / 1e9:.2f} GB read, {result['written'] / 1e9:.2f} GB written, largest tensor "
        f"{result['largest_tensor'] / 1e6:.0f} MB.",
        "",
        "| what | seconds, every run | median | until on disk, median | of processor time, median |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "copy": "copyfile of as many bytes",
        "plain": "plain reads and writes of as many bytes",
        "fuse": "fuse (without imports)",
    }
    for name, title in titles.items():
        every = ", ".join(f"{row['s']:.2f}" for row in result["runs"][name])
        lines.append(
            f"| {title} | {every} | {middle[name]['s']:.2f} | {middle[name]['synced_s']:.2f} | {middle[name]['cpu_s']:.2f} |"
        )
    every = ", ".join(f"{row['process_s']:.2f}" for row in result["runs"]["fuse"])
    lines.append(f"| fuse, whole process | {every} | {middle['fuse']['process_s']:.2f} | | |")
    if result["mergekit"]:
        every = ", ".join(f"{row['process_s']:.2f}" for row in result["runs"]["mergekit"])
        start = middle["mergekit"]["start_s"]
        lines.append(
            f"| mergekit, whole process ({start:.1f} s of start-up, {middle['mergekit']['bytes'] / 1e9:.2f} GB written) | "
            f"{every} | {middle['mergekit']['process_s']:.2f} | | |"
        )
    yes = {True: "yes", False: "NO"}
    lines += [
        "",
        "| limit | wanted | measured | held |",
        "|---|---|---|---|",
        f"| seconds against copyfile | at most {result['copy_limit']:g} | {result['ratios']['copy']:.2f} (until on disk "
        f"{result['synced_ratios']['copy']:.2f}; against plain reads and writes {result['ratios']['plain']:.2f}, until on "
        f"disk {result['synced_ratios']['plain']:.2f}; processor time {result['cpu_ratios']['copy']:.2f} of copyfile's) | "
        f"{yes[held['copy']]} |",
        f"| peak memory, MB | at most {result['peak_limit'] / 1e6:.0f} | {result['peak'] / 1e6:.0f} "
        f"({middle['fuse']['imports'] / 1e6:.0f} after imports) | {yes[held['memory']]} |",
    ]
    if result["mergekit"]:
        theirs = result["mergekit"]
        lines.append(
            f"| mergekit's seconds an output byte against ours | at least {theirs['limit']:g} | "
            f"{theirs['without_start']:.1f} without start-up, {theirs['whole_process']:.1f} whole processes | "
            f"{yes[held['mergekit']]} |"
        )
    else:
        lines.append(f"| mergekit | at least {MERGEKIT_LIMIT:g} | {result['skipped']} | |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON; 0 if every limit held. With ``--smoke`` times are too short to be judged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuse", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--folder", type=pathlib.Path, help="working folder; default: the system's temporary folder")
    parser.add_argument(
        "--mergekit", metavar="FILE", default=shutil.which("mergekit-yaml"),
        help="mergekit 0.1.5's mergekit-yaml, from an environment of its own; default: on the path, else left out",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true", help="small enough for a test: a few million parameters, one run"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    mergekit = arguments.mergekit
    if mergekit and not pathlib.Path(mergekit).is_file():
        parser.error(f"there is no {mergekit}; give the path of mergekit-yaml")
    config, shards, repeats = (SMOKE, 2, 1) if arguments.smoke else (BILLION, 4, arguments.repeats)
    if arguments.smoke:
        mergekit = None
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if not arguments.smoke and free < 20e9:
        parser.error(f"20 GB of disk are needed, {free / 1e9:.0f} GB are free; give --folder on a larger disk")
    with (
        tempfile.TemporaryDirectory(prefix="fuse-", dir=arguments.folder) as folder,
        Console(stderr=True).status("") as status,
    ):
        result = compute(
            config=config, shards=shards, repeats=repeats, mergekit=mergekit, folder=pathlib.Path(folder),
            report=lambda what: status.update(what),
        )  # fmt: skip
    result["skipped"] = None if mergekit else "left out: smoke" if arguments.smoke else "left out: not installed"
    hand_over(result, markdown(result), arguments.json)
    judged = {"memory": result["held"]["memory"]} if arguments.smoke else result["held"]
    return 0 if all(judged.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
