"""From records to tables: regret of every rule with what the truth resolves beside it, and the arms of equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from toy_models.when_to_grow.measure import FORECASTS
from toy_models.when_to_grow.rules import CHARGED_RULES, FIXED, FOLLOWED, RULES

SPLITS, RESAMPLES, SEED = 200, 4000, 0
COSTATE = "costate (root of the switching function)"
AHEAD = ("look-ahead (lowest forecast)", COSTATE, *FOLLOWED)
ARMS = {
    "scratch": "large from scratch",
    "never": "never grown: the small ones, fused at the end",
    "one_small": "one small one, the whole budget",
}


def judge(record: dict[str, Any]) -> dict[str, Any] | None:
    """Judge one problem: every rule's regret, the truth's resolution, the other arms; return None if a run diverged.

    Regret is paired: the runs that followed the rule, over the same runs at the growth step whose mean log loss over all
    runs of the truth is lowest; the last step, never, is one of them.
    """
    final = np.asarray(record["final"], float)
    if not np.isfinite(final).all():
        return None
    log, runs = np.log(final), len(record["look_ahead"])
    mean = log.mean(axis=0)
    best = int(mean.argmin())
    differences = log - log[:, [best]]
    errors = differences.std(axis=0, ddof=1) / np.sqrt(len(log))
    problem, never = record["problem"], len(mean) - 1
    found: dict[str, Any] = {name: problem[name] for name in ("seed", "operator", "activation", "steps", "sizes")}
    found |= {
        "best_share": record["shares"][best],
        "curve": np.exp(mean - mean[best]).tolist(),
        "standard_error": float(np.median(np.delete(errors, best))),
        "split_half": split_half(log),
        # growing later than at 90 % of the budget is not distinguished from never
        "never_is_best": bool(best >= never - 1),
        "growth_pays": bool(differences[:, never].mean() > 2 * errors[never] and best < never - 1),
        "gap_to_never": float(np.exp(differences[:, never].mean())),
    }
    rows, here = np.arange(runs), log[:runs, best]
    regrets: dict[str, np.ndarray] = {}
    shares: dict[str, np.ndarray] = {}
    for name, rule in RULES.items():
        at = rule(record)
        regrets[name], shares[name] = log[rows, at] - here, np.asarray([record["shares"][i] for i in at])
    for name, key in (FOLLOWED | CHARGED_RULES).items():
        if key in record:
            regrets[name] = np.log([one["final"] for one in record[key]]) - here
            shares[name] = np.asarray([one["share"] for one in record[key]])
            found[f"{key}_looks"] = float(np.mean([one["looks"] for one in record[key]]))
            found[f"{key}_gradients"] = float(np.mean([one["gradients"] for one in record[key]]))
            found[f"{key}_methods"] = [one["method"] for one in record[key]]
    if record.get("costate"):
        followed = record["costate"]
        regrets[COSTATE] = np.log([one["final"] for one in followed]) - here[: len(followed)]
        shares[COSTATE] = np.asarray([one["share"] for one in followed])
        found["costate_gradients"] = float(np.mean([one["gradients"] for one in followed]))
    found["regret"] = {name: float(np.exp(values.mean())) for name, values in regrets.items()}
    found["against_all_runs"] = {
        name: float(np.exp((values + here[: len(values)]).mean() - mean[best])) for name, values in regrets.items()
    }
    found["share"] = {name: float(values.mean()) for name, values in shares.items()}
    found["answers_never"] = {name: float((values > 0.9).mean()) for name, values in shares.items()}
    ahead, truth = np.asarray(record["look_ahead"])[:, :-1], final[:runs, :-1]
    for name in FORECASTS:
        found[f"off_{name}"] = float(np.median(np.abs(np.log(np.asarray(record[name], float)[:, :-1] / truth))))
    uncertainty = np.asarray(record["look_ahead_uncertainty"])[:, :-1]
    found["covered"] = float((np.abs(ahead - truth) <= 2 * uncertainty).mean())
    grown = np.log(record["grown_arm"])
    found["arms"] = {arm: float(np.exp((np.log(record[f"{arm}_arm"]) - grown).mean())) for arm in ARMS}
    found["arms_best"] = {arm: record[f"{arm}_arm_best"] for arm in ("grown", *ARMS)}
    return found


def split_half(log: np.ndarray) -> float:
    """Return the mean regret of the step chosen on one half of the runs and judged on the other, over random halves."""
    rng, half, regrets = np.random.default_rng(SEED), len(log) // 2, []
    for _ in range(SPLITS):
        order = rng.permutation(len(log))
        one, other = log[order[:half]].mean(axis=0), log[order[half:]].mean(axis=0)
        regrets.append(np.exp(other[one.argmin()] - other.min()))
    return float(np.mean(regrets))


def interval_over_problems(differences: np.ndarray) -> list[float]:
    """Return mean and 95 % bootstrap interval over problems of paired differences of log regret, as ratios."""
    rng = np.random.default_rng(SEED)
    means = differences[rng.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(axis=1)
    return [float(np.exp(v)) for v in (differences.mean(), *np.quantile(means, (0.025, 0.975)))]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "mean": _mean(values), "worst": float(np.max(values))}


def compute(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return all tables as plain numbers."""
    judged = [found for record in records if (found := judge(record)) is not None]
    result: dict[str, Any] = {"problems": judged, "diverged": len(records) - len(judged)}
    if not judged:
        return result
    result["runs"], result["truth_runs"] = len(records[0]["look_ahead"]), len(records[0]["final"])
    result["truth"] = {name: _spread([p[name] for p in judged]) for name in ("standard_error", "split_half")}
    names = [name for name in (COSTATE, *FOLLOWED, *RULES, *CHARGED_RULES) if name in judged[0]["regret"]]
    result["regret"] = {
        name: _spread([p["regret"][name] for p in judged])
        | {"mean_against_all_runs": _mean([p["against_all_runs"][name] for p in judged])}
        | {"share": float(np.median([p["share"][name] for p in judged]))}
        for name in names
    }
    logs = {name: np.log([p["regret"][name] for p in judged]) for name in names}
    result["against_fixed"] = {
        rule: {f"{share:.0%}": interval_over_problems(logs[rule] - logs[f"fixed at {share:.0%}"]) for share in FIXED}
        for rule in (*AHEAD, *CHARGED_RULES)
        if rule in logs
    }
    result["never"] = {
        kind: {"problems": len(those)}
        | {name: float(np.mean([p["answers_never"][name] for p in those])) for name in names if those}
        for kind in ("never_is_best", "growth_pays")
        for those in [[p for p in judged if p[kind]]]
    }
    result["forecasts"] = {
        name: _spread([p[f"off_{name}"] for p in judged]) | {"gradients": _gradients(settings)}
        for name, settings in FORECASTS.items()
    }
    result["followed"] = {
        name: {what: float(np.mean([p[f"{key}_{what}"] for p in judged])) for what in ("looks", "gradients")}
        for name, key in (FOLLOWED | CHARGED_RULES).items()
        if f"{key}_looks" in judged[0]
    }
    result["covered"] = float(np.mean([p["covered"] for p in judged]))
    result["arms"] = {
        arm: _spread([p["arms"][arm] for p in judged]) | {"least": min(p["arms"][arm] for p in judged)} for arm in ARMS
    }
    of = lambda operator, that: sum(p["operator"] == operator and that(p["arms"]) for p in judged)
    result["pays"] = {
        operator: {
            "problems": of(operator, lambda _: True),
            "large_is_worth_it": of(operator, lambda arms: arms["scratch"] < arms["one_small"]),
            "grown_is_lowest": of(operator, lambda arms: min(arms.values()) > 1),
            "grown_below_scratch": of(operator, lambda arms: arms["scratch"] > 1),
        }
        for operator in ("fuse", "self")
    }
    return result


def _mean(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _gradients(settings: dict[str, Any]) -> int:
    return settings["relinearisations"] * (2 + 2 * settings["krylov"]) + 1


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    if "regret" not in result:
        return f"No problem without a diverged run ({result['diverged']} diverged)."
    truth, count = result["truth"], len(result["problems"])
    lines = [
        f"{count} problems, {result['runs']} runs of every rule and {result['truth_runs']} of the truth each, "
        f"{result['diverged']} left out because a run diverged. Paired standard error between growth steps: "
        f"{truth['standard_error']['median']:.2%} in the median problem (worst {truth['standard_error']['worst']:.1%}); "
        f"split-half regret of the truth itself {truth['split_half']['median']:.3f} (mean {truth['split_half']['mean']:.3f}, "
        f"worst {truth['split_half']['worst']:.3f}).",
        "",
        "Regret (the same runs at the best growth step are 1; a rule may be below, since it sees each run), cost not charged:",
        "",
        "| rule | median | mean | worst | mean against all runs | grows at | answers never where that is best | and where "
        "growing pays |",
        "|---|---|---|---|---|---|---|---|",
    ]
    right, wrong = result["never"]["never_is_best"], result["never"]["growth_pays"]
    share = lambda counts, name: f"{counts[name]:.0%} of {counts['problems']}" if name in counts else ""
    lines += [
        f"| {name} | {s['median']:.3f} | {s['mean']:.3f} | {s['worst']:.3f} | {s['mean_against_all_runs']:.3f} | "
        f"{s['share']:.1%} | {share(right, name)} | {share(wrong, name)} |"
        for name, s in result["regret"].items()
    ]
    lines += ["", "Ratio of regrets to fixed fractions, mean and 95 % interval over problems:", ""]
    lines += ["| rule | " + " | ".join(f"{s:.0%}" for s in FIXED) + " |", "|---" * (len(FIXED) + 1) + "|"]
    for name, against in result["against_fixed"].items():
        cells = " | ".join(f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in against.values())
        lines.append(f"| {name} | {cells} |")
    lengths = (10**3, 10**4, 10**5, 10**6)
    lines += ["", "| forecast | off in the median problem | worst | gradients | share of a run, one look: "]
    lines[-1] += " | ".join(f"{n:,} steps" for n in lengths) + " |"
    lines.append("|---" * (4 + len(lengths)) + "|")
    for name, s in result["forecasts"].items():
        shares = " | ".join(f"{s['gradients'] / n:.2%}" for n in lengths)
        lines.append(f"| {name} | {s['median']:.1%} | {s['worst']:.1%} | {s['gradients']} | {shares} |")
    lines += ["", "| rule | looks | gradients of the grown network |", "|---|---|---|"]
    lines += [f"| {name} | {s['looks']:.1f} | {s['gradients']:,.0f} |" for name, s in result["followed"].items()]
    lines += [
        "",
        f"The look-ahead's stated uncertainty, doubled, covers the truth in {result['covered']:.0%} of the cases.",
        "",
        "Equal FLOPs, each arm at the best of five rates, final loss over the grown network's (at the best of three steps):",
        "",
        "| arm | least | median | mean | worst |",
        "|---|---|---|---|---|",
    ]
    for arm, s in result["arms"].items():
        lines.append(f"| {ARMS[arm]} | {s['least']:.3f} | {s['median']:.3f} | {s['mean']:.3f} | {s['worst']:.3f} |")
    for operator, s in result["pays"].items():
        lines.append("")
        lines.append(
            f"{operator}, {s['problems']} problems: the large network is worth its budget (from scratch it ends below one "
            f"small one) in {s['large_is_worth_it']}; growing ends below it from scratch in {s['grown_below_scratch']}, and "
            f"below all three other arms in {s['grown_is_lowest']}."
        )
    if result.get("slopes"):
        lines += ["", "Derivative of the final loss in the growth step, order of its error in h:", ""]
        lines += ["| fields | slope | residual |", "|---|---|---|"]
        lines += [
            f"| {name} | {s['slope']:.2f} | {s['residual']:.2f} |" for name, s in result["slopes"]["orders"].items()
        ]
    return "\n".join(lines)
