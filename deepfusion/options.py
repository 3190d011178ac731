"""What several commands share: options, checks of them, and the words for a change of shape."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
import tempfile
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer

from fusion_core import atomic
from fusion_core.errors import InputError
from fusion_core.seeds import check_seed

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of prose.")]


STDIN = pathlib.Path("-")  # given as a file of text: what standard input gives


def read_piped(path: pathlib.Path, option: str) -> None:
    """Write what standard input gives into a file, since the user says so.

    Raises:
      InputError: it gives nothing, or more than is held in memory of other text.
    """
    from fusion_core.text.corpus import MOST_TEXT

    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"{option} - reads a pipe, and standard input is none; give it one, such as  cat notes.txt |")
    with atomic.new_file(path) as temporary, temporary.open("wb") as file:
        size = 0
        while part := sys.stdin.buffer.read(1 << 20):
            size += len(part)
            if size > MOST_TEXT:
                raise InputError(f"{option} - gives more than {MOST_TEXT:,} bytes; write it into files, or give less")
            file.write(part)
        if not size:
            raise InputError(f"{option} - has given nothing; check what is before the pipe")


def documents_of(paths: Sequence[pathlib.Path] | None, option: str) -> list[str] | None:
    """Return the documents of the files and folders of an option, ``-`` among them for a pipe; None if it is not given."""
    from fusion_core.text import read_documents

    with tempfile.TemporaryDirectory() as folder:
        piped = pathlib.Path(folder, "text.txt")
        if STDIN in (paths or ()):
            read_piped(piped, option)
        return read_documents([piped if path == STDIN else path for path in paths]) if paths else None


def check_finite(option: str, value: float | None) -> None:
    """Raise InputError if a number is given that is not above 0 and finite."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{option} is {value:g}; it must be a finite number above 0")


def seed_option(help: str) -> Any:
    """Return the option ``--seed`` with this help: any whole number of at most ``fusion_core.seeds.DIGITS`` digits."""

    def check(value: int) -> int:
        return check_seed(value, "--seed")

    return typer.Option(help=help, callback=check)


def check_only_resume(context: typer.Context, allowed: Collection[str] = ("resume", "as_json")) -> None:
    """Raise InputError if an option was given that a resumed run reads from its own settings."""
    for name in context.params:
        given = getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
        if given and name not in allowed:
            option = "--" + name.replace("_", "-") if name != "checkpoint" else "the checkpoint"
            raise InputError(f"{option} cannot be changed by a resumed run; leave it out, or start a new run")


def changes(before: Sequence[Any], after: Any) -> list[str]:
    """Return the fields in which a configuration differs from its sources', such as ``d_model 16 + 16 → 32``."""
    sources = [dataclasses.asdict(config) for config in before]
    return [
        f"{name} {' + '.join(str(source[name]) for source in sources)} → {value}"
        for name, value in dataclasses.asdict(after).items()
        if name != "settings" and any(source[name] != value for source in sources)
    ]
