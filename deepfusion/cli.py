"""The command line: commands are imported when they are named, and every error becomes one clear line here."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer

from fusion_core.errors import InputError, TrainingDiverged

COMMANDS = ("demo", "derive", "diff", "figures", "finetune", "fuse", "generate", "grow", "info", "law", "plan", "train")
HELP = """
Grow neural networks by fusing trained ones, and predict when it pays.

\b
Start with:  deepfusion demo                              small T5s on real text
Then:        deepfusion fuse small-a small-b --out medium      your own checkpoints
"""
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,  # panels cost a third of the time to the first line
    "pretty_exceptions_enable": False,
}
# typer carries its own copy of click from 0.2x on, and neither version exports the base of its usage errors
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class LazyGroup(typer.core.TyperGroup):
    """The group of ``COMMANDS``: the module of a command is imported when the command is named or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        app = typer.Typer(**SETTINGS)
        app.command(cmd_name)(getattr(importlib.import_module(f"deepfusion.commands.{cmd_name}"), cmd_name))
        return typer.main.get_command(app)


app = typer.Typer(name="deepfusion", help=HELP, cls=LazyGroup, **SETTINGS)


@app.callback()
def _group() -> None:
    pass


def repeat_option(arguments: list[str], option: str) -> list[str]:
    """Return the arguments with ``--text a b c`` as ``--text a --text b --text c``, the form that the parser accepts."""
    expanded: list[str] = []
    inside = False
    for i, argument in enumerate(arguments):
        if inside and not argument.startswith("-") and arguments[i - 1] != option:
            expanded.append(option)
        inside = argument == option or (inside and not argument.startswith("-"))
        expanded.append(argument)
    return expanded


def _fail(kind: str, message: str, code: int) -> None:
    """Print one line on stderr and exit with ``code``."""
    typer.secho(f"{kind}: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    sys.exit(code)


def main() -> None:
    """Run the command line. Exit codes: 2 for usage and input, 1 for a diverged run, 130 for Ctrl-C."""
    arguments = repeat_option(sys.argv[1:], "--text") or ["--help"]
    try:
        sys.exit(app(args=arguments, prog_name="deepfusion", standalone_mode=False) or 0)
    except USAGE_ERROR as error:
        command = " ".join(["deepfusion", *arguments[:1]]) if arguments[0] in COMMANDS else "deepfusion"
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail("Error", f"{message}; see {command} --help", 2)
    except (InputError, FileExistsError) as error:
        _fail("Error", str(error), 2)
    except TrainingDiverged as error:
        _fail("Training diverged", str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
