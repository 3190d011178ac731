"""The command line: thin shells over the functions, and one place where errors become one clear line."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import shutil
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepfusion.checkpoints import Json, diff, fuse, info
from deepfusion.derive import EXAMPLES, USAGE_ERROR, derive
from deepfusion.finetune import finetune
from deepfusion.generate import generate
from deepfusion.train import plan, train

app = typer.Typer(
    name="deepfusion",
    help=(
        "Grow neural networks by fusing trained ones, and predict when it pays.\n\n"
        "Start with:  deepfusion demo     (two tiny T5s on real text, 10 minutes on 2 cores)\n\n"
        "Then:        deepfusion fuse small-a small-b --out medium     (your own checkpoints)"
    ),
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

# Progress and prose go to stderr, so that stdout holds what a script reads.
notes = Console(stderr=True)


@app.command()
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
    """Train two tiny T5s on real text, decide on the way when to grow, fuse them, and compare at equal FLOPs.

    Writes report.html, metrics.jsonl, results.json and checkpoint/ (Hugging Face's layout) into the run's folder.

    \b
    deepfusion demo                                  on installed documentation
    deepfusion demo --text books/ notes.txt          on your own text
    deepfusion demo --seed 1                         another seed
    deepfusion demo --resume runs/demo-...           after Ctrl-C or a crash
    """
    from deepfusion.demo import PRESETS, run_demo
    from deepfusion.demo.report import rows, summary, write_report
    from deepfusion.demo.run import load_settings
    from fusion_core.errors import InputError
    from fusion_core.train import Interrupted

    if resume is not None:
        given = [
            name
            for name in ("preset", "text", "seed", "vocab", "batch", "budget", "out")
            if getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
        ]
        if given:
            raise InputError(f"--{given[0]} cannot be changed by a resumed run; leave it out, or start a new run")
        settings, folder = load_settings(resume), resume
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
        from fusion_core.train.devices import devices_for

        devices_for(settings.batch)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = out or pathlib.Path("runs") / f"demo-{stamp}"
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder; choose another, or use --resume {folder}")
        fresh = not folder.exists()
    try:
        results = run_demo(settings, folder, notes)
    except (Interrupted, KeyboardInterrupt):
        command = f"deepfusion demo --resume {shlex.quote(str(folder))}"
        notes.print(f"\nInterrupted; nothing is lost. Go on with:  {escape(command)}", soft_wrap=True)
        raise typer.Exit(130) from None
    except InputError:
        # a run that never began leaves nothing behind
        if resume is None and not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if not fresh:
                folder.mkdir()
        raise
    report = write_report(results, folder)
    if as_json:
        print(
            json.dumps({"folder": str(folder), "report": str(report), "table": rows(results), "plan": results["plan"]})
        )
        return
    console = Console()
    table = Table(title="Final validation loss at equal FLOPs")
    for column, justify in (("arm", "left"), ("loss", "right"), ("grown at step", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in rows(results):
        grown = "" if row["grown_at"] is None else f"{row['grown_at']} ({row['share']:.1%})"
        table.add_row(
            row["name"],
            f"{row['loss']:.4f}",
            grown,
            f"{row['rate']:.3g}",
            style="bold" if row["arm"] == "grown" else "",
        )
    console.print(table)
    for sentence in summary(results):
        console.print(escape(sentence), highlight=False)
    console.print(
        f"\nReport:      {escape(str(report))}\nCheckpoint:  {escape(str(folder / 'checkpoint'))}",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to draw; see --list.")] = None,
    all_figures: Annotated[bool, typer.Option("--all", help="Draw every figure.")] = False,
    list_figures: Annotated[bool, typer.Option("--list", help="List the figures and stop.")] = False,
    preset: Annotated[str, typer.Option(help="'smoke' (seconds) or 'full' (the paper's).")] = "full",
    out: Annotated[pathlib.Path, typer.Option(help="Folder to draw into.")] = pathlib.Path("runs/figures"),
    force: Annotated[bool, typer.Option(help="Compute again even where results are cached.")] = False,
    as_json: Json = False,
) -> None:
    """Draw figures from code, and a gallery page of them.

    \b
    deepfusion figures --list
    deepfusion figures order_of_accuracy
    deepfusion figures --all --preset smoke
    """
    import paper_figures
    from paper_figures.gallery import headline

    if list_figures or not (names or all_figures):
        listing = {name: headline(module) for name, module in paper_figures.FIGURES.items()}
        print(json.dumps(listing) if as_json else "\n".join(f"{name}: {title}" for name, title in listing.items()))
        return
    written = paper_figures.build(list(paper_figures.FIGURES) if all_figures else names or [], preset, out, force)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(map(str, written)))


app.command()(fuse)
app.command()(diff)
app.command()(info)
app.command()(finetune)
app.command()(generate)
app.command(name="derive", help=EXAMPLES)(derive)
app.command()(plan)
app.command()(train)
COMMANDS = ("demo", "derive", "diff", "figures", "finetune", "fuse", "generate", "info", "plan", "train")


def repeat_option(arguments: list[str], option: str) -> list[str]:
    """``--text a b c`` as ``--text a --text b --text c``, which is all that the parser knows."""
    expanded: list[str] = []
    inside = False
    for i, argument in enumerate(arguments):
        if inside and not argument.startswith("-") and arguments[i - 1] != option:
            expanded.append(option)
        inside = argument == option or (inside and not argument.startswith("-"))
        expanded.append(argument)
    return expanded


def main() -> None:
    """Entry point: errors of usage or input are one line on stderr and exit code 2."""
    from fusion_core.errors import InputError
    from fusion_core.train.loop import TrainingDiverged

    arguments = repeat_option(sys.argv[1:], "--text") or ["--help"]
    try:
        sys.exit(app(args=arguments, prog_name="deepfusion", standalone_mode=False) or 0)
    except USAGE_ERROR as error:
        asked = " ".join(["deepfusion", *arguments[:1]]) if arguments[0] in COMMANDS else "deepfusion"
        message = " ".join(error.format_message().split()).rstrip(".")
        notes.print(
            f"[bold red]Error:[/bold red] {escape(message)}; see {asked} --help", highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except typer.Abort:
        notes.print("Interrupted.")
        sys.exit(130)
    except (InputError, FileExistsError) as error:
        notes.print(f"[bold red]Error:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except TrainingDiverged as error:
        notes.print(f"[bold red]Training diverged:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        notes.print("Interrupted.")
        sys.exit(130)


if __name__ == "__main__":
    main()
