"""T5's training step on one GPU: parity with Hugging Face's T5 in float32, then speed against it under ``torch.compile``.

It needs a machine with one NVIDIA GPU of 80 GB, JAX with CUDA, and PyTorch (the extra ``parity``). With ``--smoke`` it runs
on a CPU, in its smallest size.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.output import hand_over
from fusion_core import save_pretrained
from fusion_core.models.t5 import Compute, T5Config, batch_loss, init, step_flops
from fusion_core.models.t5.flops import utilisation
from fusion_core.models.units import by_name
from fusion_core.provenance import provenance
from fusion_core.train import adafactor

RATE, SOURCE, TARGET = 1e-3, 512, 114
SMOKE = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
SMOKE_GATED = T5Config(
    **{f: getattr(SMOKE, f) for f in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads")},
    num_layers=1, num_decoder_layers=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip
PARTS = ("parity", "base", "small", "reference")
# largest difference of float32 gradients, relative to the largest entry: sums of thousands of terms in another order
TOLERANCE = 1e-3


def config_of(name: str, smoke: bool) -> T5Config:
    if smoke:
        return SMOKE if name == "t5-small" else SMOKE_GATED
    return T5Config.named(name)


def random_batch(config: T5Config, seed: int, batch: int, source: int, target: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = {"encoder_ids": source, "targets": target}
    return {n: rng.integers(2, config.vocab_size, (batch, k), dtype=np.int32) for n, k in lengths.items()}


def reference_model(config: T5Config, params: Any) -> Any:
    """Return Hugging Face's T5 with our parameters."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(pathlib.Path(folder) / "t5", params, config)
        return transformers.T5ForConditionalGeneration.from_pretrained(pathlib.Path(folder) / "t5")


def parity(smoke: bool) -> dict[str, Any]:
    """Return the largest difference of loss and gradients from the reference's, relative to the largest entry, in float32."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"device": device, "tolerance": TOLERANCE}
    for name in ("t5-small", "t5-v1_1-base"):
        config = config_of(name, smoke)
        params, batch = init(config, 0), random_batch(config, 1, 2, *((12, 6) if smoke else (128, 32)))
        with jax.default_matmul_precision("highest"):
            loss = jax.jit(jax.value_and_grad(lambda p, c=config, b=batch: batch_loss(p, c, b), has_aux=True))
            (total, sums), gradients = loss(params)
        model = reference_model(config, params).to(device).eval()
        ids, labels = (torch.tensor(batch[n], device=device).long() for n in ("encoder_ids", "targets"))
        result = model(input_ids=ids, labels=labels)
        result.loss.backward()
        theirs = {n: p.grad.cpu().numpy() for n, p in model.named_parameters()}
        worst = 0.0
        for tensor, gradient in by_name(gradients).items():
            ours = np.asarray(gradient) / float(sums["tokens"])
            worst = max(worst, float(np.abs(ours - theirs[tensor]).max() / np.abs(theirs[tensor]).max()))
        losses = float(total / sums["tokens"]), result.loss.item()
        right = abs(losses[0] - losses[1]) < TOLERANCE * abs(losses[1]) and worst < TOLERANCE
        found[name] = {"loss": losses[0], "reference_loss": losses[1], "gradient_difference": worst, "equal": right}
    found["equal"] = all(found[name]["equal"] for name in ("t5-small", "t5-v1_1-base"))
    return found


def way_of(arguments: argparse.Namespace) -> Compute:
    """Return how our step is computed."""
    return Compute(
        dtype="bfloat16", remat=arguments.remat, scan=arguments.scan, reverse_only=True,
        loss_chunk=arguments.loss_chunk, attention=arguments.attention,
    )  # fmt: skip


def our_step(config: T5Config, way: Compute, micro: int) -> tuple[Callable[[Any, Any], Any], Any]:
    """Return ``(state, batch) -> (state, loss)``, with gradients summed over micro-batches of ``micro`` rows, and a state."""
    optimizer = optax.chain(adafactor(), optax.scale(RATE))

    def step(state: Any, batch: Any) -> Any:
        params, inner = state
        parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]), batch)

        def add(carry: Any, part: Any) -> Any:
            (total, sums), gradient = jax.value_and_grad(lambda p: batch_loss(p, config, part, way), has_aux=True)(
                params
            )
            return jax.tree.map(jnp.add, carry, (gradient, total, sums["tokens"])), None

        zero = jnp.zeros((), jnp.float32)
        (gradient, total, tokens), _ = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, params), zero, zero), parts)
        updates, inner = optimizer.update(jax.tree.map(lambda g: g / tokens, gradient), inner, params)
        return (optax.apply_updates(params, updates), inner), total / tokens

    params = init(config, 0)
    return jax.jit(step, donate_argnums=0), (params, optimizer.init(params))


def prefetched(make: Callable[[int], Any], steps: int) -> Iterator[Any]:
    """Yield ``make(0) ... make(steps - 1)`` on the device; two more are made ahead in a thread."""
    ready: queue.Queue[Any] = queue.Queue(2)

    def work() -> None:
        for i in range(steps):
            ready.put(jax.device_put(make(i)))

    threading.Thread(target=work, daemon=True).start()
    for _ in range(steps):
        yield ready.get()


def ours(name: str, arguments: argparse.Namespace, *, streamed: bool = False) -> dict[str, Any]:
    """Measure our step for each size of micro-batch; with ``streamed`` also the share of time that waits for input."""
    smoke = arguments.smoke
    config, device = config_of(name, smoke), jax.local_devices()[0].device_kind
    size, source, target = (4, 12, 6) if smoke else (arguments.batch, SOURCE, TARGET)
    rows = []
    for micro in [2] if smoke else arguments.microbatch:
        step, state = our_step(config, way_of(arguments), micro)
        resident = jax.device_put(random_batch(config, 0, size, source, target))
        for _ in range(2):  # to compile and warm up
            state, loss = step(state, resident)
            loss.block_until_ready()
        times: list[float] = []
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            for _ in range(arguments.steps):
                state, loss = step(state, resident)
            loss.block_until_ready()
            times.append((time.perf_counter() - start) / arguments.steps)
        row: dict[str, Any] = {"microbatch": micro, "seconds": times, "median": statistics.median(times)}
        if streamed:
            total = arguments.rounds * arguments.steps
            start = time.perf_counter()
            for batch in prefetched(lambda i: random_batch(config, i, size, source, target), total):
                state, loss = step(state, batch)
            loss.block_until_ready()
            row["streamed"] = (time.perf_counter() - start) / total
            row["idle_for_input"] = max(0.0, 1 - row["median"] / row["streamed"])
        flops = step_flops(config, size, source, target)
        row |= {"tokens_per_second": size * (source + target) / row["median"], "flops": flops}
        row["utilisation"] = utilisation(flops, row["median"], device)
        rows.append(row)
    return {"name": name, "device": device, "batch": [size, source, target], "rows": rows}


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure Hugging Face's t5-v1_1-base under torch.compile in bf16, Adafactor, the same batch and micro-batches."""
    import torch

    smoke = arguments.smoke
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = config_of("t5-v1_1-base", smoke)
    size, source, target = (4, 12, 6) if smoke else (arguments.batch, SOURCE, TARGET)
    torch.set_float32_matmul_precision("high")
    model = reference_model(config, init(config, 0)).to(device).train()
    model.config.use_cache = False
    # compiling for a CPU would need a C++ compiler, which tests must not need
    run = model if smoke else torch.compile(model)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=RATE)
    batch = {n: torch.tensor(x, device=device).long() for n, x in random_batch(config, 0, size, source, target).items()}

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    rows = []
    for micro in [2] if smoke else arguments.microbatch:

        def step(micro: int = micro) -> None:
            optimizer.zero_grad()
            for i in range(0, size, micro):
                ids, labels = batch["encoder_ids"][i : i + micro], batch["targets"][i : i + micro]
                with torch.autocast(device, torch.bfloat16):
                    loss = run(input_ids=ids, labels=labels).loss * (micro / size)
                loss.backward()
            optimizer.step()

        for _ in range(3):
            step()
        wait()
        times = []
        for _ in range(arguments.rounds):
            start = time.perf_counter()
            for _ in range(arguments.steps):
                step()
            wait()
            times.append((time.perf_counter() - start) / arguments.steps)
        median = statistics.median(times)
        rows.append(
            {
                "microbatch": micro,
                "seconds": times,
                "median": median,
                "tokens_per_second": size * (source + target) / median,
            }
        )
    return {"name": "t5-v1_1-base", "device": device, "batch": [size, source, target], "rows": rows}


def part(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of ``PARTS`` in this process and return its result."""
    if name == "parity":
        return parity(arguments.smoke)
    if name == "reference":
        return reference(arguments)
    return ours("t5-small" if name == "small" else "t5-v1_1-base", arguments, streamed=name == "base")


def in_a_process(name: str, words: list[str]) -> dict[str, Any]:
    """Run a part in a process of its own, which frees its memory; return an error as a result, so that the others run."""
    command = [sys.executable, "-m", "benchmarks.gpu_train_step", "--part", name, "--json", "-", *words]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        return {"error": (ran.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(ran.stdout[ran.stdout.index("{") :])


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [f"Parity with Hugging Face's T5 in float32: {json.dumps(result['parity'])}", ""]
    lines += ["| | micro-batch | s a step | tokens/s | share of peak | idle for input |", "|---|---|---|---|---|---|"]
    for name in PARTS[1:]:
        found = result.get(name)
        if found is None or "error" in found:
            lines.append(f"| {name}: {'not run' if found is None else found['error']} | | | | | |")
            continue
        for row in found["rows"]:
            share = "unknown" if row.get("utilisation") is None else f"{row['utilisation']:.1%}"
            idle = f"{row['idle_for_input']:.2%}" if "idle_for_input" in row else ""
            numbers = f"{row['microbatch']} | {row['median']:.4f} | {row['tokens_per_second']:.0f}"
            lines.append(f"| {name}: {found['name']} | {numbers} | {share} | {idle} |")
    if "ratio" in result:
        lines += ["", f"Tokens a second, ours over the reference's: {result['ratio']:.2f} (goal 1.3)"]
    return "\n".join(lines)


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_train_step", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--batch", type=int, default=256, help="sequences in a step (default 256)")
    parser.add_argument(
        "--microbatch", type=int, nargs="+", default=[64], help="rows at a time; each is measured (default 64)"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps in a round (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--remat", action="store_true", help="rematerialise blocks")
    parser.add_argument("--scan", action="store_true", help="scan over layers")
    parser.add_argument("--loss-chunk", type=int, help="tokens whose logits are held at once (default: all)")
    parser.add_argument("--attention", choices=["plain", "chunked"], default="plain")
    parser.add_argument("--smoke", action="store_true", help="tiny networks, for a test on a CPU")
    parser.add_argument("--part", choices=PARTS, help="only this, in this process")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(words)
    for micro in arguments.microbatch:
        if micro < 1 or arguments.batch % micro:
            parser.error(f"--microbatch {micro} does not divide the batch of {arguments.batch}")
    if arguments.smoke:
        arguments.steps = arguments.rounds = 1
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Compare, then measure; return 1 if the comparison fails."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parsed(words)
    if arguments.part:
        print(json.dumps(part(arguments.part, arguments)))
        return 0
    passed = _without_json(words)
    result: dict[str, Any] = {"parity": in_a_process("parity", passed)}
    if result["parity"].get("equal"):
        for name in PARTS[1:]:
            result[name] = in_a_process(name, passed)
        if "rows" in result["base"] and "rows" in result["reference"]:
            best = [max(row["tokens_per_second"] for row in result[n]["rows"]) for n in ("base", "reference")]
            result["ratio"] = best[0] / best[1]
    result["provenance"] = provenance()
    hand_over(result, markdown(result), arguments.json)
    return 0 if result["parity"].get("equal") else 1


def _without_json(words: list[str]) -> list[str]:
    kept = [word for word in words if not word.startswith("--json=")]
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return kept


if __name__ == "__main__":
    sys.exit(main())
