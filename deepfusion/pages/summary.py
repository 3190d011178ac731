"""What a run's comparison says, in sentences and in rows of tables; the format is in ``fusion_core.runs.compare``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepfusion.tables import duration, prefixed

Results = Mapping[str, Any]
Spread = Mapping[str, Any]  # mean, standard_error, values

CERTAIN = 2.0  # standard errors above which a mean difference is not taken for chance
MOST_NODES = 8  # final losses where there are no arms
MOST_GROWN, MOST_PAIRS = 2, 4  # grown arms in sentences, and sentences that compare two arms


def arms_by_loss(results: Results) -> list[Mapping[str, Any]]:
    """Return the arms, the best final loss first."""
    return sorted(results["comparison"]["arms"], key=lambda arm: arm["loss"]["mean"])


def reference_of(results: Results) -> str | None:
    """Return the arm that the others are compared with: the largest network that did not grow. None if there is none."""
    fixed = [arm for arm in results["comparison"]["arms"] if arm["grown_at"] is None]
    return max(fixed, key=lambda arm: arm["parameters"])["name"] if fixed else None


def saving_of(results: Results, arm: str, other: str) -> Mapping[str, Any]:
    """Return what ``arm`` saved on the way to the final loss of ``other``."""
    return next(s for s in results["comparison"]["savings"] if (s["arm"], s["other"]) == (arm, other))


def with_error(spread: Spread, form: str, scale: float = 1.0) -> str:
    """Return ``mean ± standard error``, the mean alone for one seed, or nothing if no seed has a value."""
    if spread["mean"] is None:
        return ""
    error = spread["standard_error"]
    mean = format(scale * spread["mean"], form)
    return mean if error is None else f"{mean} ± {format(scale * error, form.removeprefix('+'))}"


def percent(spread: Spread) -> str:
    """Return a share in percent with its error, and, as in ``(2/3)``, how many seeds have it if not all do."""
    known = [value for value in spread["values"] if value is not None]
    if not known:
        return "not reached"
    of = f" ({len(known)}/{len(spread['values'])})" if len(known) < len(spread["values"]) else ""
    return f"{with_error(spread, '.0f', 100)} %{of}"


def lines(results: Results) -> list[str]:
    """Return what growing cost and saved, in about ten lines: the grown arms against the largest that did not grow."""
    comparison, seeds = results["comparison"], max(1, len(results["seeds"]))
    arms = {arm["name"]: arm for arm in comparison["arms"]}
    if not arms:
        finals = [f"{name} ended at {node['final']:.4f}." for name, node in results["nodes"].items() if node["final"]]
        return ["No arm of this plan ends with a network that was trained and evaluated.", *finals[:MOST_NODES]]
    grown = [arm for arm in arms_by_loss(results) if arm["grown_at"] is not None][:MOST_GROWN]
    fixed = sorted((arm for arm in arms.values() if arm["grown_at"] is None), key=lambda arm: -arm["parameters"])
    found = [_first_line(results, seeds)]
    found += [_growth(results, arm) for arm in grown]
    for arm in grown or fixed[:1]:
        others = [other for other in fixed if other is not arm][: MOST_PAIRS // max(1, len(grown))]
        found += [_against(results, arm, other, seeds) for other in others]
    found += [f"{name}: {node['rule']['reason']}" for name, node in results["nodes"].items() if node.get("rule")]
    if seeds == 1 and len(arms) > 1:
        found.append("One seed cannot tell small differences from chance; take several: seeds = [0, 1, 2] in the plan.")
    return found


def _first_line(results: Results, seeds: int) -> str:
    comparison = results["comparison"]
    count = len(comparison["arms"])
    best = arms_by_loss(results)[0]
    cost = (
        "" if comparison["budget"] is None else f" at {prefixed(comparison['budget'], 'FLOP')} each, sources included"
    )
    runs = f", {seeds} seeds" if seeds > 1 else ""
    return (
        f"{count} arm{'s' if count > 1 else ''}{cost}{runs}: the lowest final loss is {_loss(best)} nats per token, "
        f"of “{best['name']}”."
    )


def _loss(arm: Mapping[str, Any]) -> str:
    return with_error(arm["loss"], ".3f")


def _growth(results: Results, arm: Mapping[str, Any]) -> str:
    share = arm["grown_at"]["mean"] / arm["flops"]["mean"]
    sources = [name for name in arm["sources"] if results["nodes"][name]["kind"] == "train"]
    return (
        f"“{arm['name']}” grew after {prefixed(arm['grown_at']['mean'], 'FLOP')}, {100 * share:.0f} % of its cost, from "
        f"{' and '.join(sources)}, and ended at {_loss(arm)}."
    )


def _against(results: Results, arm: Mapping[str, Any], other: Mapping[str, Any], seeds: int) -> str:
    """Compare an arm with another one that did not grow."""
    saving = saving_of(results, arm["name"], other["name"])
    difference = saving["difference"]
    below = difference["mean"] < 0
    size = with_error({**difference, "mean": abs(difference["mean"])}, ".3f")
    chance = seeds > 1 and abs(difference["mean"]) < CERTAIN * (difference["standard_error"] or 0.0)
    sentence = f"Against “{other['name']}” ({_loss(other)}): {size} {'below' if below else 'above'}"
    sentence += f", which {seeds} seeds cannot tell from chance" if chance else ""
    if saving["flops_paid"]["mean"] is not None:
        reached = sum(value is not None for value in saving["flops_paid"]["values"])
        where = f" in {reached} of {seeds} seeds," if reached < seeds else ""
        return (
            f"{sentence}; its loss was reached{where} with {_fewer(saving['flops_paid'], 'fewer', 'more')} FLOPs "
            f"({_fewer(saving['flops_given'], 'fewer', 'more')} if the sources are given) and "
            f"{_fewer(saving['wall_paid'], 'less', 'more')} time ({_fewer(saving['wall_given'], 'less', 'more')})."
        )
    back = saving_of(results, other["name"], arm["name"])["flops_paid"]
    if back["mean"] is None:
        return f"{sentence}; its loss was not reached."
    return (
        f"{sentence}; its loss was not reached, and it reached the loss of “{arm['name']}” with "
        f"{_fewer(back, 'fewer', 'more')} FLOPs."
    )


def _fewer(spread: Spread, less: str, more: str) -> str:
    mean = spread["mean"]
    if mean is None:
        return "an unknown share of"
    size = with_error({**spread, "mean": abs(mean)}, ".0f", 100)
    return f"{size} % {less if mean >= 0 else more}"


ARM_COLUMNS = ("arm", "final loss", "parameters", "grew at", "FLOPs", "time")


def arm_rows(results: Results) -> list[tuple[str, ...]]:
    """Return the table of ``ARM_COLUMNS``: what each arm cost, and where it ended."""
    return [
        (
            arm["name"],
            with_error(arm["loss"], ".4f"),
            prefixed(arm["parameters"]),
            "" if arm["grown_at"] is None else prefixed(arm["grown_at"]["mean"], "FLOP"),
            prefixed(arm["flops"]["mean"], "FLOP") + _share(arm["share"]),
            duration(arm["seconds"]["mean"]),
        )
        for arm in arms_by_loss(results)
    ]


def _share(share: Spread | None) -> str:
    return "" if share is None else f" ({share['mean']:.0%})"


PAIR_COLUMNS = ("arm", "against", "loss difference", "FLOPs saved", "sources given", "time saved", "sources given")


def pair_rows(results: Results, other: str | None = None) -> list[tuple[str, ...]]:
    """Return the table of ``PAIR_COLUMNS``: what arms saved until they reached the final loss of ``other``, or of any."""
    return [
        (
            saving["arm"],
            saving["other"],
            with_error(saving["difference"], "+.4f"),
            *(percent(saving[key]) for key in ("flops_paid", "flops_given", "wall_paid", "wall_given")),
        )
        for saving in results["comparison"]["savings"]
        if other in (None, saving["other"])
    ]


def _median(points: list[Any]) -> float | None:
    values = sorted(value for _, value in points[1:] or points)  # the first one has the compilation in it
    return values[len(values) // 2] if values else None


def rows(results: Results) -> list[dict[str, Any]]:
    """Return a row a node of the first seed, in the order in which they ran."""
    table = []
    for name, node in results["nodes"].items():
        start = node.get("start")
        table.append(
            {
                "node": name,
                "inputs": node["inputs"],
                "parameters": node["parameters"],
                "steps": "growth" if start is None else f"{start:,} to {node['step']:,}",
                "flops": node.get("flops", 0.0),
                "total_flops": node["total_flops"],
                "loss": node["final"],
                "tokens_per_second": _median(node["tokens_per_second"]),
                "input_wait": _median(node["input_wait"]),
                "model": f"nodes/{name}/model",
                "reason": node.get("rule", {}).get("reason", ""),
            }
        )
    return table
