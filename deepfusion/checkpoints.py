"""``deepfusion fuse``, ``diff`` and ``info``: what can be done with checkpoint folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fusion_core.checkpoints import Deviation, FusionPlan
    from fusion_core.checkpoints.stream import FusedTensor

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout instead of prose.")]
# what the architectures call them
WIDTHS, HEADS = ("d_model", "hidden_size", "n_embd"), ("num_heads", "num_attention_heads", "n_head")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: str) -> int:
    """``"5GB"``, ``"500 MB"``, ``"1GiB"`` or plain bytes, in bytes."""
    from fusion_core.errors import InputError

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if not match or match[2] not in UNITS or (size := int(float(match[1]) * UNITS[match[2]])) < 1:
        raise InputError(f"--max-shard is {text!r}; give a size such as 5GB or 500MB")
    return size


def _parse_weights(text: str | None) -> list[float] | None:
    from fusion_core.errors import InputError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights is {text!r}; give numbers with commas, such as 0.3,0.7") from None


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar of bytes on stderr; it goes when the work is done."""
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


def _plan_facts(plan: FusionPlan) -> dict[str, Any]:
    return {
        "sources": [str(source.folder) for source in plan.sources],
        "weights": list(plan.weights),
        "config": dataclasses.asdict(plan.config),
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "dtypes": plan.dtypes,
        "shards": {file: sum(tensor.nbytes for tensor in tensors) for file, tensors in plan.shards.items()},
        "norm": "calibrated" if plan.calibrated_on else "plain",
        "calibrated_on": plan.calibrated_on,
        "exact": plan.equal,
        "exactness": plan.exactness,
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
            for tensor in plan.tensors
        ],
    }


def _print_plan(plan: FusionPlan) -> None:
    """Tensors of one rule, scale and shape share a line; they are named by the last part that says what they are."""
    lines: dict[tuple[str, ...], list[FusedTensor]] = {}
    for tensor in plan.tensors:
        sources = " + ".join("×".join(map(str, entry.shape)) for entry in tensor.entries)
        scales = "" if set(tensor.rule.scales) == {1.0} else ", ".join(f"{scale:.4g}" for scale in tensor.rule.scales)
        key: tuple[str, ...] = (tensor.kind, sources, "×".join(map(str, tensor.shape)), scales, tensor.dtype.lower())
        lines.setdefault(key, []).append(tensor)
    table = Table()
    for column in ("tensors", "rule", "from", "to", "scaled by", "dtype", "number", "bytes"):
        table.add_column(column, justify="right" if column in ("number", "bytes") else "left", overflow="fold")
    for kinds, tensors in lines.items():
        names = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", tensor.name).split(".")[-1] for tensor in tensors)
        size = sum(tensor.nbytes for tensor in tensors)
        table.add_row(*map(escape, (", ".join(names), *kinds)), str(len(tensors)), f"{size:,}")
    Console().print(table)
    print(f"{plan.parameters:,} parameters, {plan.nbytes:,} bytes in {len(plan.shards)} file(s).")
    print(f"The mean is {plan.exactness}.")


def fuse(
    sources: Annotated[
        list[pathlib.Path], typer.Argument(help="Two or more checkpoint folders, Hugging Face's layout.")
    ],
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
    norm: Annotated[
        str, typer.Option(help="'plain': every norm sees the sources' streams together; 'calibrated': so it does, with one "
                               "factor per source and norm that undoes the rescaling on average.")
    ] = "plain",
    calibration_text: Annotated[
        list[pathlib.Path] | None, typer.Option(help="Text that --norm calibrated fits its factors to.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the mean, such as 0.3,0.7. Default: equal.")] = None,
    noise: Annotated[
        float, typer.Option(help="Self-fusion only: noise that keeps the function and lets the copies diverge in training.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the noise, and of the windows of --calibration-text.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="bf16, f16 or f32. Default: the sources'.")] = None,
    max_shard: Annotated[str, typer.Option(help="Largest weights file.")] = "5GB",
    probe: Annotated[bool, typer.Option(help="Measure the deviation from the mean, for the model card.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fuse checkpoints into one wider network that outputs the mean of theirs.

    \b
    deepfusion fuse small-a small-b --out medium
    deepfusion fuse a b --weights 0.3,0.7 --dtype bf16 --out c
    deepfusion fuse a b --out c --dry-run              shapes, parameters, bytes, what is exact; writes nothing
    deepfusion fuse a b --norm calibrated --calibration-text notes.txt --out c
    deepfusion fuse small small --noise 0.1 --out medium
                                                       self-fusion: the same function, twice the width

    Hidden weights become block-diagonal, embeddings and heads are concatenated. The norms see the whole stream, so
    different sources are averaged up to their norms' statistics. Tensors are streamed: memory does not grow with the
    network. The folder appears whole or not at all.
    """
    from fusion_core import checkpoints as files
    from fusion_core.errors import InputError
    from fusion_core.text import read_documents

    numbers, largest = _parse_weights(weights), parse_size(max_shard)
    if norm == "calibrated" and not calibration_text:
        raise InputError("--norm calibrated is fitted to text: give --calibration-text FILE")
    if not dry_run:
        files.check_output(out)
    texts = read_documents(calibration_text) if calibration_text else None
    with Console(stderr=True).status("reading headers" if texts is None else "calibrating the norms"):
        plan = files.plan_fusion(
            sources,
            numbers,
            dtype=dtype,
            norm=norm,
            calibration=texts,
            noise=noise,
            seed=seed,
            largest_shard=largest,
        )
    facts = _plan_facts(plan)
    if dry_run:
        print(json.dumps(facts)) if as_json else _print_plan(plan)
        return
    with _progress(plan.nbytes) as report:
        measured = files.write_fusion(plan, out, probe=probe, report=report)
    if as_json:
        print(json.dumps({"out": str(out)} | facts | {"deviation": measured and dataclasses.asdict(measured)}))
        return
    config = facts["config"]
    width, heads = (next(config[name] for name in names if name in config) for names in (WIDTHS, HEADS))
    print(
        f"Wrote {out}: {len(sources)} sources, width {width}, {heads} heads, {plan.parameters:,} parameters in "
        f"{len(plan.shards)} file(s)."
    )
    print(_deviation_sentence(measured))


def _deviation_sentence(measured: Deviation | None) -> str:
    if measured is None:
        return "The deviation from the mean was not measured."
    return (
        f"Deviation from the mean of the sources' logits on {measured.tokens} random tokens: at most "
        f"{measured.largest:.3g}, on average {measured.mean:.3g} (the mean's logits have a standard deviation of "
        f"{measured.spread:.3g})."
    )


def diff(
    a: Annotated[pathlib.Path, typer.Argument(help="A checkpoint folder.")],
    b: Annotated[pathlib.Path, typer.Argument(help="Another one; it may have another size, but the same vocabulary.")],
    text: Annotated[
        list[pathlib.Path] | None, typer.Option(help="Text to run both on, as for demo. Default: random tokens.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Windows of text at most.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the windows, and of random tokens.")] = 0,
    as_json: Json = False,
) -> None:
    """Compare what two checkpoints compute, and their tensors by name.

    \b
    deepfusion diff small medium
    deepfusion diff a b --text notes.txt
    """
    from fusion_core import checkpoints as files
    from fusion_core.errors import InputError
    from fusion_core.text import read_documents

    if rows < 1 or seed < 0:
        raise InputError(f"--rows is {rows} and --seed {seed}; they must be at least 1 and 0")
    first, second = files.open_checkpoint(a), files.open_checkpoint(b)
    texts = None
    if text:
        texts = read_documents(text)
    with Console(stderr=True).status("running both"):
        found = files.compare(first, second, texts, rows, seed)
    if as_json:
        print(json.dumps({"a": str(a), "b": str(b)} | dataclasses.asdict(found)))
        return
    on = (
        f"{found.tokens} tokens of {', '.join(map(str, text or []))}" if found.text else f"{found.tokens} random tokens"
    )
    table = Table(title=f"On {escape(on)}", show_header=True)
    for column in ("", "largest", "mean"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("difference of the logits", f"{found.logits_largest:.3g}", f"{found.logits_mean:.3g}")
    table.add_row(
        "difference of the log-probabilities, nats",
        f"{found.log_probabilities_largest:.3g}",
        f"{found.log_probabilities_mean:.3g}",
    )
    Console().print(table)
    print(f"Both prefer the same token at {found.agreement:.1%} of the positions.")
    print(f"Loss, nats a token: {found.losses[0]:.4f} and {found.losses[1]:.4f}.")
    counts = f"{found.equal} equal, {len(found.different)} of other values, {len(found.reshaped)} of other shapes"
    print(f"Tensors: {counts}, {len(found.only[0])} only in {a}, {len(found.only[1])} only in {b}.")
    for name, largest in list(found.different.items())[:10]:
        print(f"  {name}: values differ by at most {largest:.3g}")
    for name, shapes in list(found.reshaped.items())[:10]:
        print(f"  {name}: {' and '.join('×'.join(map(str, shape)) for shape in shapes)}")
    for name in [*found.only[0], *found.only[1]][:10]:
        print(f"  {name}: in one only")
    hidden = sum(max(0, len(group) - 10) for group in (found.different, found.reshaped, sum(found.only, ())))
    if hidden:
        print(f"  and {hidden} more; --json lists them all")


def info(
    folder: Annotated[
        pathlib.Path | None, typer.Argument(help="A checkpoint folder to describe. Default: this installation.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print versions, devices and where things are; or what is in a checkpoint folder.

    \b
    deepfusion info
    deepfusion info small-a
    deepfusion info --json
    """
    if folder is not None:
        from fusion_core import checkpoints as files

        facts = files.describe(folder)
        if as_json:
            print(json.dumps(facts))
            return
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
        rows += [(file, f"{of['bytes']:,} bytes, {of['tensors']} tensors") for file, of in facts["files"].items()]
        if facts["unused"]:
            rows.append(("not read", ", ".join(facts["unused"])))
        rows += [(f"config: {name}", str(value)) for name, value in facts["config"].items()]
        table = Table(show_header=False, box=None)
        for name, value in rows:
            table.add_row(escape(name), escape(value))
        Console().print(table)
        return
    _installation(as_json)


def _installation(as_json: bool) -> None:
    import bea
    import fusion_core
    from fusion_core.provenance import provenance

    facts = provenance()
    facts["paths"] = {
        "bea": str(pathlib.Path(bea.__file__).parent),
        "fusion_core": str(pathlib.Path(fusion_core.__file__).parent),
        "runs": str(pathlib.Path("runs").resolve()),
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for group, values in (("versions", facts["versions"]), ("paths", facts["paths"])):
        for name, value in values.items():
            table.add_row(group, name, escape(str(value)))
            group = ""
    for number, device in enumerate(facts["devices"]):
        table.add_row("devices" if not number else "", str(number), device)
    table.add_row("commit", "", facts["commit"] or "not known (an installed copy)")
    Console().print(table)
