"""T5's training step on one GPU: parity with Hugging Face's T5 in float32, then speed against it under ``torch.compile``.

It needs a machine with one NVIDIA GPU of 80 GB, JAX with CUDA, and PyTorch (the extra ``parity``). With ``--smoke`` it runs
on a CPU, in its smallest size.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
import queue
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.output import hand_over
from fusion_core import save_pretrained
from fusion_core.models.t5 import Compute, T5Config, batch_loss, init, step_flops
from fusion_core.models.t5.attention import WAYS
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
MICROBATCH = {"base": [64, 128], "small": [128, 256], "reference": [32, 64]}
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


def ours(name: str, arguments: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Compile our step for each way; return what measures them, for t5-v1_1-base also with streamed batches."""
    part = "small" if name == "t5-small" else "base"
    config, shape, device = config_of(name, arguments.smoke), shape_of(arguments), jax.local_devices()[0]
    drawn = jax.tree.map(np.asarray, init(config, 0))
    first = random_batch(config, 0, *shape)

    def compiled(way: Way) -> tuple[Any, float]:
        start = time.perf_counter()
        step, optimizer = our_step(config, compute_of(arguments, way), way.microbatch)
        state = jax.eval_shape(lambda p: (p, optimizer.init(p)), drawn)
        return step.lower(state, first).compile(), time.perf_counter() - start

    ways = ways_of(arguments, part)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        steps = [pool.submit(compiled, way) for way in ways]

    def row_of(way: Way, step: Any, seconds: float) -> dict[str, Any]:
        params = jax.device_put(drawn)
        kept = [(params, optimizer_for().init(params)), None]
        resident = jax.device_put(first)

        def once(batch: Any = resident) -> None:
            kept[:] = step(kept[0], batch)

        def wait() -> None:
            kept[1].block_until_ready()

        row = {"compile_seconds": seconds} | timed(arguments, once, wait)
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
        laid_out = step.memory_analysis()  # the state is written over itself
        row["bytes"] = laid_out.temp_size_in_bytes + laid_out.argument_size_in_bytes
        return row

    def measure() -> dict[str, Any]:
        rows = []
        for way, step in zip(ways, steps, strict=True):
            try:
                found = row_of(way, *step.result())
            except Exception as error:  # out of memory, or no kernel for it: the other ways are measured
                found = said(error)
            rows.append(way._asdict() | found)
            print(f"{name}, {way}: {found.get('median', found.get('error'))}", file=sys.stderr, flush=True)
        return {"name": name, "device": device.device_kind, "batch": shape, "rows": rows}

    return measure


def reference(arguments: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Compile Hugging Face's t5-v1_1-base by torch.compile, bf16, Adafactor; return what measures it, on the same batch."""
    import torch

    smoke, (size, source, target) = arguments.smoke, shape_of(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = config_of("t5-v1_1-base", smoke)
    torch.set_float32_matmul_precision("high")
    model = reference_model(config, init(config, 0)).to(device).train()
    model.config.use_cache = False
    # compiling for a CPU would need a C++ compiler, which tests must not need
    run = model if smoke else torch.compile(model, dynamic=False)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=RATE)
    batch = {n: torch.tensor(x, device=device).long() for n, x in random_batch(config, 0, size, source, target).items()}

    def gradients(micro: int, rows: int) -> None:
        for i in range(0, rows, micro):
            ids, labels = batch["encoder_ids"][i : i + micro], batch["targets"][i : i + micro]
            with torch.autocast(device, torch.bfloat16):
                loss = run(input_ids=ids, labels=labels).loss * (micro / size)
            loss.backward()

    def step(micro: int) -> None:
        optimizer.zero_grad()
        gradients(micro, size)
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    failed: list[dict[str, Any]] = []
    fits = None
    # the largest that fits: each takes minutes to compile
    for micro in sorted({way.microbatch for way in ways_of(arguments, "reference")}, reverse=True):
        try:
            gradients(micro, micro)
            wait()
            fits = micro
            break
        except Exception as error:
            failed.append({"microbatch": micro} | said(error))
    if device == "cuda":
        torch.cuda.empty_cache()

    def measure() -> dict[str, Any]:
        rows = list(failed)
        if fits is not None:
            rows.append({"microbatch": fits} | timed(arguments, lambda: step(fits), wait))
        return {"name": "t5-v1_1-base", "device": device, "batch": [size, source, target], "rows": rows}

    return measure


def prepared(name: str, arguments: argparse.Namespace) -> Callable[[], dict[str, Any]]:
    """Compile one of ``PARTS``; return what measures it. Parity is found at once: nothing of it is timed."""
    if name == "parity":
        found = parity(arguments.smoke)
        return lambda: found
    if name == "reference":
        return reference(arguments)
    return ours("t5-small" if name == "small" else "t5-v1_1-base", arguments)


def in_processes(names: Sequence[str], words: list[str], limit: float | None = None) -> dict[str, dict[str, Any]]:
    """Run parts in processes of their own: all compile side by side, then each is measured while the others stand still.

    A part that fails, or takes longer than ``limit`` seconds, has an error as its result, so that the others run.
    """
    begun = time.perf_counter()
    deadline = None if limit is None else begun + limit
    command = [sys.executable, "-m", "benchmarks.gpu_train_step", "--json", "-", *words]
    # each takes the memory that it needs, not three quarters of the device
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    running = {}
    with contextlib.ExitStack() as stack:
        for name in names:
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            running[name] = subprocess.Popen([*command, "--part", name], env=environment, **pipes), errors
            if deadline is not None:
                timer = threading.Timer(deadline - time.perf_counter(), running[name][0].kill)
                timer.start()
                stack.callback(timer.cancel)
        for name, (process, _) in running.items():
            process.stdout.readline()  # READY, or nothing where it failed
            print(f"{name}: compiled, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        return {name: _result(*running[name]) for name in names}


def _result(process: Any, errors: Any) -> dict[str, Any]:
    """Let a part go on, and return its result."""
    try:
        text, _ = process.communicate("go\n")
    except BrokenPipeError:
        text = ""
    status = process.wait()
    if status == -signal.SIGKILL:
        return {"error": "killed: it took longer than --timeout, or too much memory"}
    if status:
        errors.seek(0)
        return {"error": (errors.read().strip().splitlines() or ["no message"])[-1]}
    return json.loads(text[text.index("{") :])


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest row that did not fail."""
    return min((row for row in rows if "median" in row), key=lambda row: row["median"], default=None)


def ratio_of(result: dict[str, Any]) -> dict[str, float]:
    """Return ``ratio``, tokens a second of our best way over those of the reference's; nothing where one was not measured."""
    ours_, theirs = (best(result.get(name, {}).get("rows", [])) for name in ("base", "reference"))
    return {"ratio": ours_["tokens_per_second"] / theirs["tokens_per_second"]} if ours_ and theirs else {}


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [f"Parity with Hugging Face's T5 in float32: {json.dumps(result['parity'])}", ""]
    heads = (
        "",
        "micro-batch",
        "attention",
        "layers",
        "s a step",
        "tokens/s",
        "share of peak",
        "idle for input",
        "memory, GB",
    )
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name in PARTS[1:]:
        found = result.get(name)
        if found is None or "error" in found:
            lines.append(f"| {name}: {'not run' if found is None else found['error']} |" + " |" * (len(heads) - 1))
            continue
        for row in found["rows"]:
            layers = {True: "scanned", False: "apart"}.get(row.get("scan"), "")
            cells = [f"{name}: {found['name']}", str(row["microbatch"]), row.get("attention", ""), layers]
            if "error" in row:
                cells += [row["error"].splitlines()[0][:80].replace("|", "/"), "", "", "", ""]
            else:
                share = "unknown" if row.get("utilisation") is None else f"{row['utilisation']:.1%}"
                idle = f"{row['idle_for_input']:.2%}" if "idle_for_input" in row else ""
                memory = f"{row['bytes'] / 1e9:.1f}" if "bytes" in row else ""
                cells += [f"{row['median']:.4f}", f"{row['tokens_per_second']:.0f}", share, idle, memory]
            lines.append(f"| {' | '.join(cells)} |")
    if "ratio" in result:
        lines += [
            "",
            f"Tokens a second, the best of ours over the best of the reference's: {result['ratio']:.2f} (goal 1.3)",
        ]
    return "\n".join(lines)


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_train_step", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--batch", type=int, default=256, help="sequences in a step (default 256)")
    parser.add_argument(
        "--microbatch", type=int, nargs="+", help="rows at a time; each is measured (default: a few that fit 80 GB)"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps in a round (default 5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--remat", action="store_true", help="rematerialise blocks")
    parser.add_argument(
        "--layers",
        choices=["apart", "scanned"],
        nargs="+",
        default=["apart"],
        help="how layers are compiled; each is measured",
    )
    parser.add_argument("--loss-chunk", type=int, help="tokens whose logits are held at once (default: all)")
    parser.add_argument(
        "--attention", choices=sorted(WAYS), nargs="+", default=["fused"], help="each is measured (default fused)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny networks, for a test on a CPU")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="of all together; what is not measured by then says so"
    )
    parser.add_argument("--part", choices=PARTS, help="only this, in this process")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(words)
    for micro in arguments.microbatch or ():
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
        measure = prepared(arguments.part, arguments)
        print("READY", flush=True)
        sys.stdin.readline()
        print(json.dumps(measure()))
        return 0
    result = in_processes(PARTS, _without_json(words), arguments.timeout)
    if not result["parity"].get("equal"):
        result = {"parity": result["parity"]}
    result |= ratio_of(result)
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
