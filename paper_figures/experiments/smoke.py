"""Plans at a toy's size: the same graph of nodes, with tiny networks, few steps and made-up text, to see that they run."""

from __future__ import annotations

import atexit
import functools
import json
import pathlib
import random
import shutil
import tempfile
import tomllib
from typing import Any

from fusion_core import atomic
from fusion_core.runs.graph import budget_flops, resolve
from fusion_core.runs.plan_file import read_plan
from fusion_core.runs.run import RESULTS
from paper_figures.experiments.finetuning import finetune_arms, scores_in
from paper_figures.experiments.record import HERE, Record, record_of
from paper_figures.experiments.runner import run_noted

SHARED = HERE / "smoke.toml"  # the plan whose runs the figures draw at the preset "smoke"
WIDTH, HEAD, HEADS = 8, 4, 2  # of the smallest network
STEPS, DISPATCH = 60, 1  # of the budget, or of the longest node; and in one dispatch
DEFAULTS = {"batch": 4, "length": 16, "cadence": {"log": 10, "evaluate": 10, "checkpoint": 1000}}
LABELS = ("negative", "positive")  # words of the text, so that a tokenizer can spell them
TUNED = ("scratch_0.04", "two_zero")  # arms of the shared run that are fine-tuned
FINETUNING = {"steps": 10, "batch": 8, "learning_rate": 0.01, "source_length": 32, "target_length": 16}
DATA = {"text": ["text.txt"], "vocab": 300, "validation_share": 0.2, "validation_batches": 4}


def tiny_copy(plan: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Write a copy of a plan at a toy's size, ``plan.toml``, and its text into a folder; return the copy.

    Names, growths, rates and shares of the budget stay. The smallest network gets width 8 and one layer, larger ones in
    proportion; the budget is 60 steps of the largest network, and numbers of steps are in proportion to it.
    """
    values = tomllib.loads(plan.read_text(encoding="utf-8-sig"))
    resolved = {node.name: node for node in resolve(read_plan(plan))}
    largest = max((node for node in resolved.values() if node.step_flops), key=lambda node: node.step_flops)
    budget = budget_flops(read_plan(plan), resolved)
    whole = budget / largest.step_flops if budget else max(node.steps or 0 for node in resolved.values())
    fewer = lambda n: max(1, round(n * STEPS / whole / DISPATCH)) * DISPATCH
    models = [node["model"] for node in _tables(values) if "model" in node]
    least = {key: min((m.get(key, 1) for m in models), default=1) for key in ("d_model", "num_heads", "num_layers")}
    for node in _tables(values):
        for key in ("batch", "length", "cadence", "compute", "accumulate", "until_loss"):
            node.pop(key, None)
        if "model" in node:
            node["model"] = _tiny_model(node["model"], least)
        for table, key in ((node, "width"), (node, "base_width"), (node.get("optimizer", {}), "base_width")):
            if isinstance(table.get(key), int):
                table[key] = WIDTH * table[key] // least["d_model"]
        for table, key in ((node, "steps"), (node, "budget"), (node, "rewarm"), (node.get("schedule", {}), "warmup")):
            if isinstance(table.get(key), int):
                table[key] = fewer(table[key]) if table[key] else 0
    if budget:
        values["budget"] = {"node": largest.name, "steps": STEPS}
    values |= {"steps_per_dispatch": DISPATCH, "data": DATA, "defaults": {**values.get("defaults", {}), **DEFAULTS}}
    atomic.write_text(folder / DATA["text"][0], "\n\n\n".join(_documents(60)))  # type: ignore[index]
    atomic.write_text(folder / "plan.toml", toml_of(values))
    return folder / "plan.toml"


def _tables(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [values.get("defaults", {}), *values["node"].values()]


def _tiny_model(model: dict[str, Any], least: dict[str, int]) -> dict[str, Any]:
    """Return a network in the same proportion to the smallest of the plan."""
    wider = model.get("d_model", least["d_model"]) / least["d_model"]
    deeper = model.get("num_layers", least["num_layers"]) / least["num_layers"]
    heads = round(HEADS * model.get("num_heads", least["num_heads"]) / least["num_heads"])
    width, layers = round(WIDTH * wider), round(deeper)
    sizes = {"d_model": width, "d_kv": HEAD, "d_ff": 2 * width, "num_heads": heads}
    kept = {k: v for k, v in model.items() if k not in (*sizes, "name", "num_layers", "num_decoder_layers")}
    return {**kept, **sizes, "num_layers": layers, "num_decoder_layers": layers}


def toml_of(values: dict[str, Any]) -> str:
    """Return a plan's values as TOML."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{json.dumps(key)} = {inline(inner)}" for key, inner in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    tables = {key: value for key, value in values.items() if isinstance(value, dict) and key != "node"}
    lines = [f"{key} = {inline(value)}" for key, value in values.items() if not isinstance(value, dict)]
    lines += [f"{key} = {inline(value)}" for key, value in tables.items()]
    for name, node in values["node"].items():
        lines += ["", f"[node.{json.dumps(name)}]", *(f"{key} = {inline(value)}" for key, value in node.items())]
    return "\n".join(lines) + "\n"


def _documents(count: int) -> list[str]:
    """Return texts of made-up words, 12 sentences each; always the same."""
    rng = random.Random(0)
    words = _words(rng)
    sentence = lambda: " ".join(rng.choices(words, k=rng.randint(8, 16))).capitalize() + "."
    return ["\n".join(sentence() for _ in range(12)) for _ in range(count)]


def _words(rng: random.Random) -> list[str]:
    syllables = [a + b for a in "bcdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)] + 40 * list(LABELS)


@functools.cache
def shared_run() -> pathlib.Path:
    """Run the plan that all figures draw at the preset "smoke", two seeds, once in this process; return its folder."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="deepfusion-smoke-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run_noted(read_plan(tiny_copy(SHARED, folder)), folder / "run", note=lambda line: None)
    return folder


def shared_record() -> Record:
    """Return the record of the shared run."""
    folder = shared_run()
    return record_of("smoke", folder / "plan.toml", [folder / "run" / RESULTS])


@functools.cache
def shared_scores() -> dict[str, Any]:
    """Return the scores of two arms of the shared run, fine-tuned on made-up sentences in one seed."""
    folder = shared_run()
    made_up_glue(folder / "glue")
    finetune_arms(folder / "run", folder / "glue", folder / "tuned", arms=TUNED, tasks=("sst2",), settings=FINETUNING)
    return scores_in(folder / "tuned", bag_of_words=False)


def made_up_glue(folder: pathlib.Path) -> None:
    """Write a made-up SST-2, in which the last word decides the label."""
    rng = random.Random(1)
    for name, rows in (("train", 80), ("dev", 20)):
        labels = [rng.randint(0, 1) for _ in range(rows)]
        lines = [f"{' '.join(rng.choices(_words(rng), k=3))} {LABELS[label]}\t{label}" for label in labels]
        atomic.write_text(folder / "SST-2" / f"{name}.tsv", "\n".join(["sentence\tlabel", *lines]) + "\n")
