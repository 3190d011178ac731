"""Cost of the theory's terms, in gradients of the same loss on the same batch.

``python -m benchmarks.bea_cost`` measures, on a network of T5-small's size and on an MLP of 10 million parameters, the
gradient of the first-order modified loss, the conflict vector of two losses (two batches), and modified fields of order
3 and 4: wall time (each run next to one gradient; the median of the ratios), the compiler's counts of operations and
memory, compile time. The T5 is measured again with its blocks rematerialised, in units of the gradient without that; on
a CPU the compiler has to be kept from merging what is computed twice (``KEEP_TWICE``). A second table shows how the cost
grows with the order, also for nested directional derivatives. Prints Markdown; ``--json FILE`` (``-`` for the terminal)
writes the numbers. The exit code is 1 if a limit is broken.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bea
from bea.pytrees import weighted_sum
from bea.taylor import bernoulli_ratios, modified_field_by_taylor
from benchmarks.output import hand_over
from fusion_core.models.t5 import Compute, T5Config, batch_loss, init
from toy_models import mlp

STEP = 0.01
# measured work -> the project's limit in gradients; None for comparison
LIMITS: dict[str, float | None] = {
    "gradient of the modified loss": 3.0,
    "conflict vector of two losses": 5.0,
    "modified field, order 3": 8.0,
    "modified field, order 4": 20.0,
    "log map, order 4": None,
}
MEMORY_LIMIT = 3.0
"""Arguments, result and temporaries together, in units of a gradient's."""
KEEP_TWICE = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options with which XLA for CPUs computes a rematerialised block again; without them it keeps the first result."""


class Problem(NamedTuple):
    """A network: its title, parameters, ``seed -> loss``; what is compiled how, and the unit's loss if it is another."""

    title: str
    params: Any
    loss_of: Callable[[int], Any]
    works: tuple[str, ...] = tuple(LIMITS)
    options: dict[str, str] | None = None
    unit: Callable[[int], Any] | None = None


def t5_problem(smoke: bool, compute: Compute = Compute()) -> Problem:
    config = T5Config.named("t5-small")
    batch, source, target = 4, 128, 32
    if smoke:
        config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
        batch, source, target = 2, 8, 4

    def loss(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        draw = lambda length: jnp.asarray(rng.integers(1, config.vocab_size, (batch, length)), jnp.int32)
        inputs, targets = draw(source), draw(target)

        def mean(params: Any) -> Any:
            total, sums = batch_loss(params, config, {"encoder_ids": inputs, "targets": targets}, compute)
            return total / sums["tokens"]

        return mean

    return Problem(f"T5, d = {config.d_model}, batch {batch} × {source}/{target}", init(config, 0), loss)


def lean_t5_problem(smoke: bool) -> Problem:
    plain, lean = t5_problem(smoke), t5_problem(smoke, Compute(remat=True))
    fields = ("modified field, order 2", "modified field, order 3", "modified field, order 4")
    return lean._replace(title=f"{lean.title}, rematerialised", works=fields, options=KEEP_TWICE, unit=plain.loss_of)


def mlp_problem(smoke: bool) -> Problem:
    sizes, batch = ((48, 32, 32, 10), 16) if smoke else ((3072, 2560, 768, 10), 256)
    return _mlp(sizes, batch)


def square_mlp_problem(smoke: bool) -> Problem:
    sizes, batch = ((32, 32, 32, 32), 16) if smoke else ((1600, 1600, 1600, 1600, 1600), 256)
    return _mlp(sizes, batch)


def _mlp(sizes: tuple[int, ...], batch: int) -> Problem:
    def loss(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        draw = lambda width: jnp.asarray(rng.standard_normal((batch, width)), jnp.float32)
        return mlp.mse_loss(draw(sizes[0]), draw(sizes[-1]), jax.nn.gelu)

    return Problem(f"MLP {'-'.join(map(str, sizes))}, batch {batch}", mlp.init(sizes, seed=0), loss)


# name -> problem; the limits are set for the first three, the fourth has no cheap first or last layer
PROBLEMS: dict[str, Callable[[bool], Problem]] = {
    "t5": t5_problem,
    "t5-remat": lean_t5_problem,
    "mlp": mlp_problem,
    "square-mlp": square_mlp_problem,
}


def works(loss_of: Callable[[int], Any]) -> dict[str, Callable[[Any], Any]]:
    """Return the functions to measure, by name."""
    loss, other = loss_of(1), loss_of(2)
    field = bea.gradient_field(loss)
    step = lambda p: weighted_sum([1.0, STEP], [p, field(p)])
    return {
        "gradient of the modified loss": jax.grad(bea.modified_loss(loss, STEP)),
        "conflict vector of two losses": bea.lie_bracket(field, bea.gradient_field(other)),
        "modified field, order 2": bea.modified_field(field, STEP, 2),
        "modified field, order 3": bea.modified_field(field, STEP, 3),
        "modified field, order 4": bea.modified_field(field, STEP, 4),
        "log map, order 4": lambda p: bea.log_map(step, p, 4),
    }


def compiled(
    work: Callable[[Any], Any], params: Any, options: dict[str, str] | None = None
) -> tuple[Any, dict[str, float]]:
    """Compile the work; return the executable, its operations and bytes, and the seconds of tracing and compiling."""
    start = time.perf_counter()
    executable = jax.jit(work, compiler_options=options).lower(params).compile()
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    whole = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    flops = executable.cost_analysis()["flops"]
    counted = {"flops": flops, "temporary": memory.temp_size_in_bytes, "memory": whole, "compile_s": seconds}
    return executable, {name: float(value) for name, value in counted.items()}


def run(executable: Any, params: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(executable(params))
    return time.perf_counter() - start


def measure(problem: Problem, repeats: int, report: Callable[[str], None]) -> list[dict]:
    """Measure every work in units of the gradient; return a row for each."""
    title, params = problem.title, problem.params
    report(f"{title}: gradient")
    gradient, unit = compiled(jax.grad((problem.unit or problem.loss_of)(1)), params)
    run(gradient, params)
    rows, known = [], works(problem.loss_of)
    for what in problem.works:
        report(f"{title}: {what}")
        executable, counted = compiled(known[what], params, problem.options)
        run(executable, params)
        pairs = [(run(gradient, params), run(executable, params)) for _ in range(repeats)]
        ratios = [b / a for a, b in pairs]
        limit = LIMITS.get(what)
        ratio, memory = statistics.median(ratios), counted["memory"] / unit["memory"]
        rows.append(
            {
                "problem": title,
                "what": what,
                "gradients": ratio,
                "lowest": min(ratios),
                "highest": max(ratios),
                "limit": limit,
                "operations": counted["flops"] / unit["flops"],
                "memory": memory,
                "temporaries": counted["temporary"] / unit["temporary"],
                "compile_s": counted["compile_s"],
                "gradient_s": statistics.median(a for a, _ in pairs),
                "gradient_compile_s": unit["compile_s"],
                "held": None if limit is None else ratio <= limit,
                "memory_held": None if limit is None else memory <= MEMORY_LIMIT,
            }
        )
    return rows


def nested_field(field: Any, order: int) -> Any:
    """Return the modified field by nested directional derivatives: the fixed point of ``bea.taylor``, as functions."""
    b, lower = bernoulli_ratios(order), [field]
    along = lambda u, g: lambda p: bea.directional_derivative(g, p, u(p))
    for q in range(1, order):
        terms, weights = [field], [1.0]
        for k in range(1, q + 1):
            derivative = field
            for _ in range(k):
                derivative = along(lower[q - k], derivative)
            if b[k]:
                terms.append(derivative)
                weights.append(float(b[k]) * STEP**k)
        lower.append(lambda p, terms=terms, weights=weights: weighted_sum(weights, [term(p) for term in terms]))
    return lower[-1]


def growth_with_order(highest: int, highest_nested: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return operations (in gradients) and compile seconds of each order on a small MLP, by three ways."""
    problem = _mlp((16, 32, 32, 8), 16)
    params, field = problem.params, bea.gradient_field(problem.loss_of(1))
    _, unit = compiled(field, params)
    rows = []
    for order in range(2, highest + 1):
        report(f"order {order}")
        ways = {"used": bea.modified_field(field, STEP, order), "taylor": modified_field_by_taylor(field, STEP, order)}
        if order <= highest_nested:
            ways["nested"] = nested_field(field, order)
        row: dict[str, Any] = {"order": order}
        for name, way in ways.items():
            _, counted = compiled(way, params)
            row[name] = {"operations": counted["flops"] / unit["flops"], "compile_s": counted["compile_s"]}
        rows.append(row)
    return rows


def compute(
    names: list[str],
    *,
    smoke: bool,
    repeats: int,
    orders: int,
    nested: int,
    report: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Return all figures as plain numbers."""
    rows = [row for name in names for row in measure(PROBLEMS[name](smoke), repeats, report)]
    return {
        "costs": rows,
        "orders": growth_with_order(orders, nested, report),
        "smoke": smoke,
        "repeats": repeats,
        "jax": jax.__version__,
        "device": str(jax.devices()[0]),
        "machine": platform.machine(),
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "| network | what | gradients (lowest to highest) | limit | held | operations | memory | temporaries | compile s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    mark = {True: "yes", False: "NO", None: ""}
    for row in result["costs"]:
        limit = "" if row["limit"] is None else f"{row['limit']:g}"
        lines.append(
            f"| {row['problem']} | {row['what']} | {row['gradients']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) "
            f"| {limit} | {mark[row['held']]} | {row['operations']:.2f} | {row['memory']:.2f} | "
            f"{row['temporaries']:.1f} | {row['compile_s']:.1f} |"
        )
    lines += [
        "",
        "| order | operations, as used | Taylor | nested | compile s, as used | Taylor | nested |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["orders"]:
        ways = [row.get(name) for name in ("used", "taylor", "nested")]
        cells = [f"{way['operations']:.1f}" if way else "" for way in ways]
        cells += [f"{way['compile_s']:.1f}" if way else "" for way in ways]
        lines.append(f"| {row['order']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON; 0 if every limit held (the smoke size has none)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bea_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), help="which networks")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each work, each with a gradient (default 7)")
    parser.add_argument("--orders", type=int, default=7, help="highest order of the second table (default 7)")
    parser.add_argument("--nested", type=int, default=5, help="highest order by nested derivatives (default 5)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test; no limits")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    repeats, orders, nested = arguments.repeats, arguments.orders, arguments.nested
    if arguments.smoke:
        repeats, orders, nested = min(repeats, 2), min(orders, 4), min(nested, 4)
    report = lambda what: print(what, file=sys.stderr, flush=True)
    result = compute(
        arguments.problems, smoke=arguments.smoke, repeats=repeats, orders=orders, nested=nested, report=report
    )
    hand_over(result, markdown(result), arguments.json)
    broken = [row for row in result["costs"] if row["held"] is False or row["memory_held"] is False]
    return 1 if broken and not arguments.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
