"""``deepfusion fuse``: checkpoint folders fused into one, or the recipe of that printed."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from deepfusion.options import Json, changes, documents_of, seed_option
from deepfusion.recipes import byte_bar, deviation_of, facts_of, numbers_of, parse_size, rehearsed, size_of
from deepfusion.terminal import notes, working
from fusion_core.errors import InputError

if TYPE_CHECKING:
    from fusion_core.schedule.noise import NoiseChoice


def fuse(
    sources: Annotated[
        list[pathlib.Path], typer.Argument(help="Two or more checkpoint folders, Hugging Face's layout.")
    ],
    out: Annotated[pathlib.Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
    norm: Annotated[
        str,
        typer.Option(
            help="'plain': every norm sees the sources' streams together; 'calibrated': the same, with one "
            "factor per source and norm that undoes the rescaling on average."
        ),
    ] = "plain",
    calibration_text: Annotated[
        list[pathlib.Path] | None, typer.Option(help="Text that --norm calibrated fits its factors to; -: a pipe.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Weights of the mean, such as 0.3,0.7. Default: equal.")] = None,
    noise: Annotated[
        float,
        typer.Option(help="Self-fusion only: noise that keeps the function and lets the copies diverge in training."),
    ] = 0.0,
    noise_text: Annotated[
        list[pathlib.Path] | None,
        typer.Option(help="Self-fusion only: text on which the noise is chosen, as large as a training step takes."),
    ] = None,
    seed: Annotated[int, seed_option("Seed of the noise, and of the windows of --calibration-text.")] = 0,
    allow_different: Annotated[
        str | None,
        typer.Option(help="Fields that need not agree, such as pad,eos,max_length,rope; the first source's are kept."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, f16 or f32. Default: the sources'.")] = None,
    max_shard: Annotated[str, typer.Option(help="Largest weights file.")] = "5GB",
    probe: Annotated[bool, typer.Option(help="Measure the deviation from the mean, for the model card.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check all, print the recipe, write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fuse checkpoints into one network that outputs their mean.

    \b
    deepfusion fuse small-a small-b --out medium
    deepfusion fuse a b --weights 0.3,0.7 --dtype bf16 --out c
    deepfusion fuse a b --out c --dry-run              shapes, parameters, bytes, what is exact; writes nothing
    deepfusion fuse base instruct --allow-different eos,max_length --out c
    deepfusion fuse a b --norm calibrated --calibration-text notes.txt --out c
    deepfusion fuse small small --noise 0.1 --out medium
                                                       self-fusion: the same function, twice the width
    deepfusion fuse small small --noise-text notes.txt --out medium
                                                       the same, with the noise that suits the network

    Hidden weights become block-diagonal, embeddings and heads are concatenated. The norms see the whole stream, so
    different sources are averaged up to their norms' statistics. Tensors are streamed: memory does not grow with the
    network. The folder appears whole or not at all, with growth.json: the learning rates with which training goes on as
    before, for PyTorch too (docs/pytorch.md).
    """
    numbers, largest = _parse_weights(weights), parse_size(max_shard)
    if norm == "calibrated" and not calibration_text:
        raise InputError("--norm calibrated is fitted to text: give --calibration-text FILE")
    if noise_text and (noise or len({source.resolve() for source in sources}) > 1):
        raise InputError(
            "--noise-text chooses the noise between copies of one network; leave --noise out, and give one folder"
        )
    chosen = _chosen_noise(sources, noise_text, seed, quiet=as_json) if noise_text else None
    noise = noise if chosen is None else chosen.noise
    work = "calibrating the norms" if calibration_text else "reading headers"
    with working(f"loading JAX and {work}", quiet=as_json):
        from fusion_core import atomic, checkpoints

        atomic.check_new(out)
        recipe = checkpoints.fusion_recipe(
            sources,
            numbers,
            allow_different=[name.strip() for name in (allow_different or "").split(",") if name.strip()],
            dtype=dtype,
            norm=norm,
            calibration=documents_of(calibration_text, "--calibration-text"),
            noise=noise,
            seed=seed,
            largest_shard=largest,
        )
    if recipe.equal and not noise:
        notes(
            "Warning: the sources are equal and there is no noise between them: the copies have equal gradients in training, "
            "and rounding alone parts them. --noise 0.5 keeps the function and parts them."
        )
    for sentence in recipe.kept_values:
        notes(f"{sentence}.")
    if dry_run:
        return rehearsed(recipe, out, facts_of(recipe) if as_json else None)
    with byte_bar(recipe.nbytes) as report:
        measured = checkpoints.write_recipe(recipe, out, probe=probe, report=report)
    if as_json:
        print(json.dumps({"out": str(out), **facts_of(recipe), "deviation": numbers_of(measured)}))
        return
    print(f"Wrote {out}: {size_of(recipe)}.")
    print(f"{', '.join(changes([source.config for source in recipe.sources], recipe.config))}.")
    print(deviation_of(measured, recipe))


def _chosen_noise(sources: list[pathlib.Path], text: list[pathlib.Path], seed: int, *, quiet: bool) -> NoiseChoice:
    """Choose the noise between the copies on text, and say it."""
    with working("loading JAX and choosing the noise", quiet=quiet):
        from fusion_core.schedule.noise import choose_noise_on_text

        documents = documents_of(text, "--noise-text") or []
        chosen = choose_noise_on_text(sources[0], documents, copies=len(sources), seed=seed)
    notes(f"{chosen.reason[0].upper()}{chosen.reason[1:]}.")
    return chosen


def _parse_weights(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights is {text!r}; give numbers with commas, such as 0.3,0.7") from None
