"""T5's training step on one GPU: parity with Hugging Face's T5 in float32, then speed against it under ``torch.compile``.

It needs a machine with one NVIDIA GPU of 80 GB, JAX with CUDA, and PyTorch (the extra ``parity``). With ``--smoke`` it runs
on a CPU, in its smallest size.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_step import RATE, config_of, ours, random_batch, said, shape_of, timed, ways_of
from benchmarks.output import hand_over
from fusion_core import save_pretrained
from fusion_core.models.t5 import T5Config, batch_loss, init
from fusion_core.models.t5.attention import WAYS
from fusion_core.models.units import by_name
from fusion_core.provenance import provenance

PARTS = ("parity", "base", "small", "reference")
# largest difference of float32 gradients, relative to the largest entry: sums of thousands of terms in another order
TOLERANCE = 1e-3


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


def reference(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure Hugging Face's t5-v1_1-base under torch.compile in bf16, Adafactor, on the same batch.

    Of the micro-batches it takes the largest that fits, since each takes a minute or more to compile.
    """
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

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step(micro: int) -> None:
        optimizer.zero_grad()
        for i in range(0, size, micro):
            ids, labels = batch["encoder_ids"][i : i + micro], batch["targets"][i : i + micro]
            with torch.autocast(device, torch.bfloat16):
                loss = run(input_ids=ids, labels=labels).loss * (micro / size)
            loss.backward()
        optimizer.step()

    rows: list[dict[str, Any]] = []
    for micro in sorted({way.microbatch for way in ways_of(arguments, "reference")}, reverse=True):
        try:
            rows.append({"microbatch": micro} | timed(arguments, lambda m=micro: step(m), wait))
            break
        except Exception as error:
            rows.append({"microbatch": micro} | said(error))
    return {"name": "t5-v1_1-base", "device": device, "batch": [size, source, target], "rows": rows}


def part(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of ``PARTS`` in this process and return its result."""
    if name == "parity":
        return parity(arguments.smoke)
    if name == "reference":
        return reference(arguments)
    return ours("t5-small" if name == "small" else "t5-v1_1-base", arguments)


def in_a_process(name: str, words: list[str], limit: float | None = None) -> dict[str, Any]:
    """Run a part in a process of its own, which frees the device's memory; return an error as a result, so that the others run.

    Parts do not compile side by side: what a waiting process holds of the device's memory made the measured one fail.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_train_step", "--part", name, "--json", "-", *words]
    start = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not measured in {limit:.0f} s (--timeout)"}
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if ran.returncode:
        return {"error": (ran.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(ran.stdout[ran.stdout.index("{") :])


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the fastest row that did not fail."""
    return min((row for row in rows if "median" in row), key=lambda row: row["median"], default=None)


def ratio_of(result: dict[str, Any]) -> dict[str, float]:
    """Return ``ratio``, tokens a second of our best way over those of the reference's; nothing where one was not measured."""
    ours_, theirs = (best(result.get(name, {}).get("rows", [])) for name in ("base", "reference"))
    return {"ratio": ours_["tokens_per_second"] / theirs["tokens_per_second"]} if ours_ and theirs else {}


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = ["Parity with Hugging Face's T5 in float32 (largest difference of a gradient, of its largest entry):", ""]
    parity_of = result["parity"]
    for name in ("t5-small", "t5-v1_1-base"):
        if name in parity_of:
            row = parity_of[name]
            said_ = f"loss {row['loss']:.6f} against {row['reference_loss']:.6f}, gradients {row['gradient_difference']:.1e}"
            lines.append(
                f"- {name}: {said_}, {'equal' if row['equal'] else 'NOT equal'} to {parity_of['tolerance']:.0e}"
            )
    lines += [f"- {parity_of['error']}"] if "error" in parity_of else []
    lines.append("")
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
            cells = [
                f"{name}: {found['name']}, {found['device']}",
                str(row["microbatch"]),
                row.get("attention", ""),
                layers,
            ]
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
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of each part; one that takes longer says so")
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
        print(json.dumps(part(arguments.part, arguments)))
        return 0
    passed = _without_json(words)
    result: dict[str, Any] = {"parity": in_a_process("parity", passed, arguments.timeout)}
    if result["parity"].get("equal"):
        result |= {name: in_a_process(name, passed, arguments.timeout) for name in PARTS[1:]}
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
