"""The model card of a fused checkpoint: what was fused, how, and what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_core.checkpoints.comparison import Deviation
from fusion_core.checkpoints.plan import FusionPlan
from fusion_core.provenance import versions


def model_card(plan: FusionPlan, measured: Deviation | None, copied: Sequence[str]) -> str:
    """README.md in Hugging Face's form. The sources appear by their folders' names, not by their paths."""
    kinds: dict[str, list[int]] = {}
    for tensor in plan.tensors:
        kinds.setdefault(tensor.kind, []).append(tensor.size)
    lines = [
        "---",
        "tags:",
        "- deepfusion",
        "- merge",
        "---",
        f"# Fusion of {', '.join(source.folder.resolve().name for source in plan.sources)}",
        "",
        f"One network of {plan.parameters:,} parameters whose outputs are the weighted mean of "
        f"{len(plan.sources)} sources' (Mazzawi et al., Deep Fusion, ICML 2024), written by deepfusion "
        f"{versions()['deepfusion']}.",
        "",
        "| source | weight | parameters |",
        "|---|---|---|",
    ]
    for source, weight in zip(plan.sources, plan.weights, strict=True):
        lines.append(f"| {source.folder.resolve().name} | {weight:.6g} | {source.parameters:,} |")
    lines += ["", "| tensors | number | parameters |", "|---|---|---|"]
    lines += [f"| {kind} | {len(sizes)} | {sum(sizes):,} |" for kind, sizes in kinds.items()]
    noise = (
        f"on every weight that reads activations, of standard deviation {plan.noise:g} in units of its root mean square, "
        f"seed {plan.seed}; it cancels over the copies"
        if plan.noise
        else "none"
    )
    norm = (
        f"calibrated (plain, with one factor per source and norm fitted to {plan.calibrated_on} tokens of text)"
        if plan.calibrated_on
        else "plain (every norm sees the sources' streams together)"
    )
    lines += [
        "",
        f"- norm mode: {norm}",
        f"- noise: {noise}",
        f"- dtype: {', '.join(plan.dtypes).lower()}",
        f"- the mean is {plan.exactness}",
    ]
    if measured is None:
        lines.append("- deviation from the mean: not measured")
    else:
        lines.append(
            f"- deviation from the mean of the sources' logits, measured on {measured.tokens} random tokens: at most "
            f"{measured.largest:.3g}, on average {measured.mean:.3g}; the mean's logits have a standard deviation of "
            f"{measured.spread:.3g}"
        )
    lines.append(f"- tokenizer: {'copied from a source' if copied else 'the sources came without one'}")
    return "\n".join(lines) + "\n"
