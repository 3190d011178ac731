"""``deepfusion grow``: one checkpoint grown by an operator."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated, Any

import typer

from deepfusion.options import Json, changes, seed_option
from deepfusion.recipes import byte_bar, deviation_of, facts_of, numbers_of, parse_size, rehearsed, size_of
from deepfusion.tables import print_facts
from deepfusion.terminal import working
from fusion_core import atomic
from fusion_core.errors import InputError


def grow(
    checkpoint: Annotated[pathlib.Path | None, typer.Argument(help="A checkpoint folder.")] = None,
    operator: Annotated[str | None, typer.Option(help="Name of the growth operator; see --list.")] = None,
    factor: Annotated[int | None, typer.Option(help="Multiplies all widths, or all depths.")] = None,
    width: Annotated[
        list[str] | None, typer.Option(help="Instead: a width of the grown network, such as d_ff=96; repeatable.")
    ] = None,
    depth: Annotated[
        list[str] | None, typer.Option(help="Instead: its layers, such as 8, or num_layers=8; repeatable.")
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Separates copies: standard deviation in units of each array's root mean square.")
    ] = 0.0,
    seed: Annotated[int, seed_option("Seed of what is drawn.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="bf16, f16 or f32. Default: the checkpoint's.")] = None,
    max_shard: Annotated[str, typer.Option(help="Largest weights file.")] = "5GB",
    probe: Annotated[
        bool, typer.Option(help="Measure the deviation from the source, if the operator keeps its function.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check all, print the recipe, write nothing.")
    ] = False,
    out: Annotated[pathlib.Path | None, typer.Option(help="Folder to write; it must not exist or be empty.")] = None,
    list_operators: Annotated[bool, typer.Option("--list", help="List the operators and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Grow one checkpoint by a growth operator.

    \b
    deepfusion grow --list
    deepfusion grow small --operator hypercloning --factor 2 --out wide
    deepfusion grow small --operator net2net_width --width d_ff=96 --out wider
    deepfusion grow small --operator identity_layers --depth 8 --out deep

    docs/growth_operators.md has what each operator keeps. Tensors are streamed: copies row by row, draws (noise, new blocks)
    one tensor at a time, so that memory does not grow with the network. The folder appears whole or not at all, with the
    tokenizer and growth.json: the learning rates with which training goes on as before, for PyTorch too (docs/pytorch.md).
    """
    if list_operators:
        with working("loading JAX", quiet=as_json):
            found = _operators()
        print(json.dumps(found)) if as_json else print_facts(found.items())
        return
    if checkpoint is None or operator is None or out is None:
        given = {"a checkpoint folder": checkpoint, "--operator": operator, "--out": out}
        raise InputError(f"{next(n for n, v in given.items() if v is None)} is missing; see deepfusion grow --help")
    sizes = {"factor": factor, "width": _sizes("--width", width), "depth": _sizes("--depth", depth)}
    largest = parse_size(max_shard)
    with working("loading JAX and reading headers", quiet=as_json):
        from fusion_core.checkpoints import growth_recipe, write_recipe

        atomic.check_new(out)
        recipe = growth_recipe(
            checkpoint, operator, **sizes, seed=seed, noise=noise, dtype=dtype, largest_shard=largest
        )
    changed = changes([recipe.sources[0].config], recipe.config)
    facts = {"operator": operator, "changes": changed, **facts_of(recipe)}
    if dry_run:
        return rehearsed(recipe, out, facts if as_json else None)
    with byte_bar(recipe.nbytes) as report:
        measured = write_recipe(recipe, out, probe=probe, report=report)
    if as_json:
        print(json.dumps({"out": str(out), **facts, "deviation": numbers_of(measured)}))
        return
    print(f"Wrote {out}: {size_of(recipe)}.\n{', '.join(changed)}.")
    print(f"The function is {recipe.exactness}.")
    if recipe.keeps:
        print(deviation_of(measured, recipe))


def _sizes(option: str, texts: list[str] | None) -> Any:
    """Read ``8`` as a number, and ``name=8`` as one entry of a dict."""
    if not texts:
        return None
    parts = [text.rpartition("=") for text in texts]
    if not all(number.strip().isdigit() for _, _, number in parts) or (len(parts) > 1 and not all(p[0] for p in parts)):
        raise InputError(f"{option} is {' '.join(texts)!r}; give whole numbers, such as 8 or num_layers=8")
    if not parts[0][0]:
        return int(parts[0][2])
    return {name.strip(): int(number) for name, _, number in parts}


def _operators() -> dict[str, str]:
    """Return the operators: name -> what it does."""
    from fusion_core import GROWTH_OPERATORS

    return {
        name: f"{known.grows}: {known.summary}"
        + (" (keeps the function)" if known.properties.function_preserving else "")
        for name, known in GROWTH_OPERATORS.items()
    }
