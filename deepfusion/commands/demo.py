"""``deepfusion demo``: growth on real text, in minutes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import shutil
from typing import Annotated, Any

import typer

from deepfusion.options import Json, check_empty, check_only_resume
from deepfusion.tables import print_table
from deepfusion.terminal import notes, working
from fusion_core.errors import InputError, Interrupted


def demo(
    context: typer.Context,
    preset: Annotated[
        str, typer.Option(help="'default' (about 8 minutes on 2 cores) or 'smoke' (under a minute, to see that it works).")
    ] = "default",
    text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Files or folders of UTF-8 text, .gz or .jsonl ({\"text\": ...}). "
                     "Default: the documentation of the installed scientific stack."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    vocab: Annotated[int | None, typer.Option(help="Pieces of the tokenizer; less text supports fewer.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences in a global batch, shared by all devices.")] = None,
    budget: Annotated[int | None, typer.Option(help="FLOPs of every arm, in steps of the large network.")] = None,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder of the run. Default: runs/demo-DATE-TIME.")] = None,
    resume: Annotated[pathlib.Path | None, typer.Option(help="Go on with the interrupted run in this folder.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Grow a T5 on real text, and compare it at equal FLOPs.

    Trains two tiny T5s, decides on the way when to grow, fuses them, and trains the alternatives.

    Writes report.html, metrics.jsonl, results.json and checkpoint/ (Hugging Face's layout) into the run's folder.

    \b
    deepfusion demo                                  on installed documentation
    deepfusion demo --text books/ notes.txt          on your own text
    deepfusion demo --seed 1                         another seed
    deepfusion demo --resume runs/demo-...           after Ctrl-C or a crash
    """
    with working("loading JAX", quiet=as_json):
        from rich.console import Console

        from deepfusion.demo import PRESETS, run_demo
        from deepfusion.demo.report import rows, summary, write_report
        from deepfusion.demo.run import load_settings
        from fusion_core.train.devices import devices_for

    if resume is not None:
        check_only_resume(context)
        settings, folder, fresh = load_settings(resume), resume, False
    else:
        if preset not in PRESETS:
            raise InputError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
        changes: dict[str, Any] = {"seed": seed, "vocab": vocab, "batch": batch, "budget": budget}
        if text:
            missing = [p for p in text if not p.exists()]
            if missing:
                raise InputError(f"there is no file or folder {missing[0]}; check the path given to --text")
            changes["text"] = tuple(str(path.resolve()) for path in text)
        settings = dataclasses.replace(PRESETS[preset], **{k: v for k, v in changes.items() if v is not None})
        devices_for(settings.batch)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or pathlib.Path("runs") / f"demo-{stamp}"
        check_empty(folder, f"choose another, or use --resume {folder}")
        fresh = not folder.exists()
    try:
        results = run_demo(settings, folder, Console(stderr=True))
    except (Interrupted, KeyboardInterrupt):
        notes(f"\nInterrupted; nothing is lost. Go on with:  deepfusion demo --resume {shlex.quote(str(folder))}")
        raise typer.Exit(130) from None
    except InputError:
        # a run that never began leaves nothing behind
        if resume is None and not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if not fresh:
                folder.mkdir()
        raise
    report = write_report(results, folder)
    found = {"folder": str(folder), "report": str(report), "table": rows(results), "plan": results["plan"]}
    if as_json:
        print(json.dumps(found))
        return
    cells = [
        (row["name"], f"{row['loss']:.4f}", str(row["grown_at"] or ""), f"{row['rate']:.3g}") for row in rows(results)
    ]
    columns = ("arm", "loss", "grown at step", "learning rate")
    print_table(columns, cells, title="Final validation loss at equal FLOPs", text=("arm",))
    print("\n".join(summary(results)))
    print(f"\nReport:      {report}\nCheckpoint:  {folder / 'checkpoint'}")
