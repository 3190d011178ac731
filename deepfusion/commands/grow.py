"""``deepfusion grow``: one checkpoint grown by an operator."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import typer

from deepfusion.options import Json, changes
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
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
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

    docs/growth_operators.md has what each operator keeps. Tensors are streamed if all of them are copies; otherwise the
    network is loaded whole, and written in float32. The folder appears whole or not at all, with the tokenizer and
    growth.json: the learning rates with which training goes on as before, for PyTorch too (docs/pytorch.md).
    """
    if not list_operators:
        for name, value in (("a checkpoint folder", checkpoint), ("--operator", operator), ("--out", out)):
            if value is None:
                raise InputError(f"{name} is missing; see deepfusion grow --help")
    with working("loading JAX" if list_operators else "loading JAX and growing", quiet=as_json):
        found = _operators() if list_operators else {}
        if checkpoint and operator and out and not list_operators:
            atomic.check_new(out)
            sizes = {"factor": factor, "width": _sizes("--width", width), "depth": _sizes("--depth", depth)}
            found = _grown(checkpoint, out, operator, noise, seed=seed, **sizes)
    if as_json:
        print(json.dumps(found))
    elif list_operators:
        print_facts(found.items())
    else:
        print(f"Wrote {out}: {found['parameters']:,} parameters.\n{', '.join(found['changes'])}.")


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


def _grown(checkpoint: pathlib.Path, out: pathlib.Path, operator: str, noise: float, **options: Any) -> dict[str, Any]:
    """Write the grown checkpoint, by streaming if all its weights are copies, and return what was written."""
    from fusion_core.checkpoints import growth_recipe, open_checkpoint, write_recipe
    from fusion_core.growth.operators import growth_of
    from fusion_core.growth.options import Options

    config = open_checkpoint(checkpoint).config
    growth = growth_of(config, operator, Options(**options, noise=noise))
    if noise == 0 and growth.mapping is not None and not growth.draws:
        recipe = growth_recipe(checkpoint, operator, **options)
        write_recipe(recipe, out, probe=False)
        parameters = recipe.parameters
    else:
        parameters = _write_drawn(checkpoint, out, operator, noise, **options)
    return {
        "out": str(out),
        "operator": operator,
        "parameters": parameters,
        "config": dataclasses.asdict(growth.config),
        "changes": changes([config], growth.config),
    }


def _write_drawn(checkpoint: pathlib.Path, out: pathlib.Path, operator: str, noise: float, **options: Any) -> int:
    """Grow a checkpoint in memory, write it in float32 with its tokenizer, and return the number of parameters."""
    import jax

    import fusion_core as fc
    from fusion_core.checkpoints import Event, growth_record, open_checkpoint, write_growth
    from fusion_core.checkpoints.pretrained import write_pretrained
    from fusion_core.checkpoints.tokenizers import copy_tokenizer

    grown, config = fc.grow(*fc.load_pretrained(checkpoint), operator, noise=noise, **options)
    with atomic.new_folder(out) as folder:
        write_pretrained(folder, grown, config)
        copy_tokenizer([checkpoint], folder)
        event = Event(operator, noise=noise, **options)
        write_growth(folder, growth_record([open_checkpoint(checkpoint)], event))
    return sum(leaf.size for leaf in jax.tree.leaves(grown))
