"""From records to tables: regret of every rule with what the truth resolves beside it, and the arms of equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.growth.measure import FORECASTS
from benchmarks.growth.rules import FIXED, RULES

SPLITS, RESAMPLES, SEED = 200, 4000, 0
AHEAD = (
    "look-ahead (lowest forecast)",
    "online (forecast stops falling)",
    "online (no later growth is forecast lower)",
)


def judge(record: dict[str, Any]) -> dict[str, Any] | None:
    """One problem: every rule's regret, the truth's resolution, the other arms. None where a run diverged."""
    final = np.asarray(record["final"], float)
    if not np.isfinite(final).all():
        return None
    log = np.log(final)
    mean = log[:, :-1].mean(axis=0)
    best = int(mean.argmin())
    found: dict[str, Any] = {
        "seed": record["problem"]["seed"],
        "operator": record["problem"]["operator"],
        "activation": record["problem"]["activation"],
        "steps": record["problem"]["steps"],
        "best_share": record["shares"][best],
        "gap_to_never": float(np.exp(log[:, -1].mean() - mean[best])),
    }
    rows = np.arange(len(log))
    chosen = {name: rule(record) for name, rule in RULES.items()}
    found["regret"] = {name: float(np.exp(log[rows, at].mean() - mean[best])) for name, at in chosen.items()}
    found["share"] = {name: float(np.mean([record["shares"][i] for i in at])) for name, at in chosen.items()}
    differences = log[:, :-1] - log[:, [best]]
    errors = differences.std(axis=0, ddof=1) / np.sqrt(len(log))
    found["standard_error"] = float(np.median(np.delete(errors, best)))
    found["split_half"] = _split_half(log[:, :-1])
    ahead = np.asarray(record["look_ahead"])[:, :-1]
    for name in FORECASTS:
        off = np.abs(np.log(np.asarray(record[name], float)[:, :-1]) - log[:, :-1])
        found[f"off_{name}"] = float(np.median(off))
    uncertainty = np.asarray(record["look_ahead_uncertainty"])[:, :-1]
    found["covered"] = float((np.abs(ahead - final[:, :-1]) <= 2 * uncertainty).mean())
    if record.get("costate"):
        followed = record["costate"]
        ends = np.log([c["final"] for c in followed])
        # paired: the same runs at the step that is best in the mean
        found["costate"] = float(np.exp((ends - log[: len(ends), best]).mean()))
        found["costate_gradients"] = float(np.mean([c["gradients"] for c in followed]))
    for arm in ("scratch", "one_small"):
        found[arm] = float(np.exp(np.log(record[arm]).mean() - mean[best]))
    found["scratch_best"] = record["scratch_best"]
    return found


def _split_half(log: np.ndarray) -> float:
    """The step chosen on one half of the runs, judged on the other: mean regret over random halves."""
    rng, half, regrets = np.random.default_rng(SEED), len(log) // 2, []
    for _ in range(SPLITS):
        order = rng.permutation(len(log))
        one, other = log[order[:half]].mean(axis=0), log[order[half:]].mean(axis=0)
        regrets.append(np.exp(other[one.argmin()] - other.min()))
    return float(np.mean(regrets))


def _interval(differences: np.ndarray) -> list[float]:
    """Mean and 95 % bootstrap interval over problems of paired differences of log regret, as ratios."""
    rng = np.random.default_rng(SEED)
    means = differences[rng.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(axis=1)
    return [float(np.exp(v)) for v in (differences.mean(), *np.quantile(means, (0.025, 0.975)))]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "mean": float(np.mean(values)), "worst": float(np.max(values))}


def compute(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All tables as plain numbers."""
    judged = [found for record in records if (found := judge(record)) is not None]
    result: dict[str, Any] = {"problems": judged, "diverged": len(records) - len(judged)}
    if not judged:
        return result
    result["runs"] = len(records[0]["final"])
    result["truth"] = {name: _spread([p[name] for p in judged]) for name in ("standard_error", "split_half")}
    result["regret"] = {
        name: _spread([p["regret"][name] for p in judged])
        | {"share": float(np.median([p["share"][name] for p in judged]))}
        for name in RULES
    }
    if any("costate" in p for p in judged):
        result["costate"] = _spread([p["costate"] for p in judged if "costate" in p])
    logs = {name: np.log([p["regret"][name] for p in judged]) for name in RULES}
    result["against_fixed"] = {
        rule: {f"{share:.0%}": _interval(logs[rule] - logs[f"fixed at {share:.0%}"]) for share in FIXED}
        for rule in AHEAD
    }
    result["forecasts"] = {
        name: _spread([p[f"off_{name}"] for p in judged]) | {"gradients": _gradients(settings)}
        for name, settings in FORECASTS.items()
    }
    result["covered"] = float(np.mean([p["covered"] for p in judged]))
    result["arms"] = {
        arm: _spread([p[arm] for p in judged]) | {"least": float(np.min([p[arm] for p in judged]))}
        for arm in ("scratch", "gap_to_never", "one_small")
    }
    result["pays"] = {
        operator: {
            "problems": sum(p["operator"] == operator for p in judged),
            "grown_is_lowest": sum(
                p["operator"] == operator and min(p["scratch"], p["gap_to_never"], p["one_small"]) > 1 for p in judged
            ),
        }
        for operator in ("fuse", "self")
    }
    return result


def _gradients(settings: dict[str, Any]) -> int:
    return settings["relinearisations"] * (2 + 2 * settings["krylov"]) + 1


def markdown(result: dict[str, Any]) -> str:
    """The same as text."""
    if "regret" not in result:
        return f"No problem without a diverged run ({result['diverged']} diverged)."
    truth, count = result["truth"], len(result["problems"])
    lines = [
        f"{count} problems, {result['runs']} runs each, {result['diverged']} left out because a run diverged. Paired "
        f"standard error between growth steps: {truth['standard_error']['median']:.1%} in the median problem (worst "
        f"{truth['standard_error']['worst']:.1%}); split-half regret {truth['split_half']['median']:.3f} (mean "
        f"{truth['split_half']['mean']:.3f}, worst {truth['split_half']['worst']:.3f}).",
        "",
        "Regret, the rule's cost not charged:",
        "",
        "| rule | median | mean | worst | grows at |",
        "|---|---|---|---|---|",
    ]
    row = lambda name, s: f"| {name} | {s['median']:.3f} | {s['mean']:.3f} | {s['worst']:.3f} |"
    if "costate" in result:
        lines.append(row("costate (root of the switching function; paired, some runs)", result["costate"]) + " |")
    lines += [f"{row(name, s)} {s['share']:.1%} |" for name, s in result["regret"].items()]
    lines += ["", "Ratio of regrets to fixed fractions, mean and 95 % interval over problems:", ""]
    lines += ["| rule | " + " | ".join(f"{s:.0%}" for s in FIXED) + " |", "|---" * (len(FIXED) + 1) + "|"]
    for name, against in result["against_fixed"].items():
        cells = " | ".join(f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in against.values())
        lines.append(f"| {name} | {cells} |")
    lengths = (10**3, 10**4, 10**5, 10**6)
    lines += ["", "| forecast | off in the median problem | worst | gradients | share of a run, 16 looks: "]
    lines[-1] += " | ".join(f"{n:,} steps" for n in lengths) + " |"
    lines.append("|---" * (4 + len(lengths)) + "|")
    for name, s in result["forecasts"].items():
        shares = " | ".join(f"{16 * s['gradients'] / n:.2%}" for n in lengths)
        lines.append(f"| {name} | {s['median']:.1%} | {s['worst']:.1%} | {s['gradients']} | {shares} |")
    lines += [
        "",
        f"The look-ahead's stated uncertainty, doubled, covers the truth in {result['covered']:.0%} of the cases.",
        "",
        "Equal FLOPs, final loss over that of the best growth step:",
        "",
        "| arm | least | median | mean | worst |",
        "|---|---|---|---|---|",
    ]
    names = {"scratch": "large from scratch, its rates tuned", "gap_to_never": "never grown", "one_small": "one small"}
    for arm, s in result["arms"].items():
        lines.append(f"| {names[arm]} | {s['least']:.3f} | {s['median']:.3f} | {s['mean']:.3f} | {s['worst']:.3f} |")
    for operator, s in result["pays"].items():
        lines.append("")
        lines.append(
            f"{operator}: growing (at its best step) ends below all three other arms in {s['grown_is_lowest']} of "
            f"{s['problems']} problems."
        )
    if result.get("slopes"):
        lines += ["", "Derivative of the final loss in the growth step, order of its error in h:", ""]
        lines += ["| fields | slope | residual |", "|---|---|---|"]
        lines += [
            f"| {name} | {s['slope']:.2f} | {s['residual']:.2f} |" for name, s in result["slopes"]["orders"].items()
        ]
    return "\n".join(lines)
