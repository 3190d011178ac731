"""Options that several commands share, and checks of them."""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from typing import Annotated

import typer

from fusion_core.errors import InputError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of prose.")]


def check_only_resume(context: typer.Context, allowed: Collection[str] = ("resume", "as_json")) -> None:
    """Raise InputError if an option was given that a resumed run reads from its own settings."""
    for name in context.params:
        given = getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE"
        if given and name not in allowed:
            option = "--" + name.replace("_", "-") if name != "checkpoint" else "the checkpoint"
            raise InputError(f"{option} cannot be changed by a resumed run; leave it out, or start a new run")


def check_empty(folder: pathlib.Path, remedy: str) -> None:
    """Raise InputError, with the remedy, unless the folder is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; {remedy}")
