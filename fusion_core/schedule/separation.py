r"""Copies that part: how fast, by theory, and a push along the directions in which they do.

After a self-fusion the grown network stands near a saddle (``bea.separation``): along antisymmetric directions e with
negative curvature −λ the loss falls by ``½ λ s²`` at once, and a difference of the copies grows by ``e^{λ}`` a step. Noise has
a small part along them; ``off_diagonal = "separating"`` goes there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import bea
from fusion_core.errors import InputError
from fusion_core.growth import GrowthMap
from fusion_core.schedule.greedy import MeanLoss
from fusion_core.train.optimizer import preconditioner
from fusion_core.train.step import Batch, TrainState

Params = Any

LANCZOS, DIRECTIONS = 24, 8  # products with the Hessian; directions of a push
BATCHES = 2  # on which the directions are found
SIZES = tuple(2.0**-i for i in range(12))  # of a push, of which the one with the least loss is taken if none is given


def separation_flops(step_flops: float, *, batches: int = BATCHES, steps: int = LANCZOS) -> float:
    """Return the FLOPs of ``push_apart``: Lanczos with its Hessian-vector products, each two gradients a batch, and losses.

    Args:
      step_flops: FLOPs of a training step of the grown network on one batch, which are those of a gradient.
      batches: their number.
      steps: of Lanczos.
    """
    gradients, losses = 2 * steps + 2, len(SIZES) + 1
    return batches * step_flops * (gradients + losses / 3)


@dataclasses.dataclass(frozen=True)
class Push:
    """A push of the copies apart, and what theory says of it.

    Attributes:
      params: the grown parameters, pushed.
      size: norm of the push, as that of antisymmetric noise of this size.
      rate, uncertainty: λ by Lanczos; with a metric that holds the learning rates it is one of a training step, in which a
        difference of the copies grows by ``e^λ``.
      before, after: loss on the batches.
    """

    params: Params
    size: float
    rate: float
    uncertainty: float
    before: float
    after: float

    @property
    def reason(self) -> str:
        """One sentence with the numbers."""
        if not self.size:
            why = "no length of it lowers the loss" if self.rate > 0 else "no direction was found in which copies part"
            return f"no push: {why}, λ = {self.rate:.3g} ± {self.uncertainty:.1g}"
        return (
            f"pushed apart by the norm of noise {self.size:.3g}, loss {self.before:.4f} → {self.after:.4f}; copies part by "
            f"e^(λ steps), λ = {self.rate:.3g} ± {self.uncertainty:.1g}"
        )


def frozen_metric(
    optimizer: optax.GradientTransformation, loss: MeanLoss, state: TrainState, batch: Batch, scale: Any = 1.0
) -> Params:
    """Return M of a step ``−M ∇L``, learning rates included: the optimizer frozen at a training state and a batch."""
    grads = jax.grad(loss)(state.params, batch)
    metric = preconditioner(optimizer, grads, state.opt_state, state.params)
    return jax.tree.map(lambda rate, m: (scale * rate * m).astype(m.dtype), state.rates, metric)


def mean_over(loss: MeanLoss, batches: Sequence[Batch]) -> Callable[[Params], Array]:
    """Return the mean loss over equal batches, a function of the parameters alone."""
    stacked = jax.tree.map(lambda *parts: jnp.stack([jnp.asarray(part) for part in parts]), *batches)
    return lambda params: jnp.mean(jax.lax.map(lambda batch: loss(params, batch), stacked))


def separation_of(
    loss: MeanLoss,
    mapping: GrowthMap,
    params: Params,
    batches: Sequence[Batch],
    metric: Params | None = None,
    *,
    steps: int = LANCZOS,
    directions: int = 1,
    seed: int = 0,
    drift: bool = True,
) -> bea.Separation:
    """Return ``bea.separation_rate`` of a grown network's copies on a few batches.

    Args:
      loss: of the grown network.
      mapping: J, which has the exchange of the copies.
      params: grown parameters, with noise or without.
      batches: equal in shape.
      metric: M of a step (``frozen_metric``), so that the rate is one of a step; if None, 1.
      steps, directions, seed: as ``bea.separation_rate`` takes them.
      drift: whether to measure the drift, a third derivative, whose compilation takes longest; else it is 0.
    """
    total = mean_over(loss, batches)
    choices: dict[str, Any] = {"steps": steps, "directions": directions, "seed": seed}

    @jax.jit
    def find(params: Params, metric: Params | None) -> bea.Separation:
        found = bea.separation_rate(total, mapping.exchanges, params, metric, **choices)
        return found._replace(products=0) if drift else found._replace(products=0, drift=jnp.zeros_like(found.rate))

    return find(params, metric)._replace(products=steps)


def noise_norm(mapping: GrowthMap, params: Params) -> float:
    """Return the norm that antisymmetric noise of size 1 has on average: ``√k`` times that of the arrays that read copies."""
    rules, leaves = jax.tree.leaves(mapping.rules), jax.tree.leaves(params)
    reading = [leaf for rule, leaf in zip(rules, leaves, strict=True) if rule.axis(reads=True) is not None]
    return math.sqrt(mapping.copies * sum(float(jnp.sum(jnp.square(leaf.astype(jnp.float32)))) for leaf in reading))


def push_apart(
    loss: MeanLoss,
    mapping: GrowthMap,
    embedded: Params,
    params: Params,
    batches: Sequence[Batch],
    metric: Params | None = None,
    *,
    size: float | None = None,
    steps: int = LANCZOS,
    directions: int = DIRECTIONS,
    seed: int = 0,
) -> Push:
    r"""Return grown parameters pushed along the leading directions in which their copies part.

    .. math:: \Theta + \frac{s}{\sqrt n} \sum_{i=1}^{n} \pm e_i

    The directions are those at ``J θ``, with λ_i > 0; each has the sign with which the loss does not rise at Θ (at ``J θ``
    itself both are equal, by symmetry).

    Args:
      loss: of the grown network.
      mapping: J.
      embedded: ``J θ``.
      params: Θ, equal to ``J θ`` or with noise.
      batches: on which directions and losses are measured.
      metric: M of a step; if None, 1.
      size: norm of the push, as that of antisymmetric noise of this size (``noise_norm``); if None, that of ``SIZES`` with the
        least loss on the batches, or 0.
      steps, directions, seed: as ``separation_of``.

    Raises:
      InputError: size is not positive and finite.
    """
    if size is not None and not (math.isfinite(size) and size > 0):
        raise InputError(f"push is {size}; it must be positive, or be left out, to be chosen by the loss")
    choices: dict[str, Any] = {"steps": steps, "directions": directions, "seed": seed, "drift": False}
    found = separation_of(loss, mapping, embedded, batches, metric, **choices)
    total, unit = jax.jit(mean_over(loss, batches)), noise_norm(mapping, embedded)
    slopes = jax.jit(lambda p, e: jax.tree.map(lambda g, d: jnp.tensordot(d, g, g.ndim), jax.grad(total)(p), e))
    along = np.sum([np.asarray(leaf) for leaf in jax.tree.leaves(slopes(params, found.directions))], axis=0)
    signs = np.where(along > 0, -1.0, 1.0) * (np.asarray(found.rates) > 0)
    weights = signs / max(1.0, math.sqrt(np.count_nonzero(signs)))
    pushed = jax.jit(
        lambda p, s: jax.tree.map(
            lambda x, d: x + (s * jnp.tensordot(jnp.asarray(weights, d.dtype), d, 1)).astype(x.dtype),
            p,
            found.directions,
        )
    )
    sizes = [] if not weights.any() else list(SIZES) if size is None else [size]
    losses = {s: float(total(pushed(params, s * unit))) for s in sizes}
    before = float(total(params))
    best = min(losses, key=lambda s: losses[s] if math.isfinite(losses[s]) else math.inf, default=0.0)
    if size is None and losses.get(best, math.inf) >= before:
        best = 0.0
    after = losses[best] if best else before
    result = pushed(params, best * unit) if best else params
    return Push(result, best, float(found.rate), float(found.uncertainty), before, after)
