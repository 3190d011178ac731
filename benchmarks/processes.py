r"""Two processes with a core each, and two virtual devices, against one process with both cores: a step of a tiny T5.

All layouts take the same global batch (strong scaling) and run in processes of their own, one after the other, ``--repeats``
times; ratios are of one round, and their median is printed. ``apart`` adds each array of the gradient in an all-reduce of its
own, as it was before ``fusion_core.train.devices.summed``.

The model of ``benchmarks.allreduce_cost`` is checked by it: two processes time all-reduces of several sizes, of which bandwidth
B and latency ℓ of :math:`t = b / B + 2 \ell` (a ring of two) are fitted; then a step of two processes should take that of one
process with half of the batch on one core, and the all-reduce of the gradient's bytes. ``gather`` is the other way to add:
everything to everyone, and a sum there.

``python -m benchmarks.processes`` prints Markdown; ``--json FILE`` (``-`` for the terminal) writes the numbers. Seconds of
processors, of all processes of a layout together, hardly depend on what else the machine does; seconds on the clock do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks.layouts import BATCH, DISPATCH, LAYERS, LENGTH, VOCABULARY, WIDTH, launch, network, worker
from benchmarks.output import hand_over
from fusion_core.provenance import provenance

ENTRIES = (1, 1 << 10, 1 << 14, 1 << 17, 1 << 19, 1 << 21)  # float32 numbers of an all-reduce
TIMES = 20  # all-reduces in one dispatch
ONE, TWO, APART, VIRTUAL, HALF = (
    "one process, both cores",
    "two processes, a core each",
    "two processes, a core each; each array apart",
    "one process, two virtual devices",
    "half of the batch, one core",
)


def collectives(entries: int) -> dict[str, float]:
    """Return the seconds of an all-reduce, and of a gathering and a sum, of so many float32 numbers."""
    import jax
    import jax.numpy as jnp

    from fusion_core.train.devices import AXIS, data_parallel, replicate, summed

    ways: dict[str, Any] = {"reduce": summed, "gather": lambda x: jnp.sum(jax.lax.all_gather(x, AXIS), 0)}
    found = {}
    for name, add in ways.items():
        many = data_parallel(lambda x, add=add: jax.lax.scan(lambda y, _: (0.5 * add(y), None), x, None, TIMES)[0])
        x = replicate(np.ones(entries, np.float32), jax.local_devices())
        seconds = []
        for _ in range(6):
            begun = time.perf_counter()
            many(x).block_until_ready()
            seconds.append((time.perf_counter() - begun) / TIMES)
        found[name] = statistics.median(seconds[1:])
    return found


def fitted(rows: list[dict[str, float]]) -> tuple[float, float]:
    """Return bandwidth (bytes/s) and latency of a hop (s) of ``t = b / B + 2 l``, by least squares of the relative errors."""
    b, t = (np.array([row[key] for row in rows]) for key in ("bytes", "reduce"))
    (slope, both), *_ = np.linalg.lstsq(np.stack([b / t, 1 / t], axis=1), np.ones(len(t)), rcond=None)
    return 1 / slope, both / 2


def gradient_bytes() -> int:
    """Return the bytes of the gradient of the network that is timed."""
    import jax

    from fusion_core.models.t5 import parameter_shapes

    return 4 * sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(parameter_shapes(network())))


def compute(repeats: int, entries: tuple[int, ...]) -> dict[str, Any]:
    """Return steps of all layouts, their ratios, and the model's prediction beside what was measured."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    both, each = [set(cores)], [{core} for core in cores]
    # name -> (processes, devices of each, cores of each, options of the worker)
    layouts: dict[str, tuple[int, int, list[set[int]], list[str]]] = {
        ONE: (1, 1, both, []),
        TWO: (2, 1, each, []),
        APART: (2, 1, each, ["--apart"]),
        VIRTUAL: (1, 2, both, []),
        HALF: (1, 1, each[:1], ["--rows", str(BATCH // 2)]),
    }
    rounds = []
    for _ in range(repeats):
        found = {}
        for name, (processes, devices, mine, options) in layouts.items():
            parts = launch("benchmarks.processes", ["--worker", *options], processes, devices, mine)
            spent = sum(part["processor_seconds"] for part in parts)
            found[name] = {"seconds": max(part["seconds"] for part in parts), "processor_seconds": spent}
        rounds.append(found)
    median = {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in ("seconds", "processor_seconds")}
        for name in layouts
    }
    ratios = {
        name: {
            key: statistics.median(r[ONE][key] / r[name][key] for r in rounds)
            for key in ("seconds", "processor_seconds")
        }
        for name in (TWO, APART, VIRTUAL)
    }
    timed = [{"bytes": 4 * n} | launch("benchmarks.processes", ["--entries", str(n)], 2, 1, each)[0] for n in entries]
    bandwidth, latency = fitted(timed)
    payload = gradient_bytes()
    added = payload / bandwidth + 2 * latency
    model = {
        "bandwidth": bandwidth,
        "latency": latency,
        "gradient_bytes": payload,
        "predicted": median[HALF]["seconds"] + added,
        "of_it_all_reduce": added,
        "measured": median[TWO]["seconds"],
    }
    config = {"batch": BATCH, "dispatch": DISPATCH, "size": (WIDTH, LAYERS, VOCABULARY, LENGTH), "repeats": repeats}
    return {
        "config": config, "provenance": provenance(), "steps": median, "ratios": ratios, "collectives": timed, "model": model
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as tables."""
    lines = [
        "| layout | step, ms | of one process's pace | processor ms | one process's over it |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["steps"].items():
        ratio = result["ratios"].get(name, {"seconds": 1.0, "processor_seconds": 1.0} if name == ONE else None)
        pace, spent = ("", "") if ratio is None else (f"{ratio['seconds']:.2f}", f"{ratio['processor_seconds']:.2f}")
        lines.append(
            f"| {name} | {1e3 * row['seconds']:.2f} | {pace} | {1e3 * row['processor_seconds']:.2f} | {spent} |"
        )
    lines += ["", "| bytes | all-reduce, ms | gathered and added, ms |", "|---|---|---|"]
    lines += [f"| {r['bytes']:,} | {1e3 * r['reduce']:.3f} | {1e3 * r['gather']:.3f} |" for r in result["collectives"]]
    m = result["model"]
    lines += [
        "",
        f"Fitted: {m['bandwidth'] / 1e9:.2f} GB/s, {1e6 * m['latency']:.0f} µs a hop. A step of two processes: "
        f"{1e3 * m['predicted']:.2f} ms predicted ({1e3 * m['of_it_all_reduce']:.2f} ms of it the all-reduce of "
        f"{m['gradient_bytes']:,} bytes), {1e3 * m['measured']:.2f} ms measured.",
    ]
    return "\n".join(lines)


def _work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what a process of a layout does."""
    if arguments.entries:
        from fusion_core.train import initialize_distributed
        from fusion_core.train.distributed import finish

        initialize_distributed()
        found = collectives(arguments.entries)
        finish()
        return found
    if arguments.apart:
        import jax

        from fusion_core.train import devices, step

        step.summed = lambda tree: jax.tree.map(lambda leaf: jax.lax.psum(leaf, devices.AXIS), tree)  # type: ignore[attr-defined]
    return worker(arguments.rows)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--smoke", action="store_true", help="one round, small all-reduces")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    for name in ("--worker", "--apart"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--entries", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker or arguments.entries:
        print(json.dumps(_work(arguments)))
        return 0
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        parser.error("it gives a core to each of two processes: it needs Linux and two cores")
    result = compute(1, ENTRIES[:2]) if arguments.smoke else compute(arguments.repeats, ENTRIES)
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
