"""``deepfusion info``: this installation, or what is in a checkpoint folder."""

from __future__ import annotations

import json
import pathlib
from typing import Annotated, Any

import typer

from deepfusion.options import Json
from deepfusion.tables import print_facts
from deepfusion.terminal import working


def info(
    folder: Annotated[
        pathlib.Path | None, typer.Argument(help="A checkpoint folder to describe. Default: this installation.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe this installation, or a checkpoint folder.

    \b
    deepfusion info
    deepfusion info small-a
    deepfusion info --json
    """
    with working("loading JAX", quiet=as_json):
        facts = _installation() if folder is None else _checkpoint(folder)
    if as_json:
        print(json.dumps(facts))
    else:
        print_facts(_installation_rows(facts) if folder is None else _checkpoint_rows(facts))


def _checkpoint(folder: pathlib.Path) -> dict[str, Any]:
    from fusion_core.checkpoints import describe

    return describe(folder)


def _checkpoint_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    tokenizer = facts["tokenizer"]
    pieces = "" if tokenizer["pieces"] is None else f", {tokenizer['pieces']:,} pieces"
    rows = [
        ("model_type", f"{facts['model_type']}{'' if facts['supported'] else ' (cannot be fused yet)'}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("bytes of tensors", f"{facts['bytes']:,}"),
        ("dtypes", ", ".join(f"{name.lower()} ({count} tensors)" for name, count in facts["dtypes"].items())),
        ("tied head", {True: "yes", False: "no"}.get(facts["tied"], "not said")),
        ("tokenizer", (", ".join(tokenizer["files"]) + pieces) or "none"),
    ]
    if tokenizer["unfit"]:
        rows.append(("tokenizer does not fit", tokenizer["unfit"]))
    rows += [(file, f"{of['bytes']:,} bytes, {of['tensors']} tensors") for file, of in facts["files"].items()]
    if facts["unused"]:
        rows.append(("not read", ", ".join(facts["unused"])))
    return rows + [(f"config: {name}", str(value)) for name, value in facts["config"].items()]


def _installation() -> dict[str, Any]:
    import bea
    import fusion_core
    from fusion_core.provenance import provenance

    paths = {
        "bea": str(pathlib.Path(bea.__file__).parent),
        "fusion_core": str(pathlib.Path(fusion_core.__file__).parent),
        "runs": str(pathlib.Path("runs").resolve()),
    }
    return {**provenance(), "paths": paths}


def _installation_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"version: {name}", value) for name, value in facts["versions"].items()]
    rows += [(f"path: {name}", value) for name, value in facts["paths"].items()]
    rows += [(f"device {number}", device) for number, device in enumerate(facts["devices"])]
    return [*rows, ("commit", facts["commit"] or "not known (an installed copy)")]
