"""Tokens a second and the host's overhead a step, with 1, 2 and 4 virtual CPU devices in one process and in two.

``python -m benchmarks.scaling`` trains a tiny T5 in processes of its own, with the same global batch in all layouts (strong
scaling). On one machine the devices share its cores: this measures the cost of sharing the work, not the gain of more
machines. The overhead is the step's time of a network with next to nothing to compute. Prints Markdown; ``--json FILE``
(``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.output import hand_over

if TYPE_CHECKING:
    from fusion_core.models.t5 import T5Config

ROOT = pathlib.Path(__file__).parent.parent
# (number of processes, devices of each)
LAYOUTS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
# name -> (width, layers, vocabulary, source length)
SIZES = {"tiny": (64, 2, 1000, 64), "next to nothing": (8, 1, 64, 8)}
BATCH, DISPATCH, REPEATS = 16, 10, 5


def config_of(size: str) -> T5Config:
    """Return the network of a size."""
    from fusion_core.models.t5 import T5Config

    width, layers, vocabulary, _ = SIZES[size]
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // 2,
        d_ff=4 * width,
        num_heads=2,
        num_layers=layers,
        num_decoder_layers=layers,
    )


def worker(size: str, dispatch: int, rows: int = BATCH) -> dict[str, Any]:
    """Return the seconds of a step of ``rows`` rows, on the clock (median over dispatches) and of this process's processors."""
    import jax
    import numpy as np

    from fusion_core.models.t5 import init
    from fusion_core.train import Trainer, adafactor, init_state, initialize_distributed, t5_loss
    from fusion_core.train.devices import local_rows
    from fusion_core.train.distributed import finish

    initialize_distributed()
    _, _, vocabulary, length = SIZES[size]
    config = config_of(size)
    target = length // 4
    rng = np.random.default_rng(0)
    batch = {
        "encoder_ids": rng.integers(2, vocabulary, (rows, length), np.int32),
        "targets": rng.integers(2, vocabulary, (rows, target), np.int32),
    }
    optimizer = adafactor()
    trainer = Trainer(t5_loss(config), optimizer, rows, dispatch)
    state = init_state(init(config, 0), optimizer, 0.01)
    times, spent = [time.perf_counter()], [time.process_time()]
    feed = itertools.repeat((local_rows(batch), None))
    # the pause waits for each dispatch, so that its time is measured alone
    for _ in trainer.dispatches(state, feed, dispatch * (REPEATS + 2), pause=lambda step: True):
        times.append(time.perf_counter())
        spent.append(time.process_time())
    steps = [(b - a) / dispatch for a, b in itertools.pairwise(times[2:])]  # without the first ones, which compile
    finish()
    return {
        "seconds": statistics.median(steps),
        "processor_seconds": (spent[-1] - spent[2]) / (len(steps) * dispatch),
        "tokens": rows * (length + target),
        "devices": jax.device_count(),
        "process": jax.process_index(),
    }


def launch(
    module: str, arguments: list[str], processes: int, devices: int, cores: list[set[int]] | None = None
) -> list[dict[str, Any]]:
    """Run a module as so many processes of so many virtual devices; return what each has printed last, as JSON.

    Args:
      module: to be run.
      arguments: of each process.
      processes: their number; several find each other by ``initialize_distributed``.
      devices: of each.
      cores: that each may use; if None, all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = []
    for index in range(processes):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_PLATFORMS": "cpu",
        }
        if processes > 1:
            environment |= {
                "DEEPFUSION_COORDINATOR": f"127.0.0.1:{port}",
                "DEEPFUSION_PROCESSES": str(processes),
                "DEEPFUSION_PROCESS": str(index),
            }
        pin = None if cores is None else functools.partial(os.sched_setaffinity, 0, cores[index])
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": pin}
        begun.append(subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, **pipes))
    outputs = [process.communicate(timeout=600) for process in begun]
    for process, (_, err) in zip(begun, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(f"a process of {processes} ended with {process.returncode}: {err[-2000:]}")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in outputs]  # gloo prints other lines there


def measure(processes: int, devices: int, size: str, dispatch: int) -> dict[str, Any]:
    """Measure one layout in processes of its own."""
    arguments = ["--worker", size, "--dispatch", str(dispatch)]
    return launch("benchmarks.scaling", arguments, processes, devices)[0]


def compute(layouts: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Return the tokens a second and the overhead of every layout."""
    rows = []
    for processes, devices in layouts:
        row: dict[str, Any] = {"processes": processes, "devices": devices}
        tiny = measure(processes, devices, "tiny", DISPATCH)
        row |= {"step": tiny["seconds"], "tokens_per_second": tiny["tokens"] / tiny["seconds"]}
        row["overhead"] = measure(processes, devices, "next to nothing", DISPATCH)["seconds"]
        row["overhead_alone"] = measure(processes, devices, "next to nothing", 1)["seconds"]
        rows.append(row)
    return {"rows": rows, "batch": BATCH, "dispatch": DISPATCH, "cores": os.cpu_count()}


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [
        f"{result['cores']} cores; batch {result['batch']}; overhead in ms a step, with {result['dispatch']} steps a dispatch "
        "and with one.",
        "",
        "| processes × devices | step (ms) | tokens/s | of one device's | overhead | one step a dispatch |",
        "|---|---|---|---|---|---|",
    ]
    first = result["rows"][0]["tokens_per_second"]
    for row in result["rows"]:
        lines.append(
            f"| {row['processes']} × {row['devices']} | {1e3 * row['step']:.1f} | {row['tokens_per_second']:,.0f} | "
            f"{row['tokens_per_second'] / first:.2f} | {1e3 * row['overhead']:.2f} | {1e3 * row['overhead_alone']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="two processes of one device only")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    parser.add_argument("--worker", choices=sorted(SIZES), help=argparse.SUPPRESS)
    parser.add_argument("--dispatch", type=int, default=DISPATCH, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(worker(arguments.worker, arguments.dispatch)))
        return 0
    result = compute(LAYOUTS[3:4] if arguments.smoke else LAYOUTS)
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
