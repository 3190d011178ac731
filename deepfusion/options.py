"""What several commands share: options, checks of them, and the words for a change of shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Annotated, Any

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


def changes(before: Sequence[Any], after: Any) -> list[str]:
    """Return the fields in which a configuration differs from its sources', such as ``d_model 16 + 16 → 32``."""
    sources = [dataclasses.asdict(config) for config in before]
    return [
        f"{name} {' + '.join(str(source[name]) for source in sources)} → {value}"
        for name, value in dataclasses.asdict(after).items()
        if name != "settings" and any(source[name] != value for source in sources)
    ]
