"""Steps of a tiny T5 in several processes and on several virtual devices of one machine; for ``benchmarks.processes``."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from fusion_core.models.t5 import T5Config

ROOT = pathlib.Path(__file__).parent.parent
WIDTH, LAYERS, VOCABULARY, LENGTH = 64, 2, 1000, 64
BATCH, DISPATCH, REPEATS = 16, 10, 5


def network() -> T5Config:
    """Return the tiny T5 that is timed."""
    from fusion_core.models.t5 import T5Config

    return T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=4 * WIDTH,
        num_heads=2,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
    )


def worker(rows: int = BATCH) -> dict[str, Any]:
    """Return the seconds of a step of ``rows`` rows, on the clock (median over dispatches) and of this process's processors."""
    import jax
    import numpy as np

    from fusion_core.models.t5 import init
    from fusion_core.train import Trainer, adafactor, init_state, initialize_distributed, t5_loss
    from fusion_core.train.devices import local_rows
    from fusion_core.train.distributed import finish

    initialize_distributed()
    config, target = network(), LENGTH // 4
    rng = np.random.default_rng(0)
    batch = {
        "encoder_ids": rng.integers(2, VOCABULARY, (rows, LENGTH), np.int32),
        "targets": rng.integers(2, VOCABULARY, (rows, target), np.int32),
    }
    optimizer = adafactor()
    trainer = Trainer(t5_loss(config), optimizer, rows, DISPATCH)
    state = init_state(init(config, 0), optimizer, 0.01)
    times, spent = [time.perf_counter()], [time.process_time()]
    feed = itertools.repeat((local_rows(batch), None))
    # the pause waits for each dispatch, so that its time is measured alone
    for _ in trainer.dispatches(state, feed, DISPATCH * (REPEATS + 2), pause=lambda step: True):
        times.append(time.perf_counter())
        spent.append(time.process_time())
    steps = [(b - a) / DISPATCH for a, b in itertools.pairwise(times[2:])]  # without the first ones, which compile
    finish()
    return {
        "seconds": statistics.median(steps),
        "processor_seconds": (spent[-1] - spent[2]) / (len(steps) * DISPATCH),
        "tokens": rows * (LENGTH + target),
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
