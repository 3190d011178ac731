"""Deviation of a fused T5 from the mean of its trained sources, with each norm mode.

``python -m benchmarks.norm_modes`` trains tiny T5s by span corruption on the standard library's documentation, fuses pairs
of equal sizes, of unequal widths and of unequal lengths of training, and measures on held-out text: the root mean square
deviation of the fused logits from the mean of the sources' (logits minus their mean over the vocabulary, which does not
change the softmax), and the loss. The calibration batch is training text. Prints Markdown; ``--json FILE`` (``-`` for the
terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

import fusion_core as fc
from benchmarks.output import hand_over
from fusion_core.models.t5 import init
from fusion_core.models.t5.model import shifted_right
from fusion_core.text import SpanCorruption, default_corpus, split_documents, train_tokenizer
from fusion_core.text.sources import first_batches
from fusion_core.text.tokenizer import SENTINELS
from fusion_core.train import Cadence, Trainer, Training, TrainState, adafactor, init_state, t5_loss, t5_schedule

VOCABULARY, SOURCE, BATCH, RATE = 512, 64, 16, 0.02
STYLES = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# case -> for both sources (width, share of the steps)
CASES = {
    "equal": ((32, 1.0), (32, 1.0)),
    "widths 32 and 16": ((32, 1.0), (16, 1.0)),
    "all and a quarter of the steps": ((32, 1.0), (32, 0.25)),
}
MODES = ("plain", "calibrated", "grouped")


def config_of(style: str, width: int) -> fc.T5Config:
    shape = {"d_model": width, "d_kv": 8, "d_ff": 4 * width, "num_heads": width // 8}
    depth = {"num_layers": 2, "num_decoder_layers": 2}
    return fc.T5Config(vocab_size=VOCABULARY + SENTINELS, **shape, **depth, **STYLES[style])


def text(documents: list[str]) -> tuple[SpanCorruption, SpanCorruption]:
    """Return the sources of training and of held-out batches."""
    train, held_out = split_documents(documents, 0.1, 0)
    tokenizer = train_tokenizer(train, VOCABULARY)
    parts = [SpanCorruption.from_documents(tokenizer.encode(part), tokenizer, SOURCE, 0) for part in (train, held_out)]
    return parts[0], parts[1]


def trained(trainer: Trainer, state: TrainState, data: SpanCorruption, steps: int) -> Any:
    """Return the parameters after a training by the engine in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            name="source",
            trainer=trainer,
            data=data,
            folder=pathlib.Path(folder),
            run={},
            cadence=Cadence(log=max(10, steps), evaluate=max(10, steps), checkpoint=max(10, steps)),
            schedule=t5_schedule(),
            step_tokens=BATCH * SOURCE,
            step_flops=1.0,
        )
        return training.to(state, steps).params


def compute(*, styles: tuple[str, ...], steps: int, batches: int, documents: list[str]) -> dict[str, Any]:
    """Return the deviations and losses of every style, case and mode."""
    train, held_out = text(documents)
    checks = first_batches(held_out, BATCH, batches)
    (calibration,) = first_batches(train.with_seed(10**6), BATCH, 1)
    rows, seconds = [], time.perf_counter()
    for style in styles:
        sources, trainers = {}, {}

        def source(
            seed: int, width: int, share: float, style: str = style, sources: dict = sources, trainers: dict = trainers
        ) -> Any:
            key, config = (seed, width, share), config_of(style, width)
            if width not in trainers:  # one compilation for each width
                trainers[width] = Trainer(t5_loss(config), adafactor(), BATCH, 10)
            trainer = trainers[width]
            if key not in sources:
                state = init_state(init(config, seed, match_cross_attention=True), trainer.optimizer, RATE)
                sources[key] = trained(trainer, state, train.with_seed(seed), round(share * steps / 10) * 10)
            return sources[key], config

        for case, kinds in CASES.items():
            networks = [source(seed, *kind) for seed, kind in enumerate(kinds)]
            row: dict[str, Any] = {"style": style, "case": case}
            outputs = [evaluate(*network, checks) for network in networks]
            row["losses"] = [loss for _, loss in outputs]
            mean = sum(logits for logits, _ in outputs) / len(outputs)
            row["loss of the mean"] = cross_entropy(mean, checks)
            row["difference"] = rms(outputs[0][0] - outputs[1][0])
            for mode in MODES:
                extra = {"calibration": calibration} if mode == "calibrated" else {}
                logits, loss = evaluate(*fc.fuse(networks, norm=mode, **extra), checks)
                row[mode] = {"deviation": rms(logits - mean), "loss": loss}
            rows.append(row)
    seconds = time.perf_counter() - seconds
    return {"rows": rows, "steps": steps, "batches": batches, "tokens": batches * BATCH * SOURCE, "seconds": seconds}


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean((x - x.mean(axis=-1, keepdims=True)) ** 2)))


def cross_entropy(logits: np.ndarray, checks: list[Any]) -> float:
    """Return the mean cross-entropy over the targets' tokens, in nats."""
    targets = np.concatenate([batch["targets"] for batch in checks])
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    normalizer = top[..., 0] + np.log(np.exp(wide - top).sum(axis=-1))
    losses = normalizer - np.take_along_axis(wide, targets[..., None], axis=-1)[..., 0]
    return float(losses[targets != 0].mean())


def evaluate(params: Any, config: fc.T5Config, checks: list[Any]) -> tuple[np.ndarray, float]:
    """Return the logits of all batches, and the loss."""

    @jax.jit
    def run(params: Any, encoder_ids: Any, targets: Any) -> Any:
        return fc.forward(params, config, encoder_ids, shifted_right(targets, config), encoder_ids != 0)

    logits = np.concatenate([np.asarray(run(params, b["encoder_ids"], b["targets"])) for b in checks])
    return logits, cross_entropy(logits, checks)


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = [
        "| sources | losses | loss of the mean | difference | deviation: plain | calibrated | grouped | "
        "loss: plain | calibrated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        losses = " and ".join(f"{loss:.3f}" for loss in row["losses"])
        deviations = " | ".join(f"{row[mode]['deviation']:.2g}" for mode in MODES)
        lines.append(
            f"| {row['style']}, {row['case']} | {losses} | {row['loss of the mean']:.3f} | {row['difference']:.2f} | "
            f"{deviations} | {row['plain']['loss']:.3f} | {row['calibrated']['loss']:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.norm_modes", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="training steps of a source (default 800)")
    parser.add_argument("--batches", type=int, default=8, help="held-out batches of 16 (default 8)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test: v1.0 only, 20 steps, one batch")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    smoke = arguments.smoke
    result = compute(
        styles=("v1.0",) if smoke else tuple(STYLES),
        steps=40 if smoke else arguments.steps,
        batches=1 if smoke else arguments.batches,
        documents=default_corpus(()),
    )
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
