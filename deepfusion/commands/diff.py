"""``deepfusion diff``: two checkpoints compared, by what they compute and tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from deepfusion.options import Json, documents_of, seed_option
from deepfusion.tables import print_table
from deepfusion.terminal import working
from fusion_core.errors import InputError

if TYPE_CHECKING:
    from fusion_core.checkpoints import Difference

SHOWN = 10  # tensors of each kind of difference


def diff(
    a: Annotated[pathlib.Path, typer.Argument(help="A checkpoint folder.")],
    b: Annotated[pathlib.Path, typer.Argument(help="Another one; it may have another size, but the same vocabulary.")],
    text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Files or folders of text to run both on; -: a pipe. Default: random tokens."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Windows of text at most.")] = 16,
    seed: Annotated[int, seed_option("Seed of the windows, and of random tokens.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare what two checkpoints compute, and their tensors by name.

    \b
    deepfusion diff small medium
    deepfusion diff a b --text notes.txt
    """
    if rows < 1 or seed < 0:
        raise InputError(f"--rows is {rows} and --seed {seed}; they must be at least 1 and 0")
    with working("loading JAX and running both", quiet=as_json):
        from fusion_core import checkpoints

        first, second = checkpoints.open_checkpoint(a), checkpoints.open_checkpoint(b)
        found = checkpoints.compare(first, second, documents_of(text, "--text"), rows, seed)
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b)} | dataclasses.asdict(found)))
        return
    kind = f"tokens of {', '.join(map(str, text or []))}" if found.text else "random tokens"
    differences = (
        ("difference of the logits", found.logits_largest, found.logits_mean),
        ("difference of the log-probabilities, nats", found.log_probabilities_largest, found.log_probabilities_mean),
    )
    cells = [(name, f"{largest:.3g}", f"{mean:.3g}") for name, largest, mean in differences]
    print_table(("", "largest", "mean"), cells, title=f"On {found.tokens:,} {kind}:", text=("",))
    print(f"Both prefer the same token at {found.agreement:.1%} of the positions.")
    print(f"Loss, nats a token: {found.losses[0]:.4f} and {found.losses[1]:.4f}.")
    for folder, constant in zip((a, b), found.constant, strict=True):
        if constant:
            print(f"All logits of {folder} are equal: what they say of it proves nothing.")
    _print_tensors(found, a, b)


def _print_tensors(found: Difference, a: pathlib.Path, b: pathlib.Path) -> None:
    counts = f"{found.equal} equal, {len(found.different)} of other values, {len(found.reshaped)} of other shapes"
    print(f"Tensors: {counts}, {len(found.only[0])} only in {a}, {len(found.only[1])} only in {b}.")
    groups = (
        [f"{name}: values differ by at most {largest:.3g}" for name, largest in found.different.items()],
        [
            f"{name}: {' and '.join('×'.join(map(str, shape)) for shape in shapes)}"
            for name, shapes in found.reshaped.items()
        ],
        [f"{name}: in one only" for name in (*found.only[0], *found.only[1])],
    )
    for group in groups:
        for line in group[:SHOWN]:
            print(f"  {line}")
    if hidden := sum(max(0, len(group) - SHOWN) for group in groups):
        print(f"  and {hidden} more; --json lists them all")
