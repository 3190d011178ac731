"""The model card of a grown checkpoint: its sources, its recipe, and its measured deviation from them."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_core.checkpoints.comparison import Deviation
from fusion_core.checkpoints.growth_file import GROWTH
from fusion_core.checkpoints.recipe import Recipe
from fusion_core.growth import GROWTH_OPERATORS
from fusion_core.provenance import versions


def model_card(recipe: Recipe, measured: Deviation | None, copied: Sequence[str]) -> str:
    """Return README.md in Hugging Face's form. The sources appear by their folders' names, not by their paths."""
    kinds: dict[str, list[int]] = {}
    for tensor in recipe.tensors:
        kinds.setdefault(tensor.kind, []).append(tensor.size)
    names = ", ".join(source.folder.resolve().name for source in recipe.sources)
    if recipe.operator is None:
        title = f"Fusion of {names}"
        what = f"whose outputs are the weighted mean of {len(recipe.sources)} sources' (Mazzawi et al., Deep Fusion, ICML 2024)"
    else:
        title = f"{names}, grown by {recipe.operator}"
        what = f"grown by {recipe.operator} ({GROWTH_OPERATORS[recipe.operator].source})"
    lines = [
        "---",
        "tags:",
        "- deepfusion",
        "- merge",
        "---",
        f"# {title}",
        "",
        f"One network of {recipe.parameters:,} parameters {what}, written by deepfusion {versions()['deepfusion']}.",
        "",
        "| source | weight | parameters |",
        "|---|---|---|",
    ]
    for source, weight in zip(recipe.sources, recipe.weights, strict=True):
        lines.append(f"| {source.folder.resolve().name} | {weight:.6g} | {source.parameters:,} |")
    lines += ["", "| tensors | number | parameters |", "|---|---|---|"]
    lines += [f"| {kind} | {len(sizes)} | {sum(sizes):,} |" for kind, sizes in kinds.items()]
    noise = (
        f"on every weight that reads activations, of standard deviation {recipe.noise:g} in units of its root mean square, "
        f"seed {recipe.seed}; it cancels over the copies"
        if recipe.noise
        else "none"
    )
    norm = (
        f"calibrated (plain, with one factor per source and norm fitted to {recipe.calibrated_on} tokens of text)"
        if recipe.calibrated_on
        else "plain (every norm sees the sources' streams together)"
    )
    lines += [
        "",
        f"- norm mode: {norm}",
        f"- noise: {noise}",
        f"- dtype: {', '.join(recipe.dtypes).lower()}",
        f"- {'the mean' if recipe.operator is None else 'the function'} is {recipe.exactness}",
    ]
    lines += [f"- {sentence}" for sentence in recipe.kept_values]
    mean = "the mean" if recipe.operator is None else "the source"
    if measured is None or measured.says_nothing:
        reason = recipe.unmeasured if measured is None else measured.says_nothing
        lines.append(f"- deviation from {mean}: not measured{reason and f' ({reason})'}")
    else:
        logits = f"{mean} of the sources' logits" if recipe.operator is None else f"{mean}'s logits"
        lines.append(
            f"- deviation from {logits}, measured on {measured.tokens} random tokens: at most "
            f"{measured.largest:.3g}, on average {measured.mean:.3g}; {mean}'s logits have a standard deviation of "
            f"{measured.spread:.3g}"
        )
    lines.append(
        f"- learning rates with which training goes on as before: {GROWTH}, for fusion_core.torch.param_groups"
    )
    lines.append(f"- tokenizer: {'copied from a source' if copied else 'the sources came without one'}")
    return "\n".join(lines) + "\n"
