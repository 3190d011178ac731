"""Tables of ``benchmarks.growth_law`` as Markdown, one for each block of docs/when_to_grow.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LATE = 0.1  # of the budget: arms that are grown earlier stand on the plateau

Rows = Sequence[Mapping[str, Any]]


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return name of a block -> its table."""
    return {
        "finding": finding(found),
        "kept": kept(found["kept"]),
        "regret": "\n\n".join(regret(name, **one) for name, one in found["regret"].items()),
        "laws": "\n\n".join(laws(name, **one) for name, one in found["laws"].items()),
        "one run": one_run(**found["one_run"]),
        "rule": rule(found["rule"]),
        "carried": carried(found["carried"]),
        "transfer": transfer(found["transfer"]),
    }


def finding(found: Mapping[str, Any]) -> str:
    """Return what the numbers say, a line a finding."""
    (_, judged), *_ = found["laws"].items()
    budget, at = judged["budget"], "of the budget"
    late = [r for r in found["kept"] if r["n1"] >= LATE * budget and np.isfinite(r["kept"][2][0])]
    early = [r for r in found["kept"] if r["n1"] < LATE * budget and np.isfinite(r["kept"][2][0])]
    shares = lambda rows: [r["kept"][2][0] for r in rows] or [float("nan")]
    span = lambda rows: f"{min(shares(rows)):.2f} to {max(shares(rows)):.2f} ({len(rows)} arms)"
    lines = [
        f"**The head start is kept once the plateau is past.** Grown after {LATE:.0%} {at} or later, networks have "
        f"{span(late)} of it 1,000 steps on; grown earlier {span(early)}."
    ]
    last = found["kept"][0]["windows"][-1]
    long = [r["kept"][-1] for r in found["kept"] if np.isfinite(r["kept"][-1][0])]
    if long:
        below = sum(high < 1 for *_, high in long)
        lines.append(
            f"**Long after the growth**, {np.mean(last):,.0f} steps on, {min(long)[0]:.2f} to {max(long)[0]:.2f} of it is left "
            f"({len(long)} arms of a longer budget, {below} of them with an interval below 1)."
        )
    off = lambda rows, k: [abs(r["foretold"][k] - r["measured"]) for r in rows if np.isfinite(r["foretold"][k])]
    said = lambda values: f"{np.mean(values):.3f} in the mean ({max(values):.3f} at most)"
    rows = [r for r in found["carried"] if r["n1"] >= LATE * budget]
    lines.append(
        f"**So a scratch curve foretells grown runs**: their losses to {said(off(rows, 1))} if nine tenths of the head "
        f"start are taken to be kept, to {said(off(rows, 0))} if all of it."
    )
    lines += [_fits(record, **one) for record, one in found["laws"].items()]
    lines += [_regrets(record, **one) for record, one in found["regret"].items()]
    full = [r for r in judged["rows"] if r["law"] == "curves" and not r["plateau"] and "kept" in r and r["kept"]]
    if full:
        r = max(full, key=lambda row: row["longest"])
        lines.append(
            f"**No grown run is needed**: s n₁^p is the two curves' own ratio as far as these runs tell. Fitted to "
            f"{r['longest']:,.0f} steps with grown runs, the law of curves has k = {interval(r['kept'])} of it kept."
        )
    return "\n".join(f"- {line}" for line in lines)


def _fits(record: str, budget: float, rows: Rows) -> str:
    past = [r for r in rows if not r["plateau"]]
    refused = sorted({r["longest"] for r in past} - {r["longest"] for r in past if "refused" not in r})
    said = f"**{record}, {budget:,.0f} steps.** "
    if refused:
        lengths = ", ".join(f"{n:,.0f}" for n in refused)
        said += f"Runs of {lengths} steps have not left the plateau, and every law refuses them. "
    blind = [r for r in rows if r["plateau"] and r["longest"] in refused and "errors" in r]
    if blind:
        worst = max(abs(float(np.mean(r["errors"]))) for r in blind)
        said += f"(Fitted all the same, curves alone are off by up to {worst:.0%}.) "
    for r in past:
        if r.get("holds"):
            said += (
                f"From {r['longest']:,.0f} steps {r['law']} may plan: best step {interval(r['share'], '.0%')}, losses off by "
                f"{np.mean(r['errors']):+.1%} in the mean, regret {r['regret']:.3f}. "
            )
    return said + ("" if any(r.get("holds") for r in past) else "No law says that it may plan.")


def _regrets(record: str, budget: float, seeds: int, rows: Rows) -> str:
    fixed = {r["rule"]: r["free"] for r in rows if r["longest"] is None}
    best = min(fixed, key=fixed.__getitem__)
    near = [rule.removeprefix("fixed at ") for rule, loss in fixed.items() if loss < fixed[best] + 0.005]
    told = [r for r in rows if r["longest"] is not None]
    lowest = min(told, key=lambda r: r["charged"] if np.isfinite(r["charged"]) else np.inf)
    return (
        f"**Regret on {record}**: a fixed share of {' or '.join(near)} is within half a percent of the best one "
        f"({number(fixed[best])}). Of the rules that see short runs and pay for them the best is “{lowest['rule']}”, "
        f"seeing {lowest['longest']:,.0f} steps, at {number(lowest['charged'])} ({number(lowest['free'])} if the runs are "
        "there already)."
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(
        [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def interval(of: Any, form: str = ".2f") -> str:
    """Return a number with its interval; a dash if it is not known."""
    return "–" if of is None or not np.isfinite(of[0]) else f"{of[0]:{form}} ({of[1]:{form}} to {of[2]:{form}})"


def number(value: float) -> str:
    """Return a number with three digits after the point; a dash if it is not known."""
    return f"{value:.3f}" if np.isfinite(value) else "–"


def kept(rows: Rows) -> str:
    """Return which share of its head start each arm keeps."""
    windows = [f"{a:.0f} to {b:.0f} steps after" for a, b in rows[0]["windows"]]
    heads = ("record, arm", "growth", "grown at", "scratch has its loss at", "seeds", *windows)
    of = lambda i, seeds: interval(i) if seeds > 1 else f"{i[0]:.2f}".replace("nan", "–")
    return table(heads, [
        [f"{r['record']}, {r['arm']}", r["what"], f"{r['n1']:.0f}", f"{r['age']:.0f}", str(r["seeds"]),
         *(of(i, r["seeds"]) for i in r["kept"])]
        for r in rows
    ])  # fmt: skip


def regret(name: str, budget: float, seeds: int, rows: Rows) -> str:
    """Return the regret of every rule at a budget."""
    heads = ("rule", "sees runs to", "refuses, may plan", "grows at", "regret", "its cost", "regret, cost charged")
    lines = []
    for r in rows:
        if r["longest"] is None:
            lines.append([r["rule"], "", "", "", _regret(r, "free"), "", _regret(r, "charged")])
            continue
        steps = [step / budget for step in r["free_steps"]]
        said = f"{r['refused']}, {r['holds']} of {seeds}"
        lines.append([
            r["rule"], f"{r['longest']:,.0f}", said, f"{min(steps):.0%} to {max(steps):.0%}", _regret(r, "free"),
            f"{r['charged_cost'] / budget:.0%}", _regret(r, "charged"),
        ])  # fmt: skip
    return f"{name}, {budget:,.0f} large steps, {seeds} seeds:\n\n{table(heads, lines)}"


def _regret(row: Any, key: str) -> str:
    """Return a regret with its interval over seeds, if there is one."""
    between = row.get(f"{key}_interval")
    return interval((row[key], *between), ".3f") if between else number(row[key])


def laws(name: str, budget: float, rows: Rows) -> str:
    """Return what laws of short runs foretell."""
    heads = ("law", "fitted to", "plateaus", "points", "drift a doubling", "error of the loss, mean (range)")
    heads += ("within the interval", "best share", "its loss over the best", "k", "growing pays", "may plan")
    lines = []
    for r in _joined(rows):
        first = [r["law"], f"{r['longest']:,.0f}", "fitted too" if r["plateau"] else "left out"]
        if "refused" in r:
            lines.append([*first, f"refused: {reason(r['refused'])}", *[""] * 8])
            continue
        e, drift = r["errors"], "not known" if r["drift"] is None else f"{r['drift']:.0%}"
        pays = {True: "yes", False: "no", None: "not known"}[r["pays"]]
        lines.append([
            *first, str(r["points"]), drift, f"{np.mean(e):+.1%} ({min(e):+.1%} to {max(e):+.1%})",
            f"{r['inside']} of {len(e)}", interval(r["share"], ".0%"), f"{r['regret']:.3f}",
            interval(r["kept"]) if r["kept"] else "", pays, "yes" if r["holds"] else "no",
        ])  # fmt: skip
    return f"{name}, judged at {budget:,.0f} large steps:\n\n{table(heads, lines)}"


def _joined(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows, those of one length that are refused for one reason as one."""
    found: dict[Any, dict[str, Any]] = {}
    for i, row in enumerate(rows):
        key = (row["longest"], row["refused"]) if "refused" in row else i
        law = f"{found[key]['law']}, {row['law']}" if key in found else row["law"]
        found[key] = {**row, "law": law}
    return list(found.values())


def reason(refused: str) -> str:
    """Return why a fit was refused, without what to do about it."""
    return re.sub(r"^no law can be fitted: ", "", refused).partition(";")[0]


def one_run(budget: float, rows: Rows, measured: Mapping[float, Sequence[float]]) -> str:
    """Return what the law of curves alone says of the small network in one run."""
    spans = [f"grown at {float(n1) / budget:.0%} (measured {min(v):.3f} to {max(v):.3f})" for n1, v in measured.items()]
    lines = []
    for r in rows:
        if "refused" in r:
            lines.append([f"{r['longest']:,.0f}", f"refused: {reason(r['refused'])}", *[""] * (len(spans) + 2)])
            continue
        drift = "not known" if r["drift"] is None else f"{r['drift']:.0%}"
        losses = [f"{loss:.3f}" for loss in r["foretold"].values()]
        lines.append(
            [f"{r['longest']:,.0f}", drift, interval(r["share"], ".0%"), *losses, "yes" if r["holds"] else "no"]
        )
    return table(("fitted to", "drift a doubling", "best share", *spans, "may plan"), lines)


def rule(rows: Rows) -> str:
    """Return where the head-start rule grows."""
    return table(("small network", "curves to", "grows at", "lead", "known up to", ""), [
        [r["small"], f"{r['longest']:,.0f}", interval(r["step"], ",.0f"), interval(r["lead"], ",.0f"), f"{r['known']:,.0f}",
         "still rising" if r["rising"] else ""]
        for r in rows
    ])  # fmt: skip


def carried(rows: Rows) -> str:
    """Return losses that the scratch curve and the loss at the growth foretell."""
    losses = lambda r: [f"{v:.3f}".replace("nan", "–") for v in (*r["foretold"], r["measured"])]
    return table(("budget", "grown at", "scratch has its loss at", "k = 1", "k = 0.9", "measured"), [
        [f"{r['budget']:,.0f}", f"{r['n1']:.0f}", f"{r['age']:.0f}", *losses(r)] for r in rows
    ])  # fmt: skip


def transfer(rows: Rows) -> str:
    """Return the best measured shares, and what those of the other records would have cost."""
    names = [r["record"] for r in rows]
    heads = [
        "record",
        "widths",
        "budget",
        "loss at each share",
        "best share",
        *(f"loss at the best share of {n}" for n in names),
    ]
    lines = []
    for r in rows:
        best = min(r["losses"], key=r["losses"].__getitem__)
        losses = ", ".join(f"{float(share):.0%}: {loss:.3f}" for share, loss in r["losses"].items())
        at = [f"{r['regret'][name]:.3f}" for name in names]
        lines.append(
            [r["record"], " → ".join(map(str, r["widths"])), f"{r['budget']:,.0f}", losses, f"{float(best):.0%}", *at]
        )
    return table(heads, lines)
