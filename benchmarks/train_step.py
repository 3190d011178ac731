"""A training step of T5 on this machine's CPU: ours against Hugging Face's in PyTorch, same batch, weights and FLOPs.

``python -m benchmarks.train_step`` times forward, backward and update, interleaved: every round times every contender
once, so that other work on the machine slows all of them, and the ratio is the median of the rounds' ratios. Both losses
are first checked to be equal. Ours runs as in the trainer, several steps a dispatch; "naive" is the same network without
the optimizations of docs/t5.md. PyTorch is an extra: ``pip install 'deepfusion[parity]'``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.output import hand_over
from fusion_core import save_pretrained
from fusion_core.models.t5 import Compute, T5Config, batch_loss, init, step_flops
from fusion_core.provenance import provenance
from fusion_core.train import adafactor

TINY = T5Config(vocab_size=4096, d_model=128, d_kv=32, d_ff=512, num_layers=4, num_decoder_layers=4, num_heads=4)
SMOKE = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
# name -> config, batch, source and target length, steps in one dispatch
SIZES: dict[str, tuple[T5Config, int, int, int, int]] = {
    "tiny": (TINY, 16, 128, 32, 10),
    "small": (T5Config.named("t5-small"), 4, 256, 64, 3),
    "smoke": (SMOKE, 2, 12, 6, 2),
}
FAST = Compute(reverse_only=True)  # the trainer's settings
VARIANTS = {
    "with forward mode": Compute(),
    "layers scanned": Compute(scan=True, reverse_only=True),
    "rematerialised": Compute(remat=True, reverse_only=True),
    "loss in chunks of 128": Compute(loss_chunk=128, reverse_only=True),
    "attention in chunks": Compute(attention="chunked", reverse_only=True),
    "bfloat16": Compute(dtype="bfloat16", reverse_only=True),
}
RATE = 1e-3
Run = Callable[[], float]  # a function that runs some steps and returns the seconds of one


def our_optimizer(name: str) -> optax.GradientTransformation:
    return optax.chain(adafactor(), optax.scale(RATE)) if name == "adafactor" else optax.sgd(RATE)


def ours(config: T5Config, batch: Any, optimizer: str, compute: Compute, steps: int) -> Run:
    """Return a run of ``steps`` training steps in one dispatch, with the state donated."""
    update = our_optimizer(optimizer)

    def one(state: Any, batch: Any) -> tuple[Any, Any]:
        params, inner = state
        (total, sums), gradient = jax.value_and_grad(lambda p: batch_loss(p, config, batch, compute), has_aux=True)(
            params
        )
        gradient = jax.tree.map(lambda g: g / sums["tokens"], gradient)
        updates, inner = update.update(gradient, inner, params)
        return (optax.apply_updates(params, updates), inner), total / sums["tokens"]

    run = jax.jit(lambda state, batches: jax.lax.scan(one, state, batches), donate_argnums=0)
    params = init(config, 0)
    batches = jax.tree.map(lambda ids: jnp.asarray(np.stack([ids] * steps)), batch)
    state = [(params, update.init(params))]

    def timed() -> float:
        start = time.perf_counter()
        state[0], losses = run(state[0], batches)
        losses.block_until_ready()
        return (time.perf_counter() - start) / steps

    timed()  # compiles
    return timed


def naive(config: T5Config, batch: Any) -> Run:
    """Return a run of one step in one dispatch, with broadcasts left to XLA."""
    with (
        mock.patch("fusion_core.models.t5.layers.broadcast_over", lambda n, x: jnp.broadcast_to(x, (n, *x.shape))),
        mock.patch("fusion_core.models.t5.attention.broadcast_over", lambda n, x: jnp.broadcast_to(x, (n, *x.shape))),
    ):
        return ours(config, batch, "adafactor", Compute(), 1)


def reference(config: T5Config, batch: Any, steps: int) -> tuple[dict[str, Run], float] | None:
    """Return runs of Hugging Face's T5 with each optimizer, and its first loss; None if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torch
            import transformers
        except ImportError:
            return None
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pathlib.Path(folder) / "t5", init(config, 0), config)
        models = [
            transformers.T5ForConditionalGeneration.from_pretrained(pathlib.Path(folder) / "t5") for _ in range(2)
        ]
    ids, labels = (torch.tensor(batch[name]).long() for name in ("encoder_ids", "targets"))
    first = models[0](input_ids=ids, labels=labels).loss.item()

    def runner(model: Any, optimizer: Any) -> Run:
        model.train()

        def timed() -> float:
            start = time.perf_counter()
            for _ in range(steps):
                optimizer.zero_grad()
                model(input_ids=ids, labels=labels).loss.backward()
                optimizer.step()
            return (time.perf_counter() - start) / steps

        timed()
        return timed

    factored = {"scale_parameter": True, "relative_step": False, "warmup_init": False, "lr": RATE}
    return {
        "PyTorch, Adafactor": runner(models[0], transformers.Adafactor(models[0].parameters(), **factored)),
        "PyTorch, SGD": runner(models[1], torch.optim.SGD(models[1].parameters(), lr=RATE)),
    }, first


def compute(size: str, rounds: int, variants: bool = True) -> dict[str, Any]:
    """Return the seconds a step of every contender in every round; without ``variants``, of ours and the reference."""
    config, batch_size, source, target, steps = SIZES[size]
    rng = np.random.default_rng(0)
    lengths = {"encoder_ids": source, "targets": target}
    # no padding: both sides compute the same products
    batch = {n: rng.integers(2, config.vocab_size, (batch_size, k), dtype=np.int32) for n, k in lengths.items()}
    total, sums = jax.jit(batch_loss, static_argnums=1)(init(config, 0), config, batch)
    loss = float(total / sums["tokens"])
    runs = {f"ours, {n}": ours(config, batch, n.lower(), FAST, steps) for n in ("Adafactor", "SGD")}
    if variants:
        runs["naive JAX, Adafactor"] = naive(config, batch)
        runs["ours, one step a dispatch"] = ours(config, batch, "adafactor", FAST, 1)
        ways = list(VARIANTS.items())[slice(1, 2) if size == "smoke" else slice(None)]
        runs |= {f"ours, {name}": ours(config, batch, "adafactor", way, steps) for name, way in ways}
    found = reference(config, batch, steps)
    if found is not None:
        theirs, their_loss = found
        if abs(their_loss - loss) > 1e-3 * abs(loss):
            raise SystemExit(f"the losses differ, ours is {loss}, the reference's {their_loss}: nothing is compared")
        runs |= theirs
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        order = list(runs.items())
        for name, run in order if i % 2 == 0 else reversed(order):
            seconds[name].append(run())
    flops = step_flops(config, batch_size, source, target)
    rows = []
    for name, times in seconds.items():
        against = "PyTorch, SGD" if "SGD" in name else "PyTorch, Adafactor"
        row = {"name": name, "median": statistics.median(times), "least": min(times), "most": max(times)}
        row |= {"gflops": flops / row["median"] / 1e9, "seconds": times}
        if against in seconds:
            ratios = [theirs / ours for theirs, ours in zip(seconds[against], times, strict=True)]
            row |= {"ratio": statistics.median(ratios), "ratio_of_least": min(seconds[against]) / min(times)}
        rows.append(row)
    depth, width = f"{config.num_layers} + {config.num_decoder_layers} layers", f"width {config.d_model}"
    shape = f"{depth} of {width}, vocabulary {config.vocab_size}"
    title = f"{size}: {shape}, batch {batch_size} × {source}/{target}"
    return {"size": size, "title": title, "flops": flops, "loss": loss, "rounds": rounds, "steps": steps, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as one table for each size."""
    lines = []
    for size in result["sizes"]:
        lines += [
            f"{size['title']}; {size['flops'] / 1e9:.1f} GFLOP a step, {size['rounds']} rounds of {size['steps']} steps",
            "",
            "| | s a step, median | least | most | GFLOP/s | faster than PyTorch, median of rounds | by least |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in size["rows"]:
            ratios = f"{row['ratio']:.2f} | {row['ratio_of_least']:.2f}" if "ratio" in row else "not installed | "
            times = " | ".join(f"{row[part]:.4f}" for part in ("median", "least", "most"))
            lines.append(f"| {row['name']} | {times} | {row['gflops']:.0f} | {ratios} |")
        lines.append("")
    return "\n".join(lines)


def parser_of(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that runs ``SIZES`` in rounds."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(text or "").splitlines()[0])
    parser.add_argument(
        "--size", choices=["tiny", "small", "all"], default="all", help="d128 and 4 + 4 layers, t5-small, or both"
    )
    parser.add_argument("--rounds", type=int, default=8, help="times that everything runs (default 8)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    return parser


def asked(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> tuple[list[str], int]:
    """Return the sizes and the rounds; an impossible number of rounds ends the program."""
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: at least one is measured")
    sizes = ["smoke"] if arguments.smoke else ["tiny", "small"] if arguments.size == "all" else [arguments.size]
    return sizes, 2 if arguments.smoke else arguments.rounds


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = parser_of("train_step", __doc__)
    parser.add_argument("--no-variants", action="store_true", help="ours and the reference alone, on a busy machine")
    arguments = parser.parse_args(argv)
    sizes, rounds = asked(parser, arguments)
    result: dict[str, Any] = {
        "sizes": [compute(size, rounds, not arguments.no_variants) for size in sizes],
        "provenance": provenance(),
    }
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
