"""What growth in the middle of a PyTorch run does to the loss in the next 100 steps: the table of docs/pytorch.md.

    python -m benchmarks.pytorch_growth --json benchmarks/pytorch_growth.json    some minutes on a quiet core
    python -m benchmarks.pytorch_growth --smoke                                  seconds
    python -m benchmarks.pytorch_growth --write                                  renews the table from that JSON

A Llama on bytes of the standard library's documentation is trained by an optimizer of ``torch.optim``, and doubled in
width in the middle. It goes on with and without the factors on the learning rates, and with the moments carried or begun
anew; beside them the small network goes on. All arms of a seed see the same batches, and are evaluated on the same held-out
windows. Needs PyTorch and transformers (``pip install 'deepfusion[parity]'``).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import statistics
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.growth_operators import END
from benchmarks.output import hand_over
from fusion_core import atomic
from fusion_core.checkpoints import fusion_recipe, growth_recipe, write_recipe
from fusion_core.provenance import provenance
from fusion_core.text import default_corpus, split_documents
from fusion_core.torch import grow_optimizer, param_groups

DOC = pathlib.Path(__file__).parent.parent / "docs" / "pytorch.md"
RECORD = pathlib.Path(__file__).with_suffix(".json")
BEGIN = "<!-- begin: python -m benchmarks.pytorch_growth --write -->"

# name -> (rate of the small network, parameters or groups -> optimizer); no weight decay
OPTIMIZERS: dict[str, tuple[float, Callable[[Any, Any, float], Any]]] = {
    "SGD, momentum 0.9": (0.1, lambda torch, p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
    "AdamW": (3e-3, lambda torch, p, lr: torch.optim.AdamW(p, lr, weight_decay=0.0)),
    "Adafactor": (2e-2, lambda torch, p, lr: torch.optim.Adafactor(p, lr)),
}
UPDATE = {"SGD, momentum 0.9": "sgd", "AdamW": "adamw", "Adafactor": "adafactor"}
GROWTHS = {
    "fused with itself, noise 0.1": lambda folder, seed: fusion_recipe([folder, folder], noise=0.1, seed=seed),
    "hypercloning": lambda folder, seed: growth_recipe(folder, "hypercloning", factor=2),
}
SHOWN = (1, 2, 5, 20, 100)  # steps that the table has
# name -> (factors, moments); None: the small network goes on
ARMS: dict[str, tuple[bool, bool] | None] = {
    "factors and moments": (True, True),
    "factors, new moments": (True, False),
    "moments, one rate": (False, True),
    "neither": (False, False),
    "the small network": None,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the benchmark.

    Attributes:
      seeds: number of seeds.
      before: steps before the growth.
      evaluated: steps after it at which the held-out loss is measured; the last one ends the run.
      width, batch, length: of the small network, and of a batch in windows and bytes.
      held_out: windows of the evaluation.
    """

    seeds: int = 4
    before: int = 400
    evaluated: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)
    width: int = 32
    batch: int = 8
    length: int = 48
    held_out: int = 64


SMOKE = Sizes(seeds=1, before=3, evaluated=(0, 1, 2), width=8, batch=2, length=8, held_out=2)


class Text:
    """Windows of bytes: of training from (seed, step), and those that are held out."""

    def __init__(self, sizes: Sizes) -> None:
        parts = split_documents(default_corpus(()), 0.05, 0)
        self.sizes = sizes
        self.train, self.held_out = (np.frombuffer("\n".join(part).encode(), np.uint8) for part in parts)

    def windows(self, text: np.ndarray, rng: np.random.Generator, number: int) -> np.ndarray:
        starts = rng.integers(0, len(text) - self.sizes.length, number)
        return text[starts[:, None] + np.arange(self.sizes.length)].astype(np.int64)

    def batch(self, seed: int, step: int) -> np.ndarray:
        return self.windows(self.train, np.random.default_rng((seed, step)), self.sizes.batch)

    def evaluation(self) -> np.ndarray:
        return self.windows(self.held_out, np.random.default_rng(0), self.sizes.held_out)


def _network(transformers: Any, sizes: Sizes) -> Any:
    shape = {"hidden_size": sizes.width, "intermediate_size": 2 * sizes.width, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **shape, **heads))


def _step(torch: Any, model: Any, optimizer: Any, ids: np.ndarray) -> None:
    optimizer.zero_grad()
    tokens = torch.from_numpy(ids)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


def _held_out(torch: Any, model: Any, ids: np.ndarray) -> float:
    with torch.no_grad():
        tokens = torch.from_numpy(ids)
        return float(model(input_ids=tokens, labels=tokens).loss)


def one_run(torch: Any, transformers: Any, sizes: Sizes, text: Text, name: str, seed: int) -> list[dict[str, Any]]:
    """Train one small network, grow it in every way, and go on with every arm; return a row for each."""
    lr, make = OPTIMIZERS[name]
    torch.manual_seed(seed)
    small = _network(transformers, sizes)
    optimizer = make(torch, small.parameters(), lr)
    for step in range(sizes.before):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50)
        _step(torch, small, optimizer, text.batch(seed, step))
    ids, rows = text.evaluation(), []

    def followed(model: Any, optimizer: Any) -> dict[str, float]:
        losses = {}
        for step in range(sizes.evaluated[-1] + 1):
            if step in sizes.evaluated:
                losses[str(step)] = _held_out(torch, model, ids)
            if step < sizes.evaluated[-1]:
                _step(torch, model, optimizer, text.batch(seed, sizes.before + step))
        return losses

    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "small"
        small.save_pretrained(source)
        for number, (growth, recipe) in enumerate(GROWTHS.items()):
            out = pathlib.Path(folder) / f"grown-{number}"
            write_recipe(recipe(source, seed), out, probe=False)
            for arm, choice in ARMS.items():
                if choice is None:
                    continue
                factors, moments = choice
                grown = transformers.LlamaForCausalLM.from_pretrained(out)
                if moments:
                    carried = grow_optimizer(optimizer, small, grown, out, factors=factors)
                else:
                    groups = param_groups(grown, out, lr, UPDATE[name]) if factors else grown.parameters()
                    carried = make(torch, groups, lr)
                row = {"optimizer": name, "growth": growth, "arm": arm, "seed": seed}
                rows.append(row | {"losses": followed(grown, carried)})
    small_arm = next(arm for arm, choice in ARMS.items() if choice is None)
    losses = followed(small, optimizer)
    rows += [
        {"optimizer": name, "growth": growth, "arm": small_arm, "seed": seed, "losses": losses} for growth in GROWTHS
    ]
    return rows


def collect(sizes: Sizes) -> dict[str, Any]:
    """Return all rows, with sizes and provenance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing other packages may warn
        import torch
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    text, rows = Text(sizes), []
    for seed in range(sizes.seeds):
        for name in OPTIMIZERS:
            rows += one_run(torch, transformers, sizes, text, name, seed)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"sizes": dataclasses.asdict(sizes), "provenance": provenance(), **versions, "rows": rows}


def markdown(found: dict[str, Any]) -> str:
    """Return the table: held-out loss minus that of the small network which goes on, mean and standard deviation over seeds.

    The small network's own rows have its loss minus that at the growth.
    """
    steps = [step for step in found["sizes"]["evaluated"] if step in SHOWN]
    lines = [
        f"| optimizer | growth | arm | {' | '.join(f'{step} steps' if step > 1 else '1 step' for step in steps)} |",
        "|---|---|---|" + "---|" * len(steps),
    ]
    keys = ("optimizer", "growth", "arm", "seed")
    losses = {tuple(row[key] for key in keys): row["losses"] for row in found["rows"]}
    (small,) = (arm for arm, choice in ARMS.items() if choice is None)
    for name, growth, arm in itertools.product(OPTIMIZERS, GROWTHS, ARMS):
        cells = []
        for step in map(str, steps):
            changes = [
                own[step] - (losses[name, growth, small, seed][step] if arm != small else own["0"])
                for seed in range(found["sizes"]["seeds"])
                if (own := losses[name, growth, arm, seed])
            ]
            spread = f" ± {statistics.stdev(changes):.3f}" if len(changes) > 1 else ""
            cells.append(f"{round(statistics.mean(changes), 3) + 0.0:+.3f}{spread}")  # + 0.0: no negative zero
        title = "the small network, since the growth" if arm == small else arm
        lines.append(f"| {name} | {growth} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(text: str, table: str) -> str:
    """Return ``text`` with the table between the markers replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help='also write the numbers as JSON; "-": print only them')
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that it runs")
    parser.add_argument("--write", action="store_true", help=f"renew the table in docs/{DOC.name} from {RECORD.name}")
    options = parser.parse_args(arguments)
    if options.write:
        found = json.loads(RECORD.read_text(encoding="utf-8"))
        atomic.write_text(DOC, with_table(DOC.read_text(encoding="utf-8"), markdown(found)))
    else:
        found = collect(SMOKE if options.smoke else Sizes())
    hand_over(found, markdown(found), options.json)
    return found


if __name__ == "__main__":
    main()
