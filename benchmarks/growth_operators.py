"""Measured properties of each growth operator on small random networks: the table of docs/growth_operators.md.

    python -m benchmarks.growth_operators                  some minutes on 2 cores; prints Markdown
    python -m benchmarks.growth_operators --write          renews the table in docs/growth_operators.md
    python -m benchmarks.growth_operators --json FILE      the numbers too ("-": only them, to standard output)

In float64: T5 v1.0 and v1.1, a Llama with grouped queries, a GPT-2, and networks of ReLU layers and convolutions; every
operator grows them twofold. Exports need PyTorch and transformers (``pip install 'deepfusion[parity]'``); without them
they are not measured.
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
from fusion_core.models.decoder import model as decoder
from fusion_core.models.registry import architecture, init
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
DECODER = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
CONFIGS: dict[str, Any] = {
    "T5 v1.0": fc.T5Config(**SHAPE, **BUCKETS),
    "T5 v1.1": fc.T5Config(**SHAPE, **BUCKETS, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "Llama": fc.LlamaConfig(**DECODER, num_attention_heads=2, num_key_value_heads=1, head_dim=4, attention_bias=True),
    "GPT-2": fc.GPT2Config(vocab_size=20, n_positions=6, n_embd=8, n_layer=2, n_head=2, n_inner=12),
    "MLP": fc.MLPConfig((3, 6, 6, 6, 2)),
    "convolutions": fc.ConvConfig((2, 5, 5, 5), 3, 3),
}
NOISE = 0.2
SEED = 0
SOURCE_SEED = 100
TOLERANCE = 1e-12  # share of the outputs' scale in float64: sums of some hundred products, each exact to 1e-16
EXPORT_TOLERANCE = 2e-5  # share of the outputs' scale in float32

_RNG = np.random.default_rng(SEED)
SOURCE, TARGET = (_RNG.integers(1, SHAPE["vocab_size"], (2, n)).astype(np.int32) for n in (6, 5))
INPUTS, GOALS = _RNG.standard_normal((7, 3)), _RNG.standard_normal((7, 2))
IMAGES = _RNG.standard_normal((3, 2, 4, 4))


def outputs(params: Any, config: Any) -> Any:
    """Return the outputs that growth must keep: logits on a batch of tokens, or outputs of a network of ReLU layers."""
    if isinstance(config, fc.MLPConfig):
        return mlp.forward(params, jnp.asarray(INPUTS, params["layers"][0]["weight"].dtype), jax.nn.relu)
    if isinstance(config, fc.ConvConfig):
        x = jnp.asarray(IMAGES, params["head"]["weight"].dtype)
        for layer in params["convolutions"]:
            x = jax.lax.conv_general_dilated(x, layer["weight"], (1, 1), "SAME")
            x = jax.nn.relu(x + layer["bias"][:, None, None])
        return x.mean(axis=(2, 3)) @ params["head"]["weight"].T + params["head"]["bias"]
    if isinstance(config, fc.T5Config):
        return fc.forward(params, config, jnp.asarray(SOURCE), jnp.asarray(TARGET))
    return decoder.forward(params, config, jnp.asarray(TARGET))


def loss(out: Any) -> Any:
    """Return the mean square error, or a language model's mean cross-entropy of its own input tokens."""
    if out.ndim == 2:
        goals = jnp.resize(jnp.asarray(GOALS, out.dtype), out.shape)
        return jnp.mean((out - goals) ** 2)
    picked = jnp.take_along_axis(out, jnp.asarray(TARGET)[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(out, axis=-1) - picked)


def network(config: Any, dtype: Any = jnp.float64) -> Any:
    """Return random parameters of a size at which every array matters: norm scales and biases away from one and zero."""
    rng = np.random.default_rng(SOURCE_SEED)
    params: Any = (
        mlp.init(config.sizes, seed=SOURCE_SEED, dtype=dtype)
        if isinstance(config, fc.MLPConfig)
        else init(config, SOURCE_SEED, dtype=dtype)
    )
    larger = 10.0 if isinstance(config, fc.LlamaConfig | fc.GPT2Config) else 1.0

    def perturb(path: Any, leaf: Any) -> Any:
        if leaf.ndim == 1:
            return leaf + jnp.asarray(0.3 * rng.standard_normal(leaf.shape), dtype)
        return (0.3 if getattr(path[-2], "key", "") == "lm_head" else larger) * leaf

    return jax.tree_util.tree_map_with_path(perturb, params)


def cases() -> list[tuple[str, float, str]]:
    """Return (operator, noise, network) of every measurement."""
    found = []
    for operator in GROWTH_OPERATORS.values():
        for noise in (0.0, NOISE) if operator.noisy else (0.0,):
            found += [
                (operator.name, noise, name) for name, config in CONFIGS.items() if operator.takes_network(config)
            ]
    return found


def measured(operator: str, noise: float, name: str) -> Measured:
    """Return one measurement, in float64."""
    with jax.enable_x64(True):
        params = network(CONFIGS[name])
        return measure(params, CONFIGS[name], operator, outputs, loss, factor=2, seed=SEED, noise=noise)


def exported(name: str) -> bool:
    """Return whether files hold networks of this kind."""
    return architecture(CONFIGS[name]).files is not None


def export_error(operator: str, noise: float, name: str) -> float:
    """Return the largest |difference| of a logit between transformers and us, over the largest logit, in float32.

    Raises:
      ImportError: PyTorch or transformers is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing other packages may warn
        import torch
        from transformers import AutoModelForCausalLM, T5ForConditionalGeneration
        from transformers.utils import logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    params, config = fc.grow(
        network(CONFIGS[name], jnp.float32), CONFIGS[name], operator, factor=2, seed=SEED, noise=noise
    )
    with tempfile.TemporaryDirectory() as folder:
        fc.save_pretrained(pathlib.Path(folder) / "grown", params, config)
        t5 = isinstance(config, fc.T5Config)
        kind = T5ForConditionalGeneration if t5 else AutoModelForCausalLM
        model = kind.from_pretrained(f"{folder}/grown", attn_implementation="eager").eval()
        with torch.no_grad():
            ids, decoder_ids = (torch.tensor(x).long() for x in (SOURCE, TARGET))
            given = {"input_ids": decoder_ids}
            if t5:
                given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": decoder_ids}
            theirs = model(**given).logits.numpy()
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
    """Return a row for each case: the measurement, the properties that follow from it, and the export's error."""
    rows = []
    for operator, noise, name in cases():
        found = measured(operator, noise, name)
        error = export_error(operator, noise, name) if exports and exported(name) else None
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
    """Return two digits of a value, or the word for rounding, which differs between machines."""
    return "rounding" if value <= TOLERANCE else f"{value:.2g}"


def _velocity(found: Any) -> str:
    return "–" if found is None else f"{found.ratio:.3f} ({found.cosine:.3f})"


def _title(row: dict[str, Any]) -> str:
    return row["operator"] + (f", noise {row['noise']:g}" if row["noise"] else "")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the table with a row for each operator; if networks differ, the answer of each is in the cell."""
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

        right = [row["export"] <= EXPORT_TOLERANCE for row in own if row["export"] is not None]
        files = any(exported(row["network"]) for row in own)
        chains = [not exported(row["network"]) for row in own]
        networks = "all" if len(own) == len(CONFIGS) else "MLP, convolutions" if all(chains) else "transformers"
        lines.append(
            "| "
            + " | ".join(
                [
                    title,
                    GROWTH_OPERATORS[own[0]["operator"]].grows,
                    networks,
                    cell(lambda row: _yes(row["properties"].function_preserving)),
                    cell(lambda row: row["properties"].breaks_symmetry),
                    cell(lambda row: row["properties"].keeps_dynamics),
                    (_yes(all(right)) if right else "not measured") if files else "– (no files)",
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def details(rows: list[dict[str, Any]]) -> str:
    """Return the table of the numbers, with a row for each operator and network."""
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
    """Return ``text`` with the table between the markers replaced."""
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
