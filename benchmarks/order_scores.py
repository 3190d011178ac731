"""Share of pairs of phases for which the pairwise score predicts the better order.

``python -m benchmarks.order_scores`` draws teacher tasks on which one tanh network can be trained, and a target task. For
each pair (i, j) it runs n steps on task i and then n on task j, and the other way round, and compares the sign of the
difference of the target's loss with that of ``bea.order_scores``, for n = 1 and n = 20. Prints Markdown; ``--json FILE``
(``-`` for the terminal) writes the numbers.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bea
from benchmarks.output import hand_over
from toy_models import mlp
from toy_models.teacher import teacher_task

SIZES = (8, 16, 16, 2)
STEP = 0.05
LENGTHS = (1, 20)


def one_problem(seed: int, tasks: int, samples: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return ``{steps each: (scores, measured gaps)}`` over the pairs i < j of tasks from one start; the last is the target."""
    sets = [
        teacher_task(SIZES, seed=1000 * seed + k, train=samples, validation=1, exponent=1.0).train
        for k in range(tasks + 1)
    ]
    inputs, targets = (jnp.stack(part) for part in zip(*sets, strict=True))
    losses = [mlp.mse_loss(x, y) for x, y in sets]
    fields, params = [bea.gradient_field(loss) for loss in losses[:-1]], mlp.init(SIZES, seed=seed + 77)
    pairs = np.asarray([(i, j) for i in range(tasks) for j in range(i + 1, tasks)])

    def descend(params: Any, task: Any, steps: int) -> Any:
        gradient = jax.grad(lambda p: mlp.mse_loss(inputs[task], targets[task])(p))
        move = lambda _, p: jax.tree.map(lambda x, g: x - STEP * g, p, gradient(p))
        return jax.lax.fori_loop(0, steps, move, params)

    @jax.jit
    def gap(pair: Any, steps: Any) -> Any:
        i, j = pair
        end = lambda a, b: losses[-1](descend(descend(params, a, steps), b, steps))
        return end(i, j) - end(j, i)

    result = {}
    for steps in LENGTHS:
        scores = jax.jit(bea.order_scores(fields, losses[-1], [STEP * steps] * tasks, gradients=True))(params)
        gaps = jax.vmap(lambda pair, steps=steps: gap(pair, steps))(jnp.asarray(pairs))
        result[steps] = (np.asarray(scores)[pairs[:, 0], pairs[:, 1]], np.asarray(gaps))
    return result


def compute(*, problems: int, tasks: int, samples: int) -> dict[str, Any]:
    """Return the shares of correctly predicted pairs, over all problems, with the standard error over problems."""
    with jax.enable_x64(True):  # the gaps of single steps are small differences of losses
        found = [one_problem(seed, tasks, samples) for seed in range(problems)]
    rows = []
    for steps in LENGTHS:
        right = np.asarray([np.mean(np.sign(scores) == np.sign(gaps)) for scores, gaps in (f[steps] for f in found)])
        scores, gaps = (np.concatenate([f[steps][k] for f in found]) for k in (0, 1))
        rows.append(
            {
                "steps": steps,
                "pairs": len(gaps),
                "right": float(right.mean()),
                "standard_error": float(right.std(ddof=1) / math.sqrt(problems)) if problems > 1 else None,
                "correlation": float(np.corrcoef(2 * scores, gaps)[0, 1]),
            }
        )
    return {"rows": rows, "problems": problems, "tasks": tasks, "sizes": SIZES, "step_size": STEP, "samples": samples}


def markdown(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = ["| steps each | pairs | predicted right | standard error | correlation |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        error = "" if row["standard_error"] is None else f"{100 * row['standard_error']:.1f} %"
        lines.append(
            f"| {row['steps']} | {row['pairs']} | {100 * row['right']:.1f} % | {error} | {row['correlation']:.3f} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order_scores", description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=20, help="starts with their tasks (default 20)")
    parser.add_argument("--tasks", type=int, default=6, help="tasks of each, without the target (default 6)")
    parser.add_argument("--samples", type=int, default=128, help="samples of a task (default 128)")
    parser.add_argument("--smoke", action="store_true", help="small enough for a test: 2 problems of 3 tasks")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON, - for the terminal")
    arguments = parser.parse_args(argv)
    problems, tasks = (2, 3) if arguments.smoke else (arguments.problems, arguments.tasks)
    result = compute(problems=problems, tasks=tasks, samples=arguments.samples)
    hand_over(result, markdown(result), arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
