"""What each growth operator does, measured on small random networks: the table of docs/growth_operators.md.

    python -m benchmarks.growth_operators                  about a minute on 2 cores; prints Markdown
    python -m benchmarks.growth_operators --write          renews the table in docs/growth_operators.md
    python -m benchmarks.growth_operators --json FILE      the numbers too ("-": only them, to standard output)

In float64: T5 v1.0 and v1.1 with random norm scales, and an MLP of ReLU layers, which every operator is asked to grow
twofold. Exports need PyTorch and transformers (``pip install 'deepfusion[parity]'``); without them they are not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fusion_core as fc
from benchmarks.output import hand_over
from fusion_core import atomic
from fusion_core.growth import GROWTH_OPERATORS, Measured, Properties, measure
from fusion_core.models.t5 import init
from toy_models import mlp

DOC = pathlib.Path(__file__).parent.parent / "docs" / "growth_operators.md"
BEGIN, END = "<!-- begin: python -m benchmarks.growth_operators --write -->", "<!-- end -->"

SHAPE = {
    "vocab_size": 20,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
BUCKETS = {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 6}
CONFIGS: dict[str, Any] = {
    "T5 v1.0": fc.T5Config(**SHAPE, **BUCKETS),
    "T5 v1.1": fc.T5Config(**SHAPE, **BUCKETS, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "MLP": fc.MLPConfig((3, 6, 6, 6, 2)),
}
NOISE = 0.2
SEED = 0
SOURCE_SEED = 100
TOLERANCE = 1e-12  # of the outputs' scale, float64: sums of some hundred products, each right to 1e-16
EXPORT_TOLERANCE = 2e-5  # of the outputs' scale, float32

_RNG = np.random.default_rng(SEED)
SOURCE, TARGET = (_RNG.integers(1, SHAPE["vocab_size"], (2, n)).astype(np.int32) for n in (6, 5))
INPUTS, GOALS = _RNG.standard_normal((7, 3)), _RNG.standard_normal((7, 2))


def outputs(params: Any, config: Any) -> Any:
    """The function that must be kept: logits of a T5 on a batch, outputs of a ReLU MLP."""
    if isinstance(config, fc.MLPConfig):
        return mlp.forward(params, jnp.asarray(INPUTS, params["layers"][0]["weight"].dtype), jax.nn.relu)
    return fc.forward(params, config, jnp.asarray(SOURCE), jnp.asarray(TARGET))


def loss(out: Any) -> Any:
    """Mean square error of an MLP, mean cross-entropy of a T5's own input tokens."""
    if out.ndim == 2:
        return jnp.mean((out - jnp.asarray(GOALS, out.dtype)) ** 2)
    picked = jnp.take_along_axis(out, jnp.asarray(TARGET)[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(out, axis=-1) - picked)


def network(config: Any, dtype: Any = jnp.float64) -> Any:
    """Random parameters of a size at which every array matters: norm scales and biases away from one and zero."""
    rng = np.random.default_rng(SOURCE_SEED)
    if isinstance(config, fc.MLPConfig):
        params: Any = mlp.init(config.sizes, seed=SOURCE_SEED, dtype=dtype)
    else:
        params = init(config, SOURCE_SEED, dtype=dtype)

    def perturb(path: Any, leaf: Any) -> Any:
        if leaf.ndim == 1:
            return leaf + jnp.asarray(0.3 * rng.standard_normal(leaf.shape), dtype)
        return 0.3 * leaf if getattr(path[-2], "key", "") == "lm_head" else leaf

    return jax.tree_util.tree_map_with_path(perturb, params)


def cases() -> list[tuple[str, float, str]]:
    """(operator, noise, network) of every measurement."""
    found = []
    for operator in GROWTH_OPERATORS.values():
        for noise in (0.0, NOISE) if operator.noisy else (0.0,):
            found += [
                (operator.name, noise, name)
                for name, config in CONFIGS.items()
                if isinstance(config, operator.architectures)
            ]
    return found


def measured(operator: str, noise: float, name: str) -> Measured:
    """One measurement, in float64."""
    with jax.enable_x64(True):
        params = network(CONFIGS[name])
        return measure(params, CONFIGS[name], operator, outputs, loss, factor=2, seed=SEED, noise=noise)


def export_error(operator: str, noise: float, name: str) -> float:
    """The largest |difference| of a logit between transformers' T5 and ours, over the largest logit, in float32.

    Raises:
      ImportError: PyTorch or transformers is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages do while they are imported is not ours
        import torch
        from transformers import T5ForConditionalGeneration
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    params, config = fc.grow(
        network(CONFIGS[name], jnp.float32), CONFIGS[name], operator, factor=2, seed=SEED, noise=noise
    )
    with tempfile.TemporaryDirectory() as folder:
        fc.save_pretrained(pathlib.Path(folder) / "grown", params, config)
        model = T5ForConditionalGeneration.from_pretrained(f"{folder}/grown", attn_implementation="eager").eval()
        with torch.no_grad():
            ids, decoder_ids = (torch.tensor(x).long() for x in (SOURCE, TARGET))
            theirs = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=decoder_ids
            ).logits.numpy()
    ours = np.asarray(_outputs(params, config))
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


_outputs = jax.jit(outputs, static_argnums=1)


def can_export() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch  # noqa: F401
            import transformers  # noqa: F401
    except ImportError:
        return False
    return True


def collect(*, exports: bool) -> list[dict[str, Any]]:
    """A row for each case: the measurement, the properties that it means, and the export's error."""
    rows = []
    for operator, noise, name in cases():
        found = measured(operator, noise, name)
        error = export_error(operator, noise, name) if exports and isinstance(CONFIGS[name], fc.T5Config) else None
        rows.append(
            {
                "operator": operator,
                "noise": noise,
                "network": name,
                "properties": found.properties(TOLERANCE),
                "measured": found,
                "export": error,
            }
        )
    return rows


def _size(value: float) -> str:
    """Two digits; what is rounding is said to be so, since it differs between machines."""
    return "rounding" if value <= TOLERANCE else f"{value:.2g}"


def _velocity(found: Any) -> str:
    return "–" if found is None else f"{found.ratio:.3f} ({found.cosine:.3f})"


def _title(row: dict[str, Any]) -> str:
    return row["operator"] + (f", noise {row['noise']:g}" if row["noise"] else "")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def summary(rows: list[dict[str, Any]]) -> str:
    """A row for each operator; where networks differ, each with its own answer."""
    lines = [
        "| operator | grows | networks | function-preserving | breaks symmetry | keeps dynamics | exports to Hugging Face |",
        "|---|---|---|---|---|---|---|",
    ]
    for title in dict.fromkeys(_title(row) for row in rows):
        own = [row for row in rows if _title(row) == title]

        def cell(answer: Any, own: list[dict[str, Any]] = own) -> str:
            answers = {row["network"]: answer(row) for row in own}
            if len(set(answers.values())) == 1:
                return next(iter(answers.values()))
            return ", ".join(f"{name}: {value}" for name, value in answers.items())

        exported = [row["export"] <= EXPORT_TOLERANCE for row in own if row["export"] is not None]
        has_t5 = any(isinstance(CONFIGS[row["network"]], fc.T5Config) for row in own)
        lines.append(
            "| "
            + " | ".join(
                [
                    title,
                    GROWTH_OPERATORS[own[0]["operator"]].grows,
                    "T5, MLP" if len(own) == len(CONFIGS) else ("T5" if has_t5 else "MLP"),
                    cell(lambda row: _yes(row["properties"].function_preserving)),
                    cell(lambda row: row["properties"].breaks_symmetry),
                    cell(lambda row: row["properties"].keeps_dynamics),
                    (_yes(all(exported)) if exported else "not measured") if has_t5 else "– (no T5)",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def details(rows: list[dict[str, Any]]) -> str:
    """The numbers: a row for each operator and network."""
    lines = [
        "| operator | network | largest difference of an output / largest output | gradients of copies differ by, least to "
        "most over the spaces | velocity, one rate: SGD | with factors: SGD | with factors: Adam |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found: Measured = row["measured"]
        apart = [_size(value) for value in sorted(found.separation.values())]
        lines.append(
            f"| {_title(row)} | {row['network']} | {_size(found.difference / found.scale)} | "
            f"{' to '.join(dict.fromkeys([apart[0], apart[-1]])) if apart else '–'} | {_velocity(found.velocities['sgd'])} | "
            f"{_velocity(found.with_factors.get('sgd'))} | {_velocity(found.with_factors.get('adam'))} |"
        )
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    return (
        summary(rows) + "\n\nThe numbers; velocities as grown over small, their cosine in brackets:\n\n" + details(rows)
    )


def with_table(text: str, table: str) -> str:
    """``text`` with what stands between the markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def as_json(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "seed": SEED,
        "rows": [
            {k: dataclasses.asdict(v) if isinstance(v, Measured | Properties) else v for k, v in row.items()}
            for row in rows
        ],
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help='also write the numbers as JSON; "-": print only them')
    parser.add_argument("--write", action="store_true", help=f"renew the table in docs/{DOC.name}")
    options = parser.parse_args(arguments)
    exports = can_export()
    if options.write and not exports:
        parser.error(
            "--write needs PyTorch and transformers for the column of exports: pip install 'deepfusion[parity]'"
        )
    rows = collect(exports=exports)
    if options.write:
        atomic.write_text(DOC, with_table(DOC.read_text(encoding="utf-8"), markdown(rows)))
    result = as_json(rows)
    hand_over(result, markdown(rows), options.json)
    return result


if __name__ == "__main__":
    main()
