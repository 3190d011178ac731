"""Recipes of fusions and growths on the command line: as a table, as JSON, and a bar of bytes while they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deepfusion.tables import prefixed, print_table
from fusion_core.errors import InputError

if TYPE_CHECKING:
    from fusion_core.checkpoints import Deviation, Recipe
    from fusion_core.checkpoints.stream import GrownTensor

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """Return ``"5GB"``, ``"500 MB"``, ``"1GiB"`` or plain bytes in bytes. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([KMG]?I?)B?\s*", text.upper())
    if not match or match[2] not in UNITS or (size := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise InputError(f"--max-shard is {text!r}; give a size such as 5GB or 500MB")
    return size


@contextlib.contextmanager
def byte_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar of bytes on stderr, in a terminal, until the work is done."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda name, count: progress.update(task, description=escape(name), advance=count)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe ready for JSON."""
    return {
        "sources": [str(source.folder) for source in recipe.sources],
        "weights": list(recipe.weights),
        "kept": {field: list(values) for field, values in recipe.kept},
        "config": dataclasses.asdict(recipe.config),
        "parameters": recipe.parameters,
        "bytes": recipe.nbytes,
        "dtypes": recipe.dtypes,
        "shards": {file: sum(tensor.nbytes for tensor in tensors) for file, tensors in recipe.shards.items()},
        "norm": "calibrated" if recipe.calibrated_on else "plain",
        "calibrated_on": recipe.calibrated_on,
        "exact": recipe.equal,
        "exactness": recipe.exactness,
        "tensors": [
            {
                "name": tensor.name,
                "rule": tensor.kind,
                "scales": list(tensor.rule.scales),
                "from": [list(entry.shape) for entry in tensor.entries],
                "shape": list(tensor.shape),
                "dtype": tensor.dtype,
                "bytes": tensor.nbytes,
                "noise": tensor.noise is not None,
            }
            for tensor in recipe.tensors
        ],
    }


def size_of(recipe: Recipe) -> str:
    """Return the numbers of parameters, bytes and files in words."""
    files = f"{len(recipe.shards)} file{'s' if len(recipe.shards) > 1 else ''}"
    return f"{recipe.parameters:,} parameters, {recipe.nbytes:,} bytes in {files}"


def print_recipe(recipe: Recipe) -> None:
    """Print a line for all tensors of one rule, scale and shape, named by the last part of their names that differs."""
    lines: dict[tuple[str, ...], list[GrownTensor]] = {}
    for tensor in recipe.tensors:
        sources = " + ".join("×".join(map(str, entry.shape)) for entry in tensor.entries)
        scales = "" if set(tensor.rule.scales) == {1.0} else ", ".join(f"{scale:.4g}" for scale in tensor.rule.scales)
        key: tuple[str, ...] = (tensor.kind, sources, "×".join(map(str, tensor.shape)), scales, tensor.dtype.lower())
        lines.setdefault(key, []).append(tensor)
    rows = []
    for kinds, tensors in lines.items():
        names = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", tensor.name).split(".")[-1] for tensor in tensors)
        size = sum(tensor.nbytes for tensor in tensors)
        rows.append((", ".join(names), *kinds, str(len(tensors)), prefixed(size, "B")))
    columns = ("tensors", "rule", "from", "to", "scaled by", "dtype", "number", "bytes")
    print_table(columns, rows, text=("tensors", "rule", "from", "scaled by"))
    print(f"{size_of(recipe)}.")
    print(f"The {'mean' if recipe.operator is None else 'function'} is {recipe.exactness}.")


def rehearsed(recipe: Recipe, out: pathlib.Path, facts: dict[str, Any] | None) -> None:
    """Read and check everything, and print the facts as JSON; if None, the recipe as a table."""
    from fusion_core.checkpoints import rehearse

    with byte_bar(recipe.nbytes) as report:
        rehearse(recipe, out, report)
    print_recipe(recipe) if facts is None else print(json.dumps(facts))


def numbers_of(measured: Deviation | None) -> dict[str, float] | None:
    """Return a deviation ready for JSON; None if it was not measured, or says nothing."""
    return None if measured is None or measured.says_nothing else dataclasses.asdict(measured)


def deviation_of(measured: Deviation | None, recipe: Recipe) -> str:
    """Return a sentence on the deviation from the mean of the sources, or from the source of a growth."""
    mean = "the mean" if recipe.operator is None else "the source"
    if measured is not None and measured.says_nothing:
        return f"The deviation from {mean} says nothing here: {measured.says_nothing}."
    if measured is None:
        return f"The deviation from {mean} was not measured{recipe.unmeasured and f': {recipe.unmeasured}'}."
    logits = f"{mean} of the sources' logits" if recipe.operator is None else f"{mean}'s logits"
    return (
        f"Deviation from {logits} on {measured.tokens} random tokens: at most {measured.largest:.3g}, on average "
        f"{measured.mean:.3g} ({mean}'s logits have a standard deviation of {measured.spread:.3g})."
    )
