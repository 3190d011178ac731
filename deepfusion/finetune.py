"""``deepfusion finetune``: a T5 on a text-to-text task, from the command line."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deepfusion.checkpoints import Json


def finetune(
    context: typer.Context,
    checkpoint: Annotated[pathlib.Path | None, typer.Argument(help="Folder of a T5 with its tokenizer.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli (GLUE's, with T5's words), or custom."),
    ] = None,
    train: Annotated[pathlib.Path | None, typer.Option(help="Examples to learn, .tsv or .jsonl.")] = None,
    validation: Annotated[pathlib.Path | None, typer.Option(help="Examples to be scored on, .tsv or .jsonl.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder of the run, new or empty.")] = None,
    input_column: Annotated[str | None, typer.Option(help="Of a custom task: what the network reads.")] = None,
    target_column: Annotated[str | None, typer.Option(help="Of a custom task: what it should write.")] = None,
    prefix: Annotated[str, typer.Option(help="Of a custom task: words before every source.")] = "",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Examples in a global batch, shared by all devices.")] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Adafactor's, relative to each parameter's size. Small networks bear 0.01.")
    ] = 0.001,
    every: Annotated[int, typer.Option(help="Steps between evaluations. 0: a fifth of --steps.")] = 0,
    source_length: Annotated[
        int, typer.Option(help="Tokens of a source at most; longer ones are cut, and counted.")
    ] = 512,
    target_length: Annotated[int, typer.Option(help="The same for targets.")] = 128,
    dropout: Annotated[
        float | None, typer.Option(help="Share of units dropped in training. Default: the checkpoint's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the examples' order, and of dropout.")] = 0,
    resume: Annotated[pathlib.Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fine-tune a T5 on a text-to-text task; its answers are what it is scored by.

    Writes checkpoint/ (Hugging Face's layout, with the tokenizer), scores.json, predictions.tsv and .jsonl, metrics.jsonl.

    \b
    deepfusion finetune small --task sst2 --train train.tsv --validation dev.tsv --out runs/sst2
    deepfusion finetune small --task custom --input-column question --target-column answer
                              --train qa.jsonl --validation dev.jsonl --out runs/qa
    deepfusion finetune --resume runs/sst2                       after Ctrl-C or a crash
    deepfusion generate runs/sst2/checkpoint "sst2 sentence: a joy to watch"
    """
    from deepfusion.finetuning import CHECKPOINT, METRICS, FinetuneSettings, Finetuning, load_settings
    from fusion_core.errors import InputError
    from fusion_core.train import Interrupted

    console = Console(stderr=True)
    fresh = False
    if resume is not None:
        given = [
            name
            for name in context.params
            if name not in ("resume", "as_json")
            and getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
        ]
        if given:
            option = "the checkpoint" if given[0] == "checkpoint" else "--" + given[0].replace("_", "-")
            raise InputError(f"{option} cannot be changed by a resumed run; leave it out, or start a new run")
        settings, folder = load_settings(resume), resume
    else:
        needed = {"--task": task, "--train": train, "--validation": validation, "--out": out}
        if checkpoint is None:
            raise InputError("give a checkpoint folder to start from, or --resume with the folder of a run")
        if missing := [name for name, value in needed.items() if value is None]:
            raise InputError(f"{missing[0]} is missing; see deepfusion finetune --help")
        settings = FinetuneSettings(
            str(checkpoint.resolve()), str(pathlib.Path(train or "").resolve()),
            str(pathlib.Path(validation or "").resolve()), task or "", input_column, target_column, prefix, steps, batch,
            learning_rate, seed, every, source_length, target_length, dropout,
        )  # fmt: skip
        folder = out or pathlib.Path()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder; choose another, or use --resume {folder}")
        fresh = not folder.exists()
    run = Finetuning(settings, folder)
    for name, counts in run.cut.items():
        for what, count in counts.items():
            if count:
                of = f"{count} of {len(run.examples[name])} {name} {what}"
                console.print(f"{of} were longer than allowed and were cut (--{what[:-1]}-length)", highlight=False)
    try:
        result = run.run(console)
    except (Interrupted, KeyboardInterrupt):
        command = f"deepfusion finetune --resume {shlex.quote(str(folder))}"
        console.print(f"\nInterrupted; nothing is lost. Go on with:  {escape(command)}", soft_wrap=True)
        raise typer.Exit(130) from None
    except InputError:
        if fresh and not (folder / METRICS).exists():
            shutil.rmtree(folder, ignore_errors=True)  # a run that never began leaves nothing behind
        raise
    if as_json:
        print(json.dumps({"folder": str(folder), **result}))
        return
    for name, value in result["scores"].items():
        print(f"{name}: {'undefined' if value is None else format(value, '.4f')}")
    if result["answers_that_are_no_label"]:
        print(
            f"{result['answers_that_are_no_label']} of {len(run.examples['validation'])} answers are none of the labels."
        )
    print(f"Checkpoint: {folder / CHECKPOINT}")
