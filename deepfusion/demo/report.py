"""The report of a demo run: pictures, a table, and sentences written from the numbers, whatever they are."""

from __future__ import annotations

import html
import pathlib
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from deepfusion.demo.run import ARMS
from deepfusion.pages.frame import image, write_page
from paper_figures import style

Results = dict[str, Any]

COLORS = {
    "grown": "#0072B2",
    "greedy": "#56B4E9",
    "late": "#009E73",
    "scratch": "#D55E00",
    "never": "#CC79A7",
    "one_small": "#000000",
}
# A difference of final losses below this is not told from chance by one seed: it is the standard deviation over seeds
# of the difference of two arms at the default size (docs/demo.md).
NOISE = 0.08


def rows(results: Results) -> list[dict[str, Any]]:
    """The table: one row an arm, best final loss first."""
    budget = results["flops"]["budget"]
    table = []
    for arm in ARMS:
        step = results["growth_steps"].get(arm)
        rate = results["settings"]["large_rate" if arm == "scratch" else "small_rate"]
        table.append(
            {
                "arm": arm,
                "name": arm_name(results, arm),
                "loss": results["final"][arm],
                "grown_at": step,
                "share": None if step is None else step / results["source_steps"],
                "rate": rate,
                "flops": results["curves"][arm][-1][0] / budget,
            }
        )
    return sorted(table, key=lambda row: row["loss"])


def arm_name(results: Results, arm: str) -> str:
    """What the arm is called in this run: a rule may not grow."""
    if arm == "grown" and results["plan"]["step"] is None:
        return "grown for comparison"
    if arm == "greedy" and results["greedy"]["step"] is None:
        return f"{ARMS['greedy']}: never"
    return ARMS[arm]


def loss_at_event(results: Results, arm: str) -> float:
    """Validation loss of the network just after it was fused."""
    return results["curves"][arm][0][1]


def summary(results: Results) -> list[str]:
    """What happened, in sentences."""
    final, steps, plan = results["final"], results["growth_steps"], results["plan"]
    share = steps["grown"] / results["source_steps"]
    sentences = []
    if plan["step"] is None:
        sentences.append(
            f"The {plan['rule']} rule did not grow within this budget. {plan['reason']} For comparison the sources were "
            f"fused after {share:.0%} of it."
        )
    else:
        sentences.append(f"The {plan['rule']} rule grew after {share:.1%} of the budget. {plan['reason']}")
    lost = results["lost_trials"]
    if lost["curves"]:
        at = " and ".join(lost["curves"])
        charged = "" if plan["step"] is None else ", taken off the growth that came later"
        sentences.append(
            f"A trial of growing at step {at} lost; it cost {lost['flops'] / results['flops']['budget']:.1%} of the budget"
            f"{charged}."
        )
    sentences.append(greedy_sentence(results))
    sources = next(r for r in results["theory"] if r["step"] == steps["grown"])
    mean = (sources["validation_a"] + sources["validation_b"]) / 2
    jump = loss_at_event(results, "grown") - mean
    sentences.append(
        f"At the event the sources' validation losses were {sources['validation_a']:.3f} and "
        f"{sources['validation_b']:.3f}, the fused network's {loss_at_event(results, 'grown'):.3f}: "
        f"{abs(jump):.3f} {'below' if jump < 0 else 'above'} their mean."
    )
    best_growth = min(steps, key=lambda arm: final[arm])
    if best_growth == "grown":
        which = f"step {steps['grown']}" + ("" if plan["step"] is None else ", the online rule's,")
        sentences.append(f"Of the growth steps tried, {which} ended best.")
    else:
        whose = "" if plan["step"] is None else "the online rule's "
        sentences.append(
            f"Of the growth steps tried, step {steps[best_growth]} ended best ({final[best_growth]:.3f} against "
            f"{final['grown']:.3f} at {whose}step {steps['grown']})."
        )
    for other, verb in (
        ("scratch", "the large network trained from scratch"),
        ("never", "two small networks that were fused only at the end"),
        ("one_small", "one small network with the whole budget"),
    ):
        difference = final["grown"] - final[other]
        sentences.append(
            f"At equal FLOPs, the sources' included, growing at step {steps['grown']} ended {abs(difference):.3f} nats "
            f"{'below' if difference < 0 else 'above'} {verb} ({final['grown']:.3f} against {final[other]:.3f})"
            + ("." if abs(difference) >= NOISE else ", which one seed cannot tell from chance.")
        )
    if final["one_small"] < final["scratch"]:
        sentences.append(
            f"At this budget the large size is not yet worth its cost: one small network ({final['one_small']:.3f}) ended "
            f"below the large one from scratch ({final['scratch']:.3f}). Growth pays here only if the large size is wanted "
            "for its own sake, or the budget is larger."
        )
    else:
        sentences.append(
            f"At this budget the large size is worth its cost: from scratch it ended at {final['scratch']:.3f}, one small "
            f"network at {final['one_small']:.3f}."
        )
    last = results["theory"][-1]
    sentences.append(
        f"The conflict term of a small and a grown step was {sources['conflict']:+.2g} ± {sources['conflict_se']:.1g} nats "
        f"at the event and {last['conflict']:+.2g} ± {last['conflict_se']:.1g} at the end of the sources' run."
    )
    sentences.append("This is one run: seeds differ, and the table of several seeds in docs/demo.md says by how much.")
    return sentences


def greedy_sentence(results: Results) -> str:
    """Where the greedy rule would have grown, and what that ended with."""
    greedy, final = results["greedy"], results["final"]
    if greedy["step"] is None:
        return f"The greedy rule would never have grown, which ended at {final['never']:.3f}. {greedy['reason']}"
    share = greedy["step"] / results["source_steps"]
    return (
        f"The greedy rule would have grown at step {greedy['step']}, after {share:.1%} of the budget, which ended at "
        f"{final['greedy']:.3f}. {greedy['reason']}"
    )


def draw_losses(results: Results) -> Figure:
    """Validation loss against FLOPs for all arms; the left part of the growth arms is the sources' own."""
    figure, (whole, end) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(3, 2))
    for axes in (whole, end):
        for number, lost in enumerate(results["lost_trials"]["curves"].values()):
            label = None if number else "a trial that lost"
            axes.plot(*zip(*lost, strict=True), color="#999999", label=label, linewidth=1)
        for arm in ARMS:
            # an untrained network has cost nothing, and a logarithmic axis has no place for it
            flops, losses = zip(*(point for point in results["curves"][arm] if point[0] > 0), strict=True)
            axes.plot(
                flops,
                losses,
                color=COLORS[arm],
                label=arm_name(results, arm),
                marker=".",
                zorder=3 if arm == "grown" else 2,
            )
            if arm in results["growth_steps"]:
                axes.plot(flops[0], losses[0], "v", color=COLORS[arm], markersize=7, zorder=4)
        axes.set_xlabel("training FLOPs, the sources' included")
    online = "for comparison" if results["plan"]["step"] is None else "online rule"
    for arm, label, height in (("grown", online, 0.1), ("greedy", "greedy rule", 0.04)):
        if arm not in results["growth_steps"]:
            continue
        at = results["curves"][arm][0][0]
        whole.axvline(at, color=COLORS[arm], linestyle=":", linewidth=1)
        whole.annotate(
            f"{label}: step {results['growth_steps'][arm]} ", (at, height), xycoords=("data", "axes fraction"),
            fontsize=8, color=COLORS[arm], ha="right",
        )  # fmt: skip
    whole.set_xscale("log")
    whole.set_ylabel("validation loss (nats per target token)")
    whole.set_title("The whole run (▼: fused here)")
    whole.legend(loc="upper right")
    budget = results["flops"]["budget"]
    inside = [loss for curve in results["curves"].values() for flops, loss in curve if flops > budget / 3]
    low, high = min(inside), max(inside)
    margin = 0.05 * (high - low) + 1e-3
    end.set(xlim=(budget / 3, 1.03 * budget), ylim=(low - margin, high + margin), title="Its last two thirds")
    return figure


def draw_theory(results: Results) -> Figure:
    """Theory's terms along the sources' run, with standard errors over pairs of batches."""
    records = results["theory"]
    steps = [r["step"] for r in records]
    figure, grid = plt.subplots(2, 3, figsize=(9.6, 5.6), sharex=True)

    def series(axes: Any, name: str, label: str, color: str, scale: float = 1.0) -> None:
        values = [scale * r[name] for r in records]
        errors = [scale * r.get(f"{name}_se", 0.0) for r in records]
        axes.errorbar(steps, values, errors, label=label, color=color, marker=".", capsize=2, elinewidth=0.8)

    networks = (
        ("source_0", "source A", "#E69F00"),
        ("source_1", "source B", "#CC79A7"),
        ("fused", "their fusion", "#0072B2"),
    )
    for name, label, color in networks:
        series(grid[0, 0], f"loss_{name}", label, color)
        series(grid[0, 1], f"gradient_norm_{name}", label, color)
        gap = [r[f"modified_loss_{name}"] - r[f"loss_{name}"] for r in records]
        grid[0, 2].plot(steps, gap, label=label, color=color, marker=".")
        series(grid[1, 0], f"decrease_per_flop_{name}", label, color, 1e12)
    series(grid[1, 1], "small_rate", "small phase", "#E69F00", 1e12)
    series(grid[1, 1], "grown_rate", "grown network", "#0072B2", 1e12)
    series(grid[1, 2], "conflict", "½⟨∇L, [f₁, f₂]⟩", "#0072B2")
    titles = (
        "loss", "gradient norm", "modified loss − loss = ¼⟨∇L, M∇L⟩",
        "decrease per TFLOP, own step", "the greedy rule: the same at the best step", "conflict term",
    )  # fmt: skip
    for axes, title in zip(grid.flat, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log")
        for arm in ("grown", "greedy"):
            if arm in results["growth_steps"]:
                axes.axvline(results["growth_steps"][arm], color=COLORS[arm], linestyle=":", linewidth=1)
    for axes in grid[1]:
        axes.axhline(0, color="#777777", linewidth=0.8)
        axes.set_xlabel("small steps of each source")
    grid[0, 0].legend()
    grid[1, 1].legend()
    return figure


def _table(results: Results) -> str:
    lines = []
    for row in rows(results):
        grown = "" if row["grown_at"] is None else f"{row['grown_at']} ({row['share']:.1%} of the budget)"
        mark = ' class="ours"' if row["arm"] == "grown" else ""
        lines.append(
            f"<tr{mark}><td>{html.escape(row['name'])}</td><td>{row['loss']:.4f}</td><td>{grown}</td>"
            f"<td>{row['rate']:.3g}</td><td>{row['flops']:.1%}</td></tr>"
        )
    head = "<tr><th>arm</th><th>final validation loss</th><th>grown at step</th><th>learning rate</th><th>FLOPs used</th></tr>"
    return f"<table>{head}{''.join(lines)}</table>"


def write_report(results: Results, folder: pathlib.Path) -> pathlib.Path:
    """Writes ``report.html``, with everything inside, and returns its path."""
    with style():
        losses = image(draw_losses(results), "validation loss against FLOPs for all arms")
        theory = image(draw_theory(results), "theory's terms along the sources' run")
    settings, facts = results["settings"], results["text"]
    text = ", ".join(settings["text"]) or "documentation of " + ", ".join(
        ["the standard library", *settings["packages"]]
    )
    details = {
        "text": f"{text}: {facts['characters'] / 1e6:.1f} million characters, {facts['train_tokens']:,} training and "
        f"{facts['validation_tokens']:,} validation tokens, {facts['train_documents']:,} and "
        f"{facts['validation_documents']:,} documents",
        "networks": f"T5, two sources of width {settings['d_model']} ({results['parameters']['small']:,} parameters each) "
        f"and the large one of width {2 * settings['d_model']} ({results['parameters']['large']:,}), "
        f"{settings['layers']} + {settings['layers']} layers",
        "budget": f"{results['flops']['budget']:.3g} FLOPs an arm: {settings['budget']:,} steps of the large network, or "
        f"{results['source_steps']:,} of both small ones; evaluations and theory's terms are not counted",
        "validation": f"{results['validation_batches']} batches of {settings['batch']} sequences, the same for all arms",
        "seed": str(settings["seed"]),
        "wall time": f"{results['seconds']:.0f} s",
    }
    fields = {
        "SUMMARY": "".join(f"<li>{html.escape(sentence)}</li>" for sentence in summary(results)),
        "TABLE": _table(results),
        "LOSSES": losses,
        "THEORY": theory,
    }
    body = pathlib.Path(__file__).parent / "report.html"
    title = "Deep Fusion: growing a T5 on real text"
    return write_page(folder / "report.html", title, body, fields, details, results["provenance"])
