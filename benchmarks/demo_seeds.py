"""What the demo shows over several seeds: final validation loss of every arm at equal FLOPs.

    python -m benchmarks.demo_seeds                     seeds 0, 1, 2; about half an hour on 2 cores
    python -m benchmarks.demo_seeds --seeds 5 --preset smoke

Each seed is one whole demo run, with its own split, tokenizer, initialisations and data order, in ``OUT/seed-N``; a run
that is there already is not repeated, an interrupted one is resumed. Writes ``OUT/table.json``, ``OUT/table.md`` and
``OUT/losses.png``, the first seed's loss against FLOPs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
from typing import Any

from rich.console import Console

from deepfusion.demo import PRESETS, run_demo
from deepfusion.demo.report import draw_losses, write_report
from deepfusion.demo.run import ARMS, GROWN, RESULTS
from fusion_core import atomic
from paper_figures import style


def table(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per arm: losses, their mean, and the mean difference from the online rule's growth with its standard error."""
    rows = []
    for arm, name in ARMS.items():
        losses = [run["final"][arm] for run in runs]
        differences = [loss - run["final"]["grown"] for loss, run in zip(losses, runs, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(runs)) if len(runs) > 1 else math.nan
        rows.append(
            {
                "arm": arm,
                "name": name,
                "losses": losses,
                "mean": statistics.fmean(losses),
                "above_grown": statistics.fmean(differences),
                "above_grown_se": error,
                "grown_at": [run["growth_steps"].get(arm) for run in runs],
                "flops": [run["curves"][arm][-1][0] / run["flops"]["budget"] for run in runs],
            }
        )
    return {
        "seeds": [run["settings"]["seed"] for run in runs],
        "rows": sorted(rows, key=lambda row: row["mean"]),
        "source_steps": runs[0]["source_steps"],
        "seconds": [run["seconds"] for run in runs],
        "settings": runs[0]["settings"],
        "provenance": runs[0]["provenance"],
    }


def markdown(result: dict[str, Any]) -> str:
    """The table as Markdown."""
    seeds = result["seeds"]
    lines = [
        f"| arm | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | above the online rule's growth | grown at step |",
        f"|---|{'---|' * len(seeds)}---|---|---|",
    ]
    for row in result["rows"]:
        losses = " | ".join(f"{loss:.3f}" for loss in row["losses"])
        difference = "" if row["arm"] == "grown" else f"{row['above_grown']:+.3f} ± {row['above_grown_se']:.3f}"
        # the greedy rule may never grow
        steps = ", ".join("never" if at is None else str(at) for at in row["grown_at"])
        if row["arm"] not in GROWN:
            steps = ""
        lines.append(f"| {row['name']} | {losses} | {row['mean']:.3f} | {difference} | {steps} |")
    minutes = ", ".join(f"{seconds / 60:.1f}" for seconds in result["seconds"])
    lines.append("")
    lines.append(
        f"Final validation loss, nats per target token, at equal FLOPs (sources included; ± is the standard error over "
        f"{len(seeds)} seeds). Growth steps are of {result['source_steps']:,}. Wall time a run: {minutes} minutes."
    )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/demo_seeds"))
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(arguments)
    runs = []
    for seed in range(options.seeds):
        folder = options.out / f"seed-{seed}"
        if not (folder / RESULTS).exists():
            settings = dataclasses.replace(PRESETS[options.preset], seed=seed)
            write_report(run_demo(settings, folder, Console(stderr=True)), folder)
        runs.append(json.loads((folder / RESULTS).read_text(encoding="utf-8")))
    result = table(runs)
    atomic.write_text(options.out / "table.json", json.dumps(result, indent=2) + "\n")
    atomic.write_text(options.out / "table.md", markdown(result))
    with style(), atomic.new_file(options.out / "losses.png") as temporary:
        draw_losses(runs[0]).savefig(temporary, format="png", dpi=120)
    print(json.dumps(result) if options.json else markdown(result))
    return result


if __name__ == "__main__":
    main()
