"""Accuracy in sentiment of a tiny T5, pre-trained on plain text, against a bag of words.

``python -m benchmarks.finetune_sst2 --glue FOLDER/SST-2 --text FOLDER/pretrain`` pre-trains a T5 by span corruption,
fine-tunes it on SST-2's train.tsv as ``deepfusion finetune`` does, and fits a logistic regression on counts of words to the
same rows. Learning rate and number of steps are chosen on a part of train that neither is fitted to; the regression's C by
cross-validation on train. Both are then scored once on every other file: dev.tsv, and test.tsv if there is one. Needs
scikit-learn (``pip install 'deepfusion[data]'``). With ``--smoke`` a small made-up SST-2 is used. Prints Markdown; ``--json
FILE`` (``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
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
from fusion_core.models.t5.decoding import Decoding
from fusion_core.models.t5.flops import step_flops
from fusion_core.provenance import provenance
from fusion_core.runs.answers import answer
from fusion_core.runs.finetune import FinetuneSettings, Finetuning
from fusion_core.text import SpanCorruption, default_corpus, read_documents, split_documents, train_tokenizer
from fusion_core.text.examples import encode_texts
from fusion_core.text.sources import first_batches
from fusion_core.text.span_corruption import target_length
from fusion_core.text.tasks import Example, named_task
from fusion_core.text.tokenizer import SENTINELS
from fusion_core.train import (
    Cadence,
    Trainer,
    Training,
    TrainState,
    adafactor,
    init_state,
    t5_loss,
    t5_schedule,
)
from fusion_core.train.devices import host_copy

SOURCE, BATCH, HELD_OUT = 128, 16, 2000


def note(what: str) -> None:
    """Print a line with the time on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def shown(record: dict[str, Any]) -> None:
    """Print an evaluation of a training."""
    kept = ("accuracy", "validation_loss")
    if "validation_loss" in record:
        note(
            f"{record['node']} step {record['step']}: {', '.join(f'{k} {record[k]:.4f}' for k in kept if k in record)}"
        )


def made_up(folder: pathlib.Path) -> pathlib.Path:
    """Write a small made-up SST-2, in which the last word decides the label; return its folder."""
    rng = np.random.default_rng(0)
    ends = {1: ("joy", "wonder", "charm"), 0: ("bore", "mess", "waste")}
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    for name, rows in (("train", 400), ("dev", 60)):
        lines = []
        for label in rng.integers(0, 2, rows):
            words = [*("".join(rng.choice(syllables, 2)) for _ in range(2)), "is a", rng.choice(ends[int(label)])]
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
    return folder


def pretrain(documents: list[str], arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Train a tokenizer, and a network by span corruption, and write them into the folder as checkpoint ``small``."""
    train, held_out = split_documents(documents, 0.3 if arguments.smoke else 0.05, arguments.seed)
    tokenizer = train_tokenizer(train, arguments.vocab, arguments.seed)
    width, layers = arguments.width, arguments.layers
    config = fc.T5Config(
        vocab_size=arguments.vocab + SENTINELS,
        d_model=width,
        d_kv=32,
        d_ff=4 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=width // 32,
    )
    data, checks = (
        SpanCorruption.from_documents(tokenizer.encode(part), tokenizer, SOURCE, arguments.seed)
        for part in (train, held_out)
    )
    trainer = Trainer(t5_loss(config), adafactor(), BATCH, 10)
    validation = first_batches(checks, BATCH, 8)
    training = Training(
        name="pre-training",
        trainer=trainer,
        data=data,
        folder=folder / "pretraining",
        run={},
        cadence=Cadence(log=250, evaluate=250, checkpoint=arguments.pretrain_steps),
        schedule=t5_schedule(1000),
        step_tokens=BATCH * (SOURCE + target_length(SOURCE)),
        step_flops=step_flops(config, BATCH, SOURCE, target_length(SOURCE)),
        evaluate=lambda state: {"validation_loss": trainer.scores(state.params, validation, replicated=True)["loss"]},
        show=shown,
    )
    params = init(config, arguments.seed, match_cross_attention=True)
    seconds = time.perf_counter()
    state = training.to(init_state(params, trainer.optimizer, arguments.pretrain_rate), arguments.pretrain_steps)
    fc.save_pretrained(folder / "small", state.params, config)
    tokenizer.save(folder / "small")
    return {
        "steps": arguments.pretrain_steps,
        "windows": len(data.windows),
        "loss": training.metrics.records[-1]["validation_loss"],
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "seconds": time.perf_counter() - seconds,
    }


def split_train(path: pathlib.Path, folder: pathlib.Path, held_out: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Write the rows to fit and the rows to choose by into two files; equal texts are in one of them only."""
    header, *lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    texts = list(dict.fromkeys(line.rsplit("\t", 1)[0].strip() for line in lines))
    chosen = {texts[i] for i in np.random.default_rng(1).permutation(len(texts))[:held_out]}
    parts: tuple[list[str], list[str]] = ([], [])
    for line in lines:
        parts[line.rsplit("\t", 1)[0].strip() in chosen].append(line)
    for name, part in zip(("fit", "choose"), parts, strict=True):
        (folder / f"{name}.tsv").write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    return folder / "fit.tsv", folder / "choose.tsv"


def right_answers(run: Finetuning, params: Any, examples: list[Example]) -> list[bool]:
    """Return for each example whether the network's answer is right."""
    sources = encode_texts(run.network.tokenizer, [e.source for e in examples], run.settings.source_length)[0]
    answers = answer(run.network._replace(params=params), sources, Decoding(run.longest), batch=64)
    return [run.task.read(a) == run.task.read(e.target) for a, e in zip(answers, examples, strict=True)]


def fine_tune(
    fit: pathlib.Path, choose: pathlib.Path, arguments: argparse.Namespace, folder: pathlib.Path
) -> tuple[Finetuning, Any, dict[str, Any]]:
    """Return the run and the parameters of the rate and step with the best accuracy on the rows to choose by, and all tries."""
    tried, best, seconds = [], (-1.0, None, None), time.perf_counter()
    for rate in arguments.rates:
        settings = FinetuneSettings(
            checkpoint=str(folder / "small"), train=str(fit), validation=str(choose), task="sst2", steps=arguments.steps,
            batch=arguments.batch, learning_rate=rate, seed=arguments.seed, every=arguments.every, source_length=128,
            dropout=arguments.dropout,
        )  # fmt: skip
        run = Finetuning(settings, folder / f"rate-{rate}")

        def evaluate(state: TrainState, run: Finetuning = run, rate: float = rate) -> dict[str, Any]:
            nonlocal best
            found = run.evaluate(state)
            tried.append({"rate": rate, "step": int(state.step[0]), "held_out_accuracy": found["accuracy"]})
            if found["accuracy"] > best[0]:
                best = (found["accuracy"], host_copy(state.params), {"rate": rate, "step": int(state.step[0])})
            return found

        dataclasses.replace(run.training(show=shown), evaluate=evaluate).to(run.start(), settings.steps)
    facts = {"tried": tried, "chosen": best[2], "rows": len(run.examples["train"])}
    return run, best[1], facts | {"seconds": time.perf_counter() - seconds}


def bag_of_words(fit: pathlib.Path, choose: pathlib.Path) -> Any:
    """Fit a logistic regression on word counts to all rows of train, with C by 5-fold cross-validation."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    texts, labels = rows_of([fit, choose])
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]}, cv=5)
    search.fit(texts, labels)
    note(f"bag of words: {search.best_params_}, cross-validated accuracy {search.best_score_:.4f}")
    return search


def rows_of(paths: list[pathlib.Path]) -> tuple[list[str], list[int]]:
    """Return the sentences and the classes of all rows of the files."""
    task = named_task("sst2")
    examples = [e for path in paths for e in task.examples(path)]
    return [e.source.removeprefix("sst2 sentence: ") for e in examples], [int(task.read(e.target)) for e in examples]


def compare(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """Return both accuracies, and their difference with the standard error of a paired comparison."""
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    return {
        "rows": len(ours),
        "t5": float(np.mean(ours)),
        "bag_of_words": float(np.mean(theirs)),
        "difference": float(difference.mean()),
        "standard_error": float(difference.std(ddof=1) / math.sqrt(len(difference))),
    }


def compute(arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Train, fit and compare, with files in ``folder``."""
    glue = made_up(folder) if arguments.smoke else arguments.glue
    if arguments.smoke:
        documents = ["\n".join(rows_of([glue / "train.tsv"])[0][i::2]) for i in range(2)]
    else:
        documents = read_documents(arguments.text) if arguments.text else default_corpus(())
    fit, choose = split_train(glue / "train.tsv", folder, 50 if arguments.smoke else HELD_OUT)
    regression = bag_of_words(fit, choose)
    pretraining = pretrain(documents, arguments, folder)
    run, params, finetuning = fine_tune(fit, choose, arguments, folder)
    result = {}
    for path in (glue / "dev.tsv", glue / "test.tsv"):
        if path.exists():
            ours = right_answers(run, params, named_task("sst2").examples(path))
            texts, labels = rows_of([path])
            result[path.stem] = compare(ours, (regression.predict(texts) == np.asarray(labels)).tolist())
            note(f"{path.stem}: {result[path.stem]}")
    return {
        "splits": result,
        "pretraining": pretraining,
        "finetuning": finetuning,
        "bag_of_words": {"C": regression.best_params_["logisticregression__C"], "cv_accuracy": regression.best_score_},
        "settings": {
            k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(arguments).items() if k != "json"
        },
        "provenance": provenance(),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the numbers as a table."""
    lines = ["| split | rows | T5 | bag of words | difference |", "|---|---|---|---|---|"]
    for name, row in result["splits"].items():
        difference = f"{row['difference']:+.4f} ± {row['standard_error']:.4f}"
        lines.append(f"| {name} | {row['rows']} | {row['t5']:.4f} | {row['bag_of_words']:.4f} | {difference} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune_sst2", description=__doc__.splitlines()[0])
    parser.add_argument("--glue", type=pathlib.Path, help="folder with SST-2's train.tsv, dev.tsv and perhaps test.tsv")
    parser.add_argument(
        "--text", nargs="*", default=[], help="files to pre-train on (default: installed documentation)"
    )
    parser.add_argument("--width", type=int, default=128, help="d_model, a multiple of 32 (default 128)")
    parser.add_argument("--layers", type=int, default=4, help="layers of encoder and of decoder (default 4)")
    parser.add_argument("--vocab", type=int, default=4096, help="pieces of the tokenizer (default 4096)")
    parser.add_argument(
        "--pretrain-steps", type=int, default=3000, help="steps of 16 sequences of 128 tokens (default 3000)"
    )
    parser.add_argument("--pretrain-rate", type=float, default=0.02, help="Adafactor's learning rate (default 0.02)")
    parser.add_argument("--steps", type=int, default=3000, help="steps of fine-tuning (default 3000)")
    parser.add_argument("--batch", type=int, default=64, help="rows of a step of fine-tuning (default 64)")
    parser.add_argument(
        "--every", type=int, default=300, help="steps between evaluations on held-out rows (default 300)"
    )
    parser.add_argument("--rates", type=float, nargs="*", default=[0.005], help="learning rates to choose from")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout rate in fine-tuning (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="small enough for a test, on made-up sentences")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        small = {"width": 32, "layers": 1, "vocab": 320, "pretrain_steps": 20, "steps": 300, "every": 150, "batch": 16}
        small["rates"] = [0.02]
        vars(arguments).update(small)
    elif arguments.glue is None:
        parser.error("--glue is missing: the folder with SST-2's files (or --smoke)")
    with tempfile.TemporaryDirectory() as folder:
        result = compute(arguments, pathlib.Path(folder))
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
