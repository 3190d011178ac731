"""``deepfusion finetune``: a T5 on a text-to-text task, from the command line."""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
from typing import Annotated, Any

import typer

from deepfusion.options import Json, check_only_resume, seed_option
from deepfusion.terminal import notes, working
from fusion_core import atomic
from fusion_core.errors import InputError, Interrupted, exit_code
from fusion_core.lock import check_free, lock_names, locked


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
    input_column: Annotated[str | None, typer.Option(help="Column of a custom task that the network reads.")] = None,
    target_column: Annotated[str | None, typer.Option(help="Column of a custom task that it should write.")] = None,
    prefix: Annotated[str, typer.Option(help="Words before every source of a custom task.")] = "",
    steps: Annotated[int, typer.Option(help="Training steps.")] = 1000,
    batch: Annotated[int, typer.Option(help="Examples in a global batch, shared by all devices.")] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Adafactor's, relative to each parameter's size; 0.01 suits small networks.")
    ] = 0.001,
    every: Annotated[int, typer.Option(help="Steps between evaluations. 0: a fifth of --steps.")] = 0,
    source_length: Annotated[
        int, typer.Option(help="Tokens of a source at most; longer ones are cut, and counted.")
    ] = 512,
    target_length: Annotated[int, typer.Option(help="Tokens of a target at most.")] = 128,
    dropout: Annotated[
        float | None, typer.Option(help="Share of units dropped in training. Default: the checkpoint's.")
    ] = None,
    seed: Annotated[int, seed_option("Seed of the examples' order, and of dropout.")] = 0,
    resume: Annotated[pathlib.Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a T5 on a text-to-text task, and score its answers.

    Writes checkpoint/ (Hugging Face's layout, with the tokenizer), scores.json, predictions.tsv and .jsonl, metrics.jsonl.

    \b
    deepfusion finetune small --task sst2 --train train.tsv --validation dev.tsv --out runs/sst2
    deepfusion finetune small --task custom --input-column question --target-column answer
                              --train qa.jsonl --validation dev.jsonl --out runs/qa
    deepfusion finetune --resume runs/sst2                       after Ctrl-C or a crash
    deepfusion generate runs/sst2/checkpoint "sst2 sentence: a joy to watch"
    """
    with working("loading JAX", quiet=as_json):
        from fusion_core.runs.finetune import CHECKPOINT, Finetuning, load_settings, settings_from
        from fusion_core.train.compiled import keep_compiled

    keep_compiled(notes)
    fresh = False
    if resume is not None:
        check_only_resume(context)
        settings, folder = load_settings(resume), resume
    else:
        folder = out or pathlib.Path()
        paths = _given(checkpoint, task, train, validation, out)
        settings = settings_from(
            {name: value for name, value in context.params.items() if name not in ("out", "resume", "as_json")} | paths
        )
        check_free(folder)
        atomic.check_new(folder, f"choose another, or use --resume {folder}", besides=lock_names(folder))
        fresh = not folder.exists()
    run = Finetuning(settings, folder)
    _note_cuts(run)
    with locked(folder):  # also while what a refused run has written is removed
        result = _train(run, folder, fresh)
    _report(result, folder, folder / CHECKPOINT, as_json)


def _train(run: Any, folder: pathlib.Path, fresh: bool) -> dict[str, Any]:
    """Run the training, and say how it goes on if it is interrupted."""
    from rich.console import Console

    from deepfusion.view import view_of
    from fusion_core.train.loop import graceful_interrupt
    from fusion_core.train.training import METRICS

    try:
        with view_of(Console(stderr=True)) as view:
            stopping = lambda: view.note("Stopping at the next step; Ctrl-C again stops at once.")
            with graceful_interrupt(stopping):
                return run.run(show=view.show, note=view.note, begin=view.begin)
    except (Interrupted, KeyboardInterrupt) as error:
        command = f"deepfusion finetune --resume {shlex.quote(str(folder))}"
        notes(f"\nInterrupted; nothing is lost. Go on with:  {command}")
        raise typer.Exit(exit_code(error)) from None
    except InputError:
        if fresh and not (folder / METRICS).exists():
            shutil.rmtree(folder, ignore_errors=True)  # a run that never began leaves nothing behind
        raise


def _report(result: dict[str, Any], folder: pathlib.Path, checkpoint: pathlib.Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(folder), **result}))
        return
    for name, value in result["scores"].items():
        print(f"{name}: {'undefined' if value is None else format(value, '.4f')}")
    if wrong := result["answers_that_are_no_label"]:
        print(f"{wrong} of {result['examples']['validation']} answers are none of the labels.")
    print(f"Checkpoint: {checkpoint}")


def _given(
    checkpoint: pathlib.Path | None,
    task: str | None,
    train: pathlib.Path | None,
    validation: pathlib.Path | None,
    out: pathlib.Path | None,
) -> dict[str, Any]:
    """Return what a new run needs, with whole paths. Raises InputError for the first that is missing."""
    if checkpoint is None:
        raise InputError("give a checkpoint folder to start from, or --resume with the folder of a run")
    for name, value in (("--task", task), ("--train", train), ("--validation", validation), ("--out", out)):
        if value is None:
            raise InputError(f"{name} is missing; see deepfusion finetune --help")
    paths = {"checkpoint": checkpoint, "train": train, "validation": validation}
    return {"task": task, **{name: str(path.resolve()) for name, path in paths.items() if path is not None}}


def _note_cuts(run: Any) -> None:
    """Say how many rows were left out, and how many texts were longer than allowed."""
    for name, rows in run.left_out.items():
        if rows:
            total = len(rows) + len(run.examples[name])
            notes(f"{len(rows)} of {total} {name} rows were left out; the first: {rows[0]}")
    for name, counts in run.cut.items():
        for what, count in counts.items():
            if count:
                of = f"{count} of {len(run.examples[name])} {name} {what}"
                notes(f"{of} were longer than allowed and were cut (--{what[:-1]}-length)")
