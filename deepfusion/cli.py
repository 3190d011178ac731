"""The command line: commands are imported when they are named, and every error becomes one clear line here."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

import typer

from deepfusion import plain
from fusion_core.errors import InputError, Interrupted, TrainingDiverged, exit_code

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
PIPE = 141  # exit code when nobody reads the output any more, as the shell has it
USAGE_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Stopped(Exception):
    """A command was stopped by a signal or by a closed pipe; typer would make other exit codes of these."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class LazyGroup(typer.core.TyperGroup):
    """The group of ``COMMANDS``: the module of a command is imported when the command is named or listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        app = typer.Typer(**SETTINGS)
        app.command(cmd_name)(getattr(importlib.import_module(f"deepfusion.commands.{cmd_name}"), cmd_name))
        command: Any = typer.main.get_command(app)
        command.get_help = lambda context: plain.shown_help(type(command).get_help(command, context))
        return command

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Interrupted) as error:
            raise _Stopped(exit_code(error)) from None
        except BrokenPipeError:
            raise _Stopped(PIPE) from None

    def get_help(self, ctx: Any) -> str:
        return plain.shown_help(super().get_help(ctx))


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
    kind, message = f"{kind}: ", plain.visible(message)
    with contextlib.suppress(OSError):  # there may be nobody to read it
        coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        print(
            typer.style(kind, fg="red", bold=True) if coloured else kind, message, sep="", file=sys.stderr, flush=True
        )
    sys.exit(code)


def main() -> None:
    """Run the command line.

    Exit codes: 2 for usage, input, and what the operating system refuses; 1 for a diverged run; 130 for Ctrl-C, 143 for
    SIGTERM, 141 if nobody reads the output any more.
    """
    plain.prepare_streams()
    plain.obey_sigterm()
    arguments = repeat_option(sys.argv[1:], "--text") or ["--help"]
    try:
        try:
            code = app(args=arguments, prog_name="deepfusion", standalone_mode=False) or 0
        finally:
            plain.flush()
        sys.exit(code)
    except USAGE_ERROR as error:
        command = " ".join(["deepfusion", *arguments[:1]]) if arguments[0] in COMMANDS else "deepfusion"
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail("Error", f"{message}; see {command} --help", 2)
    except (InputError, FileExistsError) as error:
        _fail("Error", str(error), 2)
    except TrainingDiverged as error:
        _fail("Training diverged", str(error), 1)
    except BrokenPipeError:
        plain.abandon_output()
        sys.exit(PIPE)
    except OSError as error:
        _fail("Error", plain.os_error(error), 2)
    except MemoryError:
        _fail("Error", "there is not enough memory; end other programs, or take something smaller", 2)
    except (_Stopped, typer.Abort, KeyboardInterrupt) as error:
        plain.abandon_output()
        if getattr(error, "code", None) != PIPE:
            print("Interrupted.", file=sys.stderr)
        sys.exit(getattr(error, "code", None) or exit_code(error))


if __name__ == "__main__":
    main()
