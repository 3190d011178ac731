"""The families of random problems, written down before any was run, and one problem ready to be trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import bea
from fusion_core import growth as fc
from toy_models import mlp, teacher

Params = Any

# Held-out problems are drawn from the first range of seeds, those to tune rules on from the second.
HELD_OUT, TUNING = 30_000, 10_000

# Growth steps, as shares of the FLOP budget; 1 is never: fused at the end.
SHARES = (0.0, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Family:
    """Ranges that problems are drawn from (both ends included).

    512 samples, more than any of the networks interpolates; teachers of 64 tanh features with power-law weights. Rates are
    a share of the small networks' best: that lies at the edge of stability, where runs swing and end at losses that differ
    by a factor of two, so that growth steps cannot be distinguished.
    """

    inputs: tuple[int, ...] = (4, 6, 8)
    widths: tuple[int, int] = (4, 10)
    depths: tuple[int, ...] = (2, 3)
    activations: tuple[str, ...] = ("tanh", "gelu")
    exponents: tuple[float, ...] = (0.5, 1.0)
    steps: tuple[int, int] = (500, 2000)
    rate: tuple[float, float] = (0.4, 0.7)
    noise: tuple[float, float] = (0.3, 1.0)
    operators: tuple[str, ...] = ("fuse", "self")
    samples: int = 512
    features: int = 64


STANDARD = Family()
# too short for the large network to be worth its budget: the answer is "not within this budget"
SHORT = dataclasses.replace(STANDARD, widths=(10, 16), steps=(60, 200))
LONG = dataclasses.replace(STANDARD, steps=(20_000, 20_000))
SMOKE = dataclasses.replace(STANDARD, inputs=(3,), widths=(4, 5), depths=(2,), steps=(60, 80), samples=32, features=8)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One draw.

    Attributes:
      seed: seed of the draw and of everything in the problem.
      operator: ``"fuse"`` (two sources) or ``"self"`` (one network with itself, plus function-preserving noise).
      sizes: widths of one small network.
      activation, exponent, samples, features: settings of the task.
      steps: steps of the grown network, if it had the whole budget.
      rate: learning rate of the small networks, as a share of the best of ``TUNED``.
      noise: size of self-fusion's noise, in units of the initial weights' deviation.
    """

    seed: int
    operator: str
    sizes: tuple[int, ...]
    activation: str
    exponent: float
    steps: int
    rate: float
    noise: float
    samples: int
    features: int

    @property
    def sources(self) -> int:
        """How many small networks are trained."""
        return 2 if self.operator == "fuse" else 1


def random_problem(family: Family, seed: int) -> Problem:
    """Return the problem of a seed. Operators alternate, so that any range of seeds has both."""
    rng = np.random.default_rng(seed)
    depth = int(rng.choice(family.depths))
    widths = rng.integers(*family.widths, size=depth, endpoint=True)
    low, high = np.log(family.steps)
    return Problem(
        seed=seed,
        operator=family.operators[seed % len(family.operators)],
        sizes=(int(rng.choice(family.inputs)), *map(int, widths), 1),
        activation=str(rng.choice(family.activations)),
        exponent=float(rng.choice(family.exponents)),
        steps=round(math.exp(rng.uniform(low, high))),
        rate=float(rng.uniform(*family.rate)),
        noise=float(rng.uniform(*family.noise)),
        samples=family.samples,
        features=family.features,
    )


# Learning rates of which the small networks' best is found before a problem is used, with the whole budget each.
TUNED = tuple(0.025 * 2 ** (k / 2) for k in range(11))


class PreparedProblem:
    """A problem's losses, maps and compiled runs. The small phase trains the tuple of all sources.

    Args:
      problem: the draw.
      dtype: dtype of all arrays; float64 needs ``jax.enable_x64``.
    """

    def __init__(self, problem: Problem, dtype: DTypeLike = jnp.float32) -> None:
        self.problem, self.dtype = problem, dtype
        task = teacher.teacher_task(
            (problem.sizes[0], problem.features, 1),
            seed=problem.seed,
            train=problem.samples,
            validation=1,
            exponent=problem.exponent,
            dtype=dtype,
        )
        self.samples = inputs, targets = task.train
        activation = mlp.ACTIVATIONS[problem.activation]
        self.predict: Callable[[Params], jax.Array] = lambda p: mlp.forward(p, inputs, activation)
        self.output_loss: Callable[[jax.Array], jax.Array] = lambda out: jnp.mean((out - targets) ** 2)
        self.loss: Callable[[Params], jax.Array] = lambda p: self.output_loss(self.predict(p))
        config = fc.MLPConfig(problem.sizes)
        self.mapping = fc.fusion_map([config, config])
        self.grown_sizes = fc.fused_config([config, config]).sizes
        cost = mlp.gradient_flops(problem.sizes, problem.samples)
        self.costs = problem.sources * cost, mlp.gradient_flops(self.grown_sizes, problem.samples)
        self.factors = fc.rate_factors(self.start(0)[0], config, 2, "sgd")
        self.ones = jax.tree.map(lambda _: 1.0, self.factors)
        self.event = bea.GrowthEvent.from_linear(self.embed, self.start(0))
        self.offset = self._noise() if problem.operator == "self" else None
        self.losses = jax.jit(jax.vmap(self.loss))
        self.advance = jax.jit(self._advance)
        self.advance_grown = jax.jit(
            lambda params, steps, rate, factors: jax.lax.map(
                lambda one: self._advance(one[0], one[1], rate, factors), (params, steps)
            )
        )

    def start(self, run: int) -> tuple[Params, ...]:
        """Return the sources of a run, untrained."""
        seeds = np.random.SeedSequence((self.problem.seed, run)).generate_state(2) // 2
        return tuple(mlp.init(self.problem.sizes, seed=int(s), dtype=self.dtype) for s in seeds[: self.problem.sources])

    def start_large(self, run: int) -> Params:
        """Return a large network from scratch."""
        seed = np.random.SeedSequence((self.problem.seed, run, 1)).generate_state(1)[0] // 2
        return mlp.init(self.grown_sizes, seed=int(seed), dtype=self.dtype)

    def small_steps(self, share: float) -> int:
        """Return the small steps that a share of the budget pays for."""
        return round(share * self.problem.steps * self.costs[1] / self.costs[0])

    def grown_steps(self, share: float) -> int:
        """Return the grown steps that the rest of the budget pays for."""
        return round((1 - share) * self.problem.steps)

    def embed(self, sources: tuple[Params, ...]) -> Params:
        """Return Jθ, linear in the sources."""
        return self.mapping.embed(sources if len(sources) == 2 else sources * 2)

    def grow(self, sources: tuple[Params, ...]) -> Params:
        """Return the grown network: Jθ, and the noise that keeps the function."""
        fused = self.embed(sources)
        return fused if self.offset is None else jax.tree.map(jnp.add, fused, self.offset)

    def _advance(self, params: Params, steps: Any, rate: Any, factors: Params) -> Params:
        slope = jax.grad(self.loss)
        step = lambda _, p: jax.tree.map(lambda a, g, f: a - rate * f * g, p, slope(p), factors)
        return jax.lax.fori_loop(0, steps, step, params)

    def _noise(self) -> Params:
        """Return the noise: ``[[N₁, −N₁], [−N₂, N₂]]`` on what reads the copies, ``[n, −n]`` on the last layer."""
        rng = np.random.default_rng((self.problem.seed, 7))
        zeros = jax.tree.map(jnp.zeros_like, self.embed(self.start(0)))
        pairs = list(zip(self.problem.sizes[:-1], self.problem.sizes[1:], strict=True))
        for i, (n_in, n_out) in enumerate(pairs[1:], start=1):
            drawn = [self.problem.noise * rng.standard_normal((n_out, n_in)) / n_in**0.5 for _ in range(2)]
            if i == len(pairs) - 1:
                block = np.concatenate([drawn[0], -drawn[0]], axis=1) / 2
            else:
                block = np.block([[drawn[0], -drawn[0]], [-drawn[1], drawn[1]]])
            zeros["layers"][i]["weight"] = jnp.asarray(block, self.dtype)
        return zeros

    def tuned_rate(self, runs: int = 2) -> float:
        """Return the problem's rate: its share of the best of ``TUNED`` for small networks with the whole budget."""
        steps, ends = self.small_steps(1.0), []
        for rate in TUNED:
            finals = [float(self.loss(self.advance(self.start(r)[0], steps, rate, self.ones))) for r in range(runs)]
            ends.append(float(np.mean(finals)) if np.isfinite(finals).all() else np.inf)
        return self.problem.rate * TUNED[int(np.argmin(ends))]
