"""Our training step of T5 on one GPU, compiled and timed in several ways; for ``gpu_train_step``."""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_core.models.t5 import Compute, T5Config, batch_loss, init, step_flops
from fusion_core.models.t5.flops import utilisation
from fusion_core.train import adafactor

RATE, SOURCE, TARGET = 1e-3, 512, 114
SMOKE = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
SMOKE_GATED = T5Config(
    **{f: getattr(SMOKE, f) for f in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")},
    num_layers=1, num_decoder_layers=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip
MICROBATCH = {"base": [64, 128], "small": [128, 256], "reference": [32, 64]}


def config_of(name: str, smoke: bool) -> T5Config:
    if smoke:
        return SMOKE if name == "t5-small" else SMOKE_GATED
    return T5Config.named(name)


def random_batch(config: T5Config, seed: int, batch: int, source: int, target: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = {"encoder_ids": source, "targets": target}
    return {n: rng.integers(2, config.vocab_size, (batch, k), dtype=np.int32) for n, k in lengths.items()}


class Way(NamedTuple):
    """How one row is computed: rows at a time, ``Compute.attention``, and whether layers are scanned over."""

    microbatch: int
    attention: str
    scan: bool


def ways_of(arguments: argparse.Namespace, name: str) -> list[Way]:
    """Return the ways in which a part is measured."""
    sizes = arguments.microbatch or ([2] if arguments.smoke else MICROBATCH[name])
    layers = [choice == "scanned" for choice in arguments.layers]
    return [Way(*choice) for choice in itertools.product(sizes, arguments.attention, layers)]


def compute_of(arguments: argparse.Namespace, way: Way) -> Compute:
    """Return the settings of our step."""
    return Compute(
        dtype="bfloat16", remat=arguments.remat, scan=way.scan, reverse_only=True,
        loss_chunk=arguments.loss_chunk, attention=way.attention,
    )  # fmt: skip


def optimizer_for() -> optax.GradientTransformation:
    return optax.chain(adafactor(), optax.scale(RATE))


def our_step(config: T5Config, compute: Compute, micro: int) -> tuple[Any, optax.GradientTransformation]:
    """Return ``(state, batch) -> (state, loss)`` with gradients summed over micro-batches of ``micro`` rows; its optimizer."""
    optimizer = optimizer_for()

    def step(state: Any, batch: Any) -> Any:
        params, inner = state
        parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]), batch)

        def gradient_of(part: Any) -> Any:
            (total, sums), gradient = jax.value_and_grad(lambda p: batch_loss(p, config, part, compute), has_aux=True)(
                params
            )
            return gradient, total, sums["tokens"]

        if len(parts["targets"]) == 1:
            gradient, total, tokens = gradient_of(jax.tree.map(lambda x: x[0], parts))
        else:
            zero = jnp.zeros((), jnp.float32)
            zeros = (jax.tree.map(jnp.zeros_like, params), zero, zero)
            add = lambda carry, part: (jax.tree.map(jnp.add, carry, gradient_of(part)), None)
            (gradient, total, tokens), _ = jax.lax.scan(add, zeros, parts)
        updates, inner = optimizer.update(jax.tree.map(lambda g: g / tokens, gradient), inner, params)
        return (optax.apply_updates(params, updates), inner), total / tokens

    return jax.jit(step, donate_argnums=0), optimizer


def prefetched(make: Callable[[int], Any], steps: int) -> Iterator[Any]:
    """Yield ``make(0) ... make(steps - 1)`` on the device; two more are made ahead in a thread."""
    ready: queue.Queue[Any] = queue.Queue(2)

    def work() -> None:
        for i in range(steps):
            ready.put(jax.device_put(make(i)))

    threading.Thread(target=work, daemon=True).start()
    for _ in range(steps):
        yield ready.get()


def shape_of(arguments: argparse.Namespace) -> tuple[int, int, int]:
    """Return the batch's sequences, source and target length."""
    return (4, 12, 6) if arguments.smoke else (arguments.batch, SOURCE, TARGET)


def timed(arguments: argparse.Namespace, step: Callable[[], Any], wait: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds of a step in each round, after two steps that warm up."""
    for _ in range(2):
        step()
    wait()
    times: list[float] = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        for _ in range(arguments.steps):
            step()
        wait()
        times.append((time.perf_counter() - start) / arguments.steps)
    size, source, target = shape_of(arguments)
    median = statistics.median(times)
    return {"seconds": times, "median": median, "tokens_per_second": size * (source + target) / median}


def said(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {error}"[:300]}


def ours(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure our step in each way, and for t5-v1_1-base the share of time that it waits for streamed batches too."""
    part = "small" if name == "t5-small" else "base"
    config, shape, device = config_of(name, arguments.smoke), shape_of(arguments), jax.local_devices()[0]
    drawn = jax.tree.map(np.asarray, init(config, 0))
    first = random_batch(config, 0, *shape)

    def compiled(way: Way) -> tuple[Any, float]:
        start = time.perf_counter()
        step, optimizer = our_step(config, compute_of(arguments, way), way.microbatch)
        state = jax.eval_shape(lambda p: (p, optimizer.init(p)), drawn)
        return step.lower(state, first).compile(), time.perf_counter() - start

    def row_of(step: Any, seconds: float) -> dict[str, Any]:
        laid_out = step.memory_analysis()  # the state is written over itself
        row = {"compile_seconds": seconds, "bytes": laid_out.temp_size_in_bytes + laid_out.argument_size_in_bytes}
        params = jax.device_put(drawn)
        kept = [(params, optimizer_for().init(params)), None]
        resident = jax.device_put(first)

        def once(batch: Any = resident) -> None:
            kept[:] = step(kept[0], batch)

        def wait() -> None:
            kept[1].block_until_ready()

        row |= timed(arguments, once, wait)
        row["loss"] = float(kept[1])
        if part == "base":
            total = arguments.rounds * arguments.steps
            start = time.perf_counter()
            for batch in prefetched(lambda i: random_batch(config, i, *shape), total):
                once(batch)
            wait()
            row["streamed"] = (time.perf_counter() - start) / total
            row["idle_for_input"] = max(0.0, 1 - row["median"] / row["streamed"])
        row["flops"] = step_flops(config, *shape)
        row["utilisation"] = utilisation(row["flops"], row["median"], device.device_kind)
        return row

    ways, rows = ways_of(arguments, part), []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        steps = [pool.submit(compiled, way) for way in ways]
    for way, step in zip(ways, steps, strict=True):
        try:
            found = row_of(*step.result())
        except Exception as error:  # out of memory, or no kernel for it: the other ways are measured
            found = said(error)
        rows.append(way._asdict() | found)
        print(f"{name}, {way}: {found.get('median', found.get('error'))}", file=sys.stderr, flush=True)
    return {"name": name, "device": device.device_kind, "batch": shape, "rows": rows}
