"""From curves and answers to tables: the regret of every rule in long runs, its cost charged, and what the truth resolves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toy_models.when_to_grow.law_rules import FIXED, NEVER, TRIALS, Choice, final_log
from toy_models.when_to_grow.long_runs import LongCurves
from toy_models.when_to_grow.tables import interval_over_problems, split_half

RESAMPLES, SEED = 4000, 0
LOOK_AHEAD = "flows' look-ahead"
AGAINST = (*(f"fixed at {share:.0%}" for share in FIXED), TRIALS)


def truth(curves: LongCurves) -> tuple[np.ndarray, np.ndarray]:
    """Return the growth steps, the budget (never) last, and the log losses at the end, [runs, steps]."""
    steps = np.array([*sorted(curves.grown), curves.budget])
    runs = range(len(curves.small))
    return steps, np.stack([final_log(curves, runs, n1, curves.budget) for n1 in steps], axis=1)


def judge(curves: LongCurves, given: Mapping[str, Mapping[str, Sequence[Choice | str]]]) -> dict[str, Any]:
    """Judge a problem.

    Args:
      curves: of the problem.
      given: ``"charged"`` or ``"free"`` -> rule -> choices of the first runs, as many as the rule was followed in.

    Returns:
      Regrets, as ratios: runs that follow a rule over the same runs at the step that is best in the mean of all, as geometric
      means. Where the fit left no budget the loss is that of the best of its own runs.
    """
    steps, log = truth(curves)
    mean = log.mean(axis=0)
    best = int(mean.argmin())
    random = np.random.default_rng(SEED)
    draws = log[random.integers(0, len(log), (RESAMPLES, len(log)))].mean(axis=1)
    chosen = np.exp(mean[draws.argmin(axis=1)] - mean[best])  # the loss of what a draw of the runs calls best
    lowest = np.exp(np.quantile(draws.min(axis=1) - draws.min(axis=1).mean(), [0.025, 0.975]))
    scratch = final_log(
        LongCurves(curves.times, curves.scratch, curves.scratch, {}, {}), range(len(log)), np.inf, curves.budget
    )
    found: dict[str, Any] = {
        "best_share": float(steps[best] / curves.budget),
        "curve": {f"{n1 / curves.budget:.2g}": float(np.exp(v - mean[best])) for n1, v in zip(steps, mean, strict=True)},
        "best_loss": float(np.exp(mean[best])), "best_loss_interval": lowest.tolist(),
        "resolved": float(np.quantile(chosen, 0.95)), "split_half": split_half(log),
        "scratch": float(np.exp(scratch.mean() - mean[best])),
    }  # fmt: skip
    for how, rules in given.items():
        rows = {}
        for name, choices in rules.items():
            kept = [(run, c) for run, c in enumerate(choices) if isinstance(c, Choice)]
            reasons = sorted({c for c in choices if isinstance(c, str)})
            rows[name] = {"runs": len(choices), "refused": len(choices) - len(kept), "reasons": reasons}
            if not kept:
                continue
            ends = [end_of(curves, run, choice) - log[run, best] for run, choice in kept]
            off = [abs(np.log(c.loss) - end_of(curves, run, c)) for run, c in kept if c.loss > 0]
            rows[name] |= {
                "off": float(np.median(off)) if off else None,
                "regret": float(np.exp(np.mean(ends))), "cost": float(np.mean([c.cost for _, c in kept]) / curves.budget),
                "share": float(np.mean([c.step for _, c in kept]) / curves.budget),
                "holds": [c.holds for _, c in kept if c.holds is not None],
            }  # fmt: skip
        found[how] = rows
    return found


def payable(choice: Choice, budget: float) -> Choice | str:
    """Return the choice, or that the budget does not pay for it."""
    return choice if choice.cost < budget else f"it costs {choice.cost / budget:.1f} budgets"


def end_of(curves: LongCurves, run: int, choice: Choice) -> float:
    """Return the log loss with which a run that follows a choice ends."""
    left = curves.budget - choice.cost
    if (
        left <= choice.step and choice.step < curves.budget
    ):  # the fit cost what the growth was for: its own runs are left
        length = min(choice.step, curves.budget)
        return min(float(final_log(curves, [run], n1, length)[0]) for n1 in curves.grown if n1 < length)
    return float(final_log(curves, [run], min(choice.step, left), left)[0])


def compute(judged: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tables of some problems as plain numbers."""
    result: dict[str, Any] = {
        "problems": len(judged),
        "truth": {name: _spread([p[name] for p in judged]) for name in ("resolved", "split_half", "scratch")},
        "best_shares": [p["best_share"] for p in judged],
    }
    for how in ("charged", "free"):
        logs = {}
        rows = {}
        for name in judged[0][how]:
            of = [p[how][name] for p in judged]
            kept = [row for row in of if "regret" in row]
            if not kept:
                continue
            logs[name] = np.array([np.log(row["regret"]) if "regret" in row else np.nan for row in of])
            holds = [one for row in kept for one in row["holds"]]
            rows[name] = _spread([row["regret"] for row in kept]) | {
                "share": float(np.median([row["share"] for row in kept])),
                "cost": float(np.mean([row["cost"] for row in kept])),
                "refused": sum(row["refused"] for row in of), "runs": sum(row["runs"] for row in of),
                "holds": [sum(holds), len(holds)],
                "off": float(np.median(off)) if (off := [row["off"] for row in kept if row["off"] is not None]) else None,
            }  # fmt: skip
        result[how] = rows
        result[f"{how}_against"] = {
            name: {other: _against(logs[name], logs[other]) for other in AGAINST}
            for name in logs
            if name not in AGAINST and name != NEVER
        }
    return result


def _against(mine: np.ndarray, other: np.ndarray) -> list[float]:
    known = np.isfinite(mine) & np.isfinite(other)
    return interval_over_problems((mine - other)[known])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": float(np.median(values)),
        "mean": float(np.exp(np.mean(np.log(values)))),
        "worst": float(np.max(values)),
    }


def markdown(result: Mapping[str, Any], what: str, ratios: bool = True) -> str:
    """Return the tables of some problems as Markdown, with the ratios to fixed shares or without."""
    resolved, halves = result["truth"]["resolved"], result["truth"]["split_half"]
    shares = ", ".join(f"{share:.0%}" for share in result["best_shares"])
    lines = [
        f"{result['problems']} {what} problems, best shares {shares}. The step that the runs call best, by 95 % of their "
        f"bootstraps, ends within {resolved['median'] - 1:.1%} of the best in the median problem (worst "
        f"{resolved['worst'] - 1:.1%}); the truth's own split-half regret is {halves['median']:.3f} (worst "
        f"{halves['worst']:.3f}). Scratch ends at {result['truth']['scratch']['mean']:.2f} of the best growth in the mean.",
    ]
    heads = ("rule", "median", "mean", "worst", "grows at", "costs", "loss off by", "refused", "may plan")
    for how, title in (("charged", "Regret, its cost charged"), ("free", "Regret, its cost not charged")):
        lines += ["", f"{title}:", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, row in result[how].items():
            if how == "free" and (name in AGAINST or name == NEVER):
                continue  # as above
            holds = f"{row['holds'][0]} of {row['holds'][1]}" if row["holds"][1] else ""
            off = "" if row["off"] is None else f"{row['off']:.0%}"
            refused = f"{row['refused']} of {row['runs']}" if row["refused"] else ""
            lines.append(
                f"| {name} | {row['median']:.3f} | {row['mean']:.3f} | {row['worst']:.3f} | {row['share']:.0%} | "
                f"{row['cost']:.0%} | {off} | {refused} | {holds} |"
            )
    for how, title in (("charged", "its cost charged"), ("free", "its cost not charged"))[: 2 * ratios]:
        lines += ["", f"Ratio of regrets, mean and 95 % interval over problems, {title}:", ""]
        lines += [f"| rule | {' | '.join(AGAINST)} |", "|---" * (len(AGAINST) + 1) + "|"]
        for name, against in result[f"{how}_against"].items():
            cells = " | ".join(f"{m:.2f} ({low:.2f} to {high:.2f})" for m, low, high in against.values())
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
