"""Runs of 20,000 steps on minibatches, whole curves of them: small networks, grown ones, and large ones from scratch.

All runs of a problem, one for each initialisation, are trained at once, and all growth steps start from one run of the small
networks. Lengths are steps of the large network; a growth step n₁ was paid by as many large steps' FLOPs.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from toy_models import mlp
from toy_models.when_to_grow.problems import STANDARD, TUNED, Family, Params, PreparedProblem, random_problem

BATCH = 16
TEST = 1024  # samples on which losses are measured, which no run is trained on
# Written down before any problem was run: rules were tuned on the first family's problems alone, whose seeds begin at the first
# number. The held-out ones have other seeds, and teachers, inputs, exponents and widths that the first family has not.
TUNING_SEED, HELD_OUT_SEED = 50_000, 60_000
STEPS = 20_000
FAMILY = dataclasses.replace(
    STANDARD, inputs=(6, 8, 10), widths=(5, 10), depths=(2,), steps=(STEPS, STEPS), samples=2**15
)
HELD_OUT_FAMILY = dataclasses.replace(FAMILY, inputs=(5, 7, 9), widths=(4, 12), exponents=(0.75,), features=48)
SMOKE_FAMILY = dataclasses.replace(
    FAMILY, inputs=(3,), widths=(3, 4), depths=(2,), steps=(400, 400), samples=2**11, features=8
)

# Growth steps in percent of the budget; 100 is never. Laws are fitted to runs grown at some of them.
GROWTHS = (0, 1, 2, 5, 10, 15, 25, 35, 50, 65, 100)


@dataclasses.dataclass(frozen=True)
class LongCurves:
    """Test losses along the runs of a problem.

    Attributes:
      times: lengths at which losses are measured, [points], 0 first and the budget last.
      small: of the small networks, fused: what growth starts from, [runs, points].
      scratch: of the large network from scratch, [runs, points].
      grown: growth step → losses since the growth, [runs, points]; NaN beyond the budget.
      states: growth step → the small networks there, flat, [runs, params].
    """

    times: np.ndarray
    small: np.ndarray
    scratch: np.ndarray
    grown: dict[float, np.ndarray]
    states: dict[float, np.ndarray]

    @property
    def budget(self) -> float:
        """The whole budget in large steps."""
        return float(self.times[-1])

    def save(self, path: pathlib.Path) -> None:
        """Write everything to a file of NumPy's."""
        steps = np.array(sorted(self.grown))
        arrays: dict[str, Any] = {"times": self.times, "small": self.small, "scratch": self.scratch, "steps": steps}
        arrays |= {
            name: np.stack([of[n1] for n1 in steps]) for name, of in (("grown", self.grown), ("states", self.states))
        }
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.savez_compressed(pathlib.Path(folder) / "curves.npz", **arrays)  # whole or not at all
            (pathlib.Path(folder) / "curves.npz").replace(path)

    @classmethod
    def load(cls, path: pathlib.Path) -> LongCurves:
        """Read what ``save`` wrote."""
        with np.load(path) as file:
            of = lambda name: dict(zip(file["steps"].tolist(), file[name], strict=True))
            return cls(file["times"], file["small"], file["scratch"], of("grown"), of("states"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a small network is grown, if not as the problem says.

    Attributes:
      noise: size of self-fusion's noise; if None, the problem's.
      keep_rates: whether the grown network keeps the small one's rates, or else has them times the velocity factors.
    """

    noise: float | None = None
    keep_rates: bool = False


class LongRuns:
    """The compiled runs of a problem: ``PreparedProblem`` with minibatches, all initialisations at once.

    Args:
      family: of problems; its ``samples`` are passed through again and again.
      seed: of the problem.
      points: number of evaluations along a budget.
      batch: samples of a step.
      recipe: of growth.
    """

    def __init__(
        self,
        family: Family,
        seed: int,
        *,
        points: int = 200,
        batch: int = BATCH,
        recipe: Recipe = Recipe(),
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        problem = random_problem(dataclasses.replace(family, samples=family.samples + TEST), seed)
        if recipe.noise is not None:
            problem = dataclasses.replace(problem, noise=recipe.noise)
        self.prepared = PreparedProblem(problem, dtype)
        self.problem, self.points, self.batch = problem, points, batch
        self.every = problem.steps // points
        inputs, targets = self.prepared.samples
        self.train, self.test = (inputs[:-TEST], targets[:-TEST]), (inputs[-TEST:], targets[-TEST:])
        self.activation = mlp.ACTIVATIONS[problem.activation]
        self.ratio = (
            self.prepared.costs[1] / self.prepared.costs[0]
        )  # small steps (of all sources) that a large one costs
        self.factors = self.prepared.ones if recipe.keep_rates else self.prepared.factors
        self.grow = jax.jit(jax.vmap(self.prepared.grow))
        self._small = jax.jit(functools.partial(self._follow, self._of_sources, self.prepared.embed))
        self._large = jax.jit(functools.partial(self._follow, self._of_one, lambda params: params))

    def loss(self, params: Params, samples: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Return the mean squared error of a network."""
        return jnp.mean((mlp.forward(params, samples[0], self.activation) - samples[1]) ** 2)

    def _of_one(self, params: Params, samples: Any) -> jax.Array:
        return self.loss(params, samples)

    def _of_sources(self, sources: tuple[Params, ...], samples: Any) -> jax.Array:
        return sum((self.loss(p, samples) for p in sources), start=jnp.zeros((), samples[0].dtype))

    def _follow(
        self,
        loss: Any,
        view: Any,
        params: Params,
        runs: Any,
        first: Any,
        counts: Any,
        stretches: Any,
        rate: Any,
        factors: Any,
    ) -> tuple[Params, jax.Array]:
        """Train so many stretches of ``counts`` steps; return the params and the losses after each, [runs, points]."""
        size = self.train[0].shape[0] // self.batch

        def one_step(params: Params, run: Any, rate: Any, step: Any) -> Params:
            at = ((step + 977 * run) % size) * self.batch  # each run begins elsewhere in the samples
            batch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at, self.batch), self.train)
            slopes = jax.grad(loss)(params, batch)
            return jax.tree.map(lambda a, g, f: a - rate * f * g, params, slopes, factors)

        step_all = jax.vmap(one_step, (0, 0, 0, None))
        test = jax.vmap(lambda params: self.loss(view(params), self.test))

        def stretch(k: Any, state: Any) -> Any:
            params, step, losses = state
            until = step + counts[k]
            params = jax.lax.fori_loop(step, until, lambda i, p: step_all(p, runs, rate, i), params)
            return params, until, losses.at[:, k].set(test(params))

        empty = jnp.full((runs.shape[0], self.points), jnp.nan, self.prepared.dtype)
        params, _, losses = jax.lax.fori_loop(0, stretches, stretch, (params, first, empty))
        return params, losses

    def small_counts(self) -> np.ndarray:
        """Return the small steps of each stretch between two evaluations."""
        return np.diff(np.round(np.arange(self.points + 1) * self.every * self.ratio)).astype(int)

    def tuned_rate(self, runs: int = 2) -> float:
        """Return the problem's share of the best of ``TUNED`` for small networks with an eighth of the budget."""
        which = jnp.tile(jnp.arange(runs), len(TUNED))
        rates = jnp.repeat(jnp.asarray(TUNED, self.prepared.dtype), runs)
        ones = tuple(self.prepared.ones for _ in range(self.problem.sources))
        start = stacked([self.prepared.start(run) for run in range(runs)] * len(TUNED))
        end = self.points // 8
        _, losses = self._small(start, which, 0, self.small_counts(), end, rates, ones)
        ends = np.asarray(losses)[:, end - max(1, end // 8) : end].mean(axis=1).reshape(len(TUNED), runs).mean(axis=1)
        return self.problem.rate * TUNED[int(np.nanargmin(ends))]

    def curves(
        self,
        runs: int,
        rate: float,
        growths: Sequence[int] = GROWTHS,
        report: Callable[[str], None] = lambda what: None,
    ) -> LongCurves:
        """Train everything, and return the curves.

        Args:
          runs: number of initialisations.
          rate: of the small networks.
          growths: in percent of the budget.
          report: told what is trained.
        """
        counts, rates, which = self.small_counts(), jnp.full(runs, rate, self.prepared.dtype), jnp.arange(runs)
        ones = tuple(self.prepared.ones for _ in range(self.problem.sources))
        sources = stacked([self.prepared.start(run) for run in range(runs)])
        at_first = lambda params: np.asarray(jax.vmap(lambda p: self.loss(p, self.test))(params))[:, None]
        small, done, grown, states = [at_first(jax.vmap(self.prepared.embed)(sources))], 0, {}, {}
        plain = np.full(self.points, self.every)
        for percent in sorted({*growths, 100}):
            report(f"grown at {percent} %")
            until = round(percent / 100 * self.points)
            moved = np.append(counts[done:], np.zeros(done, int))
            sources, losses = self._small(sources, which, int(counts[:done].sum()), moved, until - done, rates, ones)
            small.append(np.asarray(losses)[:, : until - done])
            done = until
            if percent == 100:
                break
            states[float(done * self.every)] = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(sources))
            large = self.grow(sources)
            _, losses = self._large(
                large, which, int(counts[:done].sum()), plain, self.points - done, rates, self.factors
            )
            grown[float(done * self.every)] = np.concatenate([at_first(large), np.asarray(losses)], axis=1)
        report("from scratch")
        scratch = stacked([self.prepared.start_large(run) for run in range(runs)])
        _, losses = self._large(scratch, which, 0, plain, self.points, rates, self.factors)
        from_scratch = np.concatenate([at_first(scratch), np.asarray(losses)], axis=1)
        times = np.arange(self.points + 1) * float(self.every)
        return LongCurves(times, np.concatenate(small, axis=1), from_scratch, grown, states)


def stacked(trees: Sequence[Any]) -> Any:
    """Return one tree of stacked leaves."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
