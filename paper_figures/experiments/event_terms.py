"""What theory measures at the growths of ``after_growth``, beside what followed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from paper_figures.experiments.record import load_record

NAME = "after_growth_terms"
EVENTS = {"early": "after_growth_early", "late": "after_growth_late"}
HEAD = (
    "| growth | variant | loss jumps by | modified loss jumps by | gradient norm, over the source's "
    "| decrease of the loss a FLOP, over the source's | conflict | final loss less the recipe's |"
)


def terms_of(theory: Mapping[str, float]) -> dict[str, float]:
    """Return a growth's terms against its sources', from a record of ``fusion_core.schedule.GrowthMeter``."""
    source = lambda term: statistics.fmean(
        theory[key] for key in theory if key in (f"{term}_source_0", f"{term}_source_1")
    )
    return {
        "loss": theory["loss_fused"] - source("loss"),
        "modified": theory["modified_loss_fused"] - source("modified_loss"),
        "gradient": theory["gradient_norm_fused"] / source("gradient_norm"),
        "decrease": theory["decrease_per_flop_fused"] / source("decrease_per_flop"),
        "conflict": theory["conflict"],
        "conflict_se": theory["conflict_se"],
    }


def table() -> str:
    """Return, for each growth that was measured, its terms and the final loss less the recipe's, as a Markdown table.

    Raises:
      InputError: a record is missing, with the command that makes it.
    """
    from paper_figures.after_growth import table_of, words  # figures import this package

    record = load_record(NAME)
    seeds = list(record.seeds)
    lines = [
        f"Seeds {', '.join(seeds)}; estimated over pairs of batches at the event, the conflict with its standard error. "
        "The recipe: velocity factors, state fused, antisymmetric noise 0.5.",
        "",
        HEAD,
        f"|{'---|' * (HEAD.count('|') - 1)}",
    ]
    for event, experiment in EVENTS.items():
        followed = table_of(load_record(experiment))
        nodes = dict.fromkeys(name for seed in seeds for name in record.seeds[seed] if name.startswith(f"{event}_"))
        for node in nodes:
            variant = node.removeprefix(f"{event}_").replace("0p", "0.")
            found = [terms_of(theory) for seed in seeds if (theory := record.seeds[seed].get(node, {}).get("theory"))]
            if found:
                after: list[Any] = list(followed.get(variant, {}).values())
                lines.append(_row(event, words(variant), found, after))
    return "\n".join(lines)


def _row(event: str, variant: str, found: list[dict[str, float]], after: list[tuple[float, float, float]]) -> str:
    mean = {term: statistics.fmean(one[term] for one in found) for term in found[0]}
    ends = f" (at {after[0][0]:.0%})" if after and after[0][0] < 0.99 else ""
    final = f"{statistics.fmean(row[2] for row in after):+.3f}{ends}" if after else "–"
    return (
        f"| {event} | {variant} | {mean['loss']:+.4f} | {mean['modified']:+.4f} | {mean['gradient']:.2f} "
        f"| {mean['decrease']:.2f} | {mean['conflict']:+.1e} ± {mean['conflict_se']:.0e} | {final} |"
    )
