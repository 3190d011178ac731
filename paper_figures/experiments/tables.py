"""Records as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping

from paper_figures.experiments.comparison import TUNED, Comparison, compare, records_of
from paper_figures.experiments.record import command_of, load_record, names, path_of
from paper_figures.experiments.statistics import Estimate
from paper_figures.results import Results


def listing() -> list[str]:
    """Return a line for every experiment: its name, and the seeds of its record or the command that makes one."""
    found = []
    for name in names():
        if path_of(name, "json").exists():
            found.append(f"{name}  seeds {', '.join(load_record(name).seeds)}")
        else:
            found.append(f"{name}  no record; make it with: {command_of(name)}")
    return found


def number(found: Estimate | None, digits: int = 3) -> str:
    """Return ``2.512 ± 0.012``, the mean and half the interval's width; ``–`` if there is no number."""
    if found is None:
        return "–"
    half = "" if found.interval is None else f" ± {(found.interval[1] - found.interval[0]) / 2:.{digits}f}"
    return f"{found.mean:.{digits}f}{half}"


def signed(found: Estimate | None) -> str:
    """Return ``-0.080 (-0.110 to -0.050)``, a difference and its interval; nothing if there is none."""
    if found is None:
        return ""
    return f"{found.mean:+.3f}" + ("" if found.interval is None else " ({:+.3f} to {:+.3f})".format(*found.interval))


def percent(found: Estimate | None) -> str:
    """Return ``31 % (25 to 37)``, the mean and the interval; an upper bound says in how many seeds the loss was reached."""
    if found is None:
        return "–"
    if not found.complete:
        seeds = f" (reached in {found.reached} of {len(found.values)})" if len(found.values) > 1 else " (not reached)"
        return f"at most {found.mean * 100:.0f} %{seeds}"
    low_high = "" if found.interval is None else f" ({found.interval[0] * 100:.0f} to {found.interval[1] * 100:.0f})"
    return f"{found.mean * 100:.0f} %{low_high}"


def label(arm: str) -> str:
    """Return an arm's name for readers."""
    return arm.replace("_", " ")


def markdown(name: str, labels: Mapping[str, str] | None = None) -> str:
    """Return the tables of a record: losses and savings of every arm at three budgets, and the sweep of the rates.

    Args:
      name: of the experiment.
      labels: words for arms.

    Raises:
      InputError: there is no record.
    """
    config, arrays = compare(records_of(name, "full"))
    return markdown_of(Comparison(Results.of(name, "full", 0, config, arrays, 0.0)), labels)


def markdown_of(found: Comparison, labels: Mapping[str, str] | None = None) -> str:
    """Return the tables of a comparison."""
    words = lambda arm: (labels or {}).get(arm, label(arm))
    budgets = range(len(found.budgets))
    tokens = found.config["tokens_a_parameter"]
    heads = [f"at {found.budgets[b]:,.0f} ({tokens[b]:.2g} tokens a parameter)" for b in budgets]
    lines = [
        f"Seeds {', '.join(found.config['seeds'])}; the large network has {found.config['parameters']:,} parameters, "
        f"its step {found.config['step_flops'] / 1e9:.2f} GFLOP; FLOPs are in its steps. "
        "Means, and Student's 95 % intervals over seeds.",
        "",
        f"| validation loss | grown at | {' | '.join(heads)} |",
        f"|---|---|{'---|' * len(heads)}",
    ]
    for arm in [TUNED, *found.others]:
        i = found.arms.index(arm)
        at = f"{found.arrays['grown_at'][i]:,.0f}" if found.arrays["grown_at"][i] else ""
        count = found.seeds_of(arm)
        few = "" if count == len(found.config["seeds"]) else f" ({count} seed{'' if count == 1 else 's'})"
        lines.append(f"| {words(arm)}{few} | {at} | {' | '.join(number(found.loss(arm, b)) for b in budgets)} |")
    chosen = "; ".join(f"{head}: {label(found.tuned(b))}" for b, head in zip(budgets, heads, strict=True))
    lines += ["", f"Tuned: {chosen}.", ""]
    kinds = {"paid": "sources paid", "given": "given", "side_by_side": "side by side"}
    columns = [*kinds.values(), "mean curves, paid", "given", *(f"paid, {head}" for head in heads[:-1])]
    lines += [
        f"| saved, {found.budgets[-1]:,.0f} | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for arm in found.others:
        cells = [percent(found.saving(arm, kind)) for kind in kinds]
        cells += [percent(found.saving_of_means(arm, kind)) for kind in ("paid", "given")]
        cells += [percent(found.saving(arm, "paid", b)) for b in budgets[:-1]]
        if set(cells) != {"–"}:
            lines.append(f"| {words(arm)} | {' | '.join(cells)} |")
    sweep = found.config["rates"]
    if len(sweep) > 1:
        lines += ["", f"| from scratch | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        lines += [f"| {label(arm)} | {' | '.join(number(found.loss(arm, b)) for b in budgets)} |" for arm in sweep]
    return "\n".join(lines)
