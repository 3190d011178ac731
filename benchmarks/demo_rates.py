"""The demo's learning rates: what the small network and the large one from scratch do best with, each at the full budget.

    python -m benchmarks.demo_rates                 about half an hour on 2 cores
    python -m benchmarks.demo_rates --random-cross-attention --rates 0.02 --out runs/demo_rates_random
    python -m benchmarks.demo_rates --preset smoke

Run on a seed of its own (1000), so on another split of the documents, other initialisations and another order than the
demo's runs: nothing is tuned on what they hold out. Writes ``OUT/rates.json`` and prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

from rich.console import Console

from deepfusion.demo import PRESETS
from deepfusion.demo.run import DemoRun
from deepfusion.progress import progress_bars
from fusion_core import atomic

SEED = 1000
RATES = (0.01, 0.02, 0.03, 0.04)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument(
        "--random-cross-attention", action="store_true", help="initialise the cross-attention as T5 does"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/demo_rates"))
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    options = parser.parse_args(arguments)
    matched = not options.random_cross_attention
    settings = dataclasses.replace(PRESETS[options.preset], seed=SEED, match_cross_attention=matched)
    losses: dict[str, dict[float, float]] = {"small": {}, "large": {}}
    with progress_bars(Console(stderr=True)) as progress:
        run = DemoRun(settings, options.out, progress)
        for rate in options.rates:
            for name, train in (("small", run.small_from_scratch), ("large", run.scratch)):
                arm = f"{name}-{rate:g}"
                train(rate, arm)
                losses[name][rate] = run.metrics.of(arm=arm)[-1]["loss"]
    result = {
        "settings": dataclasses.asdict(settings),
        "losses": losses,
        "best": {n: min(v, key=lambda r: v[r]) for n, v in losses.items()},
    }
    atomic.write_text(options.out / "rates.json", json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))
    else:
        print(f"| learning rate | {' | '.join(f'{rate:g}' for rate in options.rates)} |")
        print(f"|---|{'---|' * len(options.rates)}")
        for name, title in (("small", "one small network"), ("large", "large from scratch")):
            print(f"| {title} | {' | '.join(f'{losses[name][rate]:.3f}' for rate in options.rates)} |")
    return result


if __name__ == "__main__":
    main()
