r"""How far a training step of T5 is from this machine's limit: its parts alone, in shares of the best matrix product.

``python -m benchmarks.step_limit`` measures, in turns in one run, the fastest product of two square float32 matrices (in
JAX, and in PyTorch where it is installed), a whole training step, and each part of the step alone, forward and backward,
in the shapes and layers of the step:

- the products of attention (q, k, v, o) and of the feed-forward layers;
- the pairs of attention: logits, softmax, mixing of values;
- the logits and the loss;
- the update, which has no products: it is compared with copying as many bytes as it must read and write.

"The rest" is the step less its parts: norms, residuals, embeddings, masks, and what the parts alone keep in the cache.
Every share is of the limit of the same round; the median of the rounds. Prints Markdown; ``--json FILE`` (``-`` for the
terminal) writes the numbers.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.output import hand_over
from benchmarks.train_step import FAST, SIZES, asked, our_optimizer, ours, parser_of
from fusion_core.models.t5 import T5Config, init, step_flops
from fusion_core.models.t5.attention import _mixed
from fusion_core.models.t5.layers import feed_forward
from fusion_core.models.t5.loss import token_sums
from fusion_core.provenance import provenance

SQUARES = (512, 1024, 2048)  # sizes of the products that set the limit
Run = Callable[[], float]


def timed(function: Callable[..., Any], *arguments: Any, repeats: int = 1) -> Run:
    """Return a run of the compiled function: seconds of one call."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))

    def run() -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            out = compiled(*arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / repeats

    return run


def both_ways(function: Callable[..., Any], *arguments: Any) -> Run:
    """Return a run of the function and of its gradient in all arguments, for the cotangent of ones."""

    def forward_and_backward(*values: Any) -> Any:
        out, pull = jax.vjp(function, *values)
        return out, pull(jax.tree.map(jnp.ones_like, out))

    return timed(forward_and_backward, *arguments, repeats=2)


def products(size: int) -> dict[str, Run]:
    """Return runs of a product of square matrices, by library; the FLOPs of one are 2 size³."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    runs = {"JAX": timed(jnp.matmul, jnp.asarray(a), jnp.asarray(b), repeats=max(1, 2048 // size))}
    try:
        import torch
    except ImportError:
        return runs
    left, right = torch.tensor(a), torch.tensor(b)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            left @ right
        return (time.perf_counter() - start) / times

    times = max(1, 2048 // size)
    return runs | {"PyTorch": run}


def parts(config: T5Config, batch: int, source: int, target: int) -> dict[str, tuple[Run, float]]:
    """Return a run of each part with products and its FLOPs, forward and backward."""
    params, rng = init(config, 0), np.random.default_rng(0)
    d, inner, heads = config.d_model, config.inner_dim, config.num_heads
    multiply = FAST.multiply
    lengths = {"encoder": source, "decoder": target}
    blocks = {side: list(params[side]["block"].values()) for side in lengths}

    def activations(length: int, *shape: int) -> Any:
        return jnp.asarray(rng.normal(size=(batch, length, *shape)).astype(np.float32))

    def layers(side: str, name: str) -> list[Any]:
        return [layer[name] for block in blocks[side] for layer in block["layer"].values() if name in layer]

    def attention_products(weights: Any, x: Any, memory: Any) -> Any:
        for side, name in (("encoder", "SelfAttention"), ("decoder", "SelfAttention"), ("decoder", "EncDecAttention")):
            for w in weights[side, name]:
                read = x[side] if name == "SelfAttention" else memory
                q, k, v, o = (w[n]["weight"] for n in "qkvo")
                if read is memory:
                    made = multiply(x[side], q)
                    kept = jnp.sum(multiply(read, jnp.concatenate([k, v])), axis=1, keepdims=True)
                    mixed = made + kept[..., :inner] + kept[..., inner:]
                else:
                    mixed = sum(jnp.split(multiply(read, jnp.concatenate([q, k, v])), 3, axis=-1))
                x = x | {side: multiply(mixed, o)}
        return x

    def feed_forwards(weights: Any, x: Any) -> Any:
        for side in lengths:
            for w in weights[side]:
                x = x | {side: feed_forward(w, config, x[side], None, multiply)}
        return x

    def pairs(queries: Any, keys: Any, values: Any, bias: Any) -> Any:
        for side in lengths:
            for _ in blocks[side]:
                queries = queries | {side: _mixed(queries[side], keys[side], values[side], bias[side], 0.0, None)}
        for _ in blocks["decoder"]:
            crossed = _mixed(queries["decoder"], keys["encoder"], values["encoder"], None, 0.0, None)
            queries = queries | {"decoder": crossed}
        return queries

    x = {side: activations(n, d) for side, n in lengths.items()}
    names = (("encoder", "SelfAttention"), ("decoder", "SelfAttention"), ("decoder", "EncDecAttention"))
    of_heads = [{side: activations(n, heads, config.d_kv) / 8 for side, n in lengths.items()} for _ in range(3)]
    bias = {side: jnp.zeros((batch, heads, n, n)) for side, n in lengths.items()}
    head = params["shared" if config.tie_word_embeddings else "lm_head"]["weight"]
    ids = jnp.asarray(rng.integers(2, config.vocab_size, (batch, target)))

    def loss(hidden: Any, head: Any) -> Any:
        return token_sums(hidden, head, ids, jnp.ones_like(ids), multiply=multiply)["total"]

    tokens = config.num_layers * source + config.num_decoder_layers * target
    crossing = config.num_decoder_layers * (2 * target + 2 * source) * d * inner
    seen = config.num_layers * source**2 + config.num_decoder_layers * (target**2 + source * target)
    flops = {
        "products of attention": 4 * tokens * d * inner + crossing,
        "feed-forward layers": (3 if config.gated else 2) * tokens * d * config.d_ff,
        "pairs of attention": 2 * seen * inner,
        "logits and loss": target * d * config.vocab_size,
    }
    weights = {name: layers(*name) for name in names}
    runs = {
        "products of attention": both_ways(attention_products, weights, x, x["encoder"]),
        "feed-forward layers": both_ways(feed_forwards, {s: layers(s, "DenseReluDense") for s in lengths}, x),
        "pairs of attention": both_ways(pairs, *of_heads, bias),
        "logits and loss": both_ways(loss, x["decoder"], head),
    }
    return {name: (run, 3 * 2.0 * batch * flops[name]) for name, run in runs.items()}


def update_and_copy(config: T5Config) -> tuple[Run, Run]:
    """Return a run of the optimizer's update, and one of copying the bytes that it reads and writes.

    Adafactor reads parameters and gradients and writes parameters: a copy of 3/2 of the parameters moves as many bytes.
    """
    params = init(config, 0)
    gradient = jax.tree.map(lambda p: p + 1.0, params)
    optimizer = our_optimizer("adafactor")
    state = optimizer.init(params)

    def update(params: Any, state: Any, gradient: Any) -> Any:
        change, state = optimizer.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, change), state

    flat = np.zeros(3 * sum(p.size for p in jax.tree.leaves(params)) // 2, np.float32)
    to = np.empty_like(flat)

    def copy() -> float:
        start = time.perf_counter()
        np.copyto(to, flat)
        return time.perf_counter() - start

    copy()
    return timed(update, params, state, gradient, repeats=2), copy


def compute(size: str, rounds: int, squares: tuple[int, ...] = SQUARES) -> dict[str, Any]:
    """Return every round's seconds of the limit, the step and its parts, and the shares of the limit."""
    config, batch, source, target, steps = SIZES[size]
    rng = np.random.default_rng(0)
    ids = {"encoder_ids": (batch, source), "targets": (batch, target)}
    example = {n: rng.integers(2, config.vocab_size, shape, dtype=np.int32) for n, shape in ids.items()}
    limits = {(n, library): run for n in squares for library, run in products(n).items()}
    step, found = ours(config, example, "adafactor", FAST, steps), parts(config, batch, source, target)
    update, copy = update_and_copy(config)
    seconds: dict[str, list[float]] = {name: [] for name in ("step", "update", "copy", *found)}
    rates: dict[tuple[int, str], list[float]] = {key: [] for key in limits}
    for _ in range(rounds):
        for (n, library), run in limits.items():
            rates[n, library].append(2 * n**3 / run())
        for name, run in (("step", step), ("update", update), ("copy", copy), *((n, f[0]) for n, f in found.items())):
            seconds[name].append(run())
    best = max(rates, key=lambda key: statistics.median(rates[key]))
    flops = {"step": step_flops(config, batch, source, target)} | {name: f[1] for name, f in found.items()}
    rest = [s - sum(p) for s, *p in zip(seconds["step"], seconds["update"], *(seconds[n] for n in found), strict=True)]
    shares = {
        name: statistics.median(flops[name] / t / limit for t, limit in zip(seconds[name], rates[best], strict=True))
        for name in flops
    }
    shares["update"] = statistics.median(c / u for c, u in zip(seconds["copy"], seconds["update"], strict=True))
    rows = [
        {"name": name, "gflop": flops.get(name, 0.0) / 1e9, "seconds": statistics.median(seconds[name])}
        | {"share_of_limit": shares[name]}
        for name in ("step", *found, "update")
    ]
    rows.append({"name": "the rest", "gflop": 0.0, "seconds": statistics.median(rest), "share_of_limit": None})
    limit = {"size": best[0], "library": best[1], "gflops": statistics.median(rates[best]) / 1e9}
    title = f"{size}: width {config.d_model}, batch {batch} × {source}/{target}"
    others = {f"{library}, {n}": statistics.median(r) / 1e9 for (n, library), r in rates.items()}
    return {"size": size, "title": title, "limit": limit, "products": others, "rounds": rounds, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """Return one table for each size."""
    lines = []
    for size in result["sizes"]:
        limit, whole = size["limit"], size["rows"][0]["seconds"]
        lines += [
            f"{size['title']}; the limit is {limit['gflops']:.0f} GFLOP/s, {limit['library']}'s product of {limit['size']} × "
            f"{limit['size']}; {size['rounds']} rounds",
            "",
            "| part | GFLOP | seconds alone | of the step | of the limit |",
            "|---|--:|--:|--:|--:|",
        ]
        for row in size["rows"]:
            share = "" if row["share_of_limit"] is None else f"{row['share_of_limit']:.0%}"
            share += " of a copy" if row["name"] == "update" else ""
            work = f"{row['gflop']:.2f}" if row["gflop"] else ""
            lines.append(f"| {row['name']} | {work} | {row['seconds']:.4f} | {row['seconds'] / whole:.0%} | {share} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = parser_of("step_limit", __doc__)
    arguments = parser.parse_args(argv)
    sizes, rounds = asked(parser, arguments)
    squares = (64,) if arguments.smoke else SQUARES
    result: dict[str, Any] = {"sizes": [compute(size, rounds, squares) for size in sizes], "provenance": provenance()}
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
