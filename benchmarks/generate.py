"""Speed of generation from a T5, against Hugging Face's ``generate`` in PyTorch, both with a cache.

``python -m benchmarks.generate`` gives both the same random weights and sources, checks that their answers are equal, and then
measures them in turns, in one run. The end token is one that is never generated, so that all answers have full length. Needs
torch and transformers (``pip install 'deepfusion[parity]'``). Prints Markdown; ``--json FILE`` (``-`` for the terminal)
writes the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np

import fusion_core as fc
from benchmarks.output import hand_over
from fusion_core.models.t5 import init
from fusion_core.models.t5.decoding import generate
from fusion_core.provenance import provenance

TINY = fc.T5Config(
    vocab_size=4096, d_model=128, d_kv=32, d_ff=512, num_layers=4, num_decoder_layers=4, num_heads=4
)  # fmt: skip
# name -> (config, batch, source, tokens to write, beams)
CASES = {
    "tiny, greedy, batch 16": (TINY, 16, 64, 64, 1),
    "tiny, greedy, batch 1": (TINY, 1, 64, 64, 1),
    "tiny, 4 beams, batch 4": (TINY, 4, 64, 64, 4),
    "t5-small, greedy, batch 8": (fc.T5Config.named("t5-small"), 8, 128, 32, 1),
    "t5-small, 4 beams, batch 2": (fc.T5Config.named("t5-small"), 2, 128, 32, 4),
}
SMOKE = {
    "smoke": (dataclasses.replace(TINY, vocab_size=200, d_model=32, num_layers=1, num_decoder_layers=1), 2, 8, 4, 2)
}


def varied(config: fc.T5Config, seed: int) -> Any:
    """Return random weights whose answers vary; with tied ones the answers would only repeat the start token."""
    params = init(config, seed)
    params["shared"]["weight"] *= 0.2
    params["decoder"]["final_layer_norm"]["weight"] *= 10
    return params


def measure(case: tuple[Any, ...], rounds: int, threads: int) -> dict[str, Any]:
    """Measure both on one case: seconds a call, share of equal tokens, ratio of the times."""
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.utils import logging

    config, batch, source, length, beams = case
    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    params = varied(config, 0)
    ids = np.random.default_rng(0).integers(2, config.vocab_size, (batch, source)).astype(np.int32)
    how: dict[str, Any] = {"max_length": length}
    if beams > 1:
        how |= {"method": "beam", "beams": beams}
    written = set(generate(params, config, ids, **how).ravel().tolist())
    config = dataclasses.replace(config, eos_token_id=next(t for t in range(3, config.vocab_size) if t not in written))
    with tempfile.TemporaryDirectory() as folder:
        fc.save_pretrained(pathlib.Path(folder) / "t5", params, config)
        model = T5ForConditionalGeneration.from_pretrained(pathlib.Path(folder) / "t5").eval()
    source_ids = torch.tensor(ids).long()
    mask = torch.ones_like(source_ids)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                source_ids, attention_mask=mask, do_sample=False, num_beams=beams, max_length=length + 1
            )
        return out.numpy()[:, 1:]

    ours = lambda: generate(params, config, ids, **how)
    first, second = ours(), theirs()  # the first call compiles
    same = first[:, : second.shape[1]] == second
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for i in range(rounds):
        for name, call in (("ours", ours), ("theirs", theirs))[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "batch": batch,
        "source": source,
        "length": length,
        "beams": beams,
        "rows_equal": float(same.all(axis=1).mean()),
        "tokens_equal": float(same.mean()),
        "seconds": seconds,
        "tokens_per_second": {name: batch * length / value for name, value in medians.items()},
        "ratio": medians["theirs"] / medians["ours"],
        # the shortest calls are disturbed least by other work
        "ratio_of_best": min(seconds["theirs"]) / min(seconds["ours"]),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [
        "| case | ours, tokens/s | PyTorch, tokens/s | ratio | of the best calls | tokens equal |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["cases"].items():
        ours, theirs = (row["tokens_per_second"][who] for who in ("ours", "theirs"))
        ratios = f"{row['ratio']:.2f} | {row['ratio_of_best']:.2f}"
        lines.append(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ratios} | {row['tokens_equal']:.1%} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="calls of each, in turns (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default 2)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    cases = SMOKE if arguments.smoke else CASES
    found = {name: measure(case, arguments.rounds, arguments.threads) for name, case in cases.items()}
    result = {"cases": found, "threads": arguments.threads, "provenance": provenance()}
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
