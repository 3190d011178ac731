"""What several commands share: options, checks of them, and the words for a change of shape."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import typer

from fusion_core.errors import InputError
from fusion_core.seeds import check_seed

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of prose.")]


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
