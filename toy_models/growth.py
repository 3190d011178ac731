"""Growth on toys: each has its loss, its sources, the network that they grow into, and what a step costs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fusion_core.growth import MLPConfig, fuse, fusion_map
from toy_models import mlp
from toy_models.deep_linear import deep_linear_task
from toy_models.digits import digits_task
from toy_models.teacher import teacher_task

Params = Any


@dataclasses.dataclass(frozen=True)
class GrowthToy:
    """A problem on which to grow.

    Attributes:
      source_loss: ``params of one source -> scalar``.
      loss: ``grown params -> scalar``.
      sources: parameters of the small networks before they train.
      embed: J; ``tuple of sources -> grown params``, linear.
      small_flops: floating-point operations of one gradient-descent step of ALL sources (matrix products).
      grown_flops: the same of the grown network.
    """

    source_loss: Callable[[Params], Any]
    loss: Callable[[Params], Any]
    sources: tuple[Params, ...]
    embed: Callable[[tuple[Params, ...]], Params]
    small_flops: int
    grown_flops: int

    @property
    def fused(self) -> Params:
        """The grown parameters, if one grew now."""
        return self.embed(self.sources)


def quadratic_toy(dimension: int, small: int, *, seed: int, dtype: DTypeLike = jnp.float32) -> GrowthToy:
    """Return ``½ ΘᵀHΘ`` on R^dimension, of which the source sees the random subspace ``Θ = Jθ``; growth keeps the loss.

    Raises:
      ValueError: small is not between 1 and dimension − 1.
    """
    if not 0 < small < dimension:
        raise ValueError(f"small is {small}, but a subspace that grows to dimension {dimension} is smaller than that")
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    hessian = jnp.asarray(basis * np.linspace(0.1, 1.0, dimension) @ basis.T, dtype)
    hessian = (hessian + hessian.T) / 2
    J = jnp.asarray(rng.standard_normal((dimension, small)) / dimension**0.5, dtype)
    small_hessian = J.T @ hessian @ J
    source = jnp.asarray(rng.standard_normal(small), dtype)
    return GrowthToy(
        source_loss=lambda theta: 0.5 * theta @ (small_hessian @ theta),
        loss=lambda theta: 0.5 * theta @ (hessian @ theta),
        sources=(source,),
        embed=lambda sources: J @ sources[0],
        small_flops=2 * small**2,
        grown_flops=2 * dimension**2,
    )


def deep_linear_toy(widths: Sequence[int], *, seed: int, dtype: DTypeLike = jnp.float32) -> GrowthToy:
    """Return balanced two-layer linear nets of these hidden widths on a map of rank 3 from 6 to 4 dimensions, fused."""
    task = deep_linear_task(6, 4, strengths=(3.0, 2.0, 1.0), samples=64, seed=seed, dtype=dtype)
    sources = tuple(task.start(width, 0.01, seed + 1 + i) for i, width in enumerate(widths))
    return _of_networks(task.loss(), sources, [(6, width, 4) for width in widths], batch=64)


def teacher_toy(
    sizes: Sequence[Sequence[int]],
    *,
    activation: str = "tanh",
    samples: int = 512,
    exponent: float = 1.0,
    seed: int,
    dtype: DTypeLike = jnp.float32,
) -> GrowthToy:
    """Return MLPs of these sizes on a teacher of 64 tanh features, fused.

    Args:
      sizes: widths of each source (in, hidden, ..., out).
      activation: a name in ``mlp.ACTIVATIONS``.
      samples, exponent: as ``teacher_task`` takes them.
      seed: seed of the task and of the sources.
      dtype: dtype of all arrays.
    """
    shape = tuple(sizes[0])
    train = teacher_task(
        (shape[0], 64, shape[-1]), seed=seed, train=samples, validation=1, exponent=exponent, dtype=dtype
    ).train
    loss = mlp.mse_loss(*train, mlp.ACTIVATIONS[activation])
    return _of_networks(loss, _drawn(sizes, seed, dtype), sizes, batch=samples)


def digits_toy(
    hidden: Sequence[Sequence[int]],
    *,
    activation: str = "gelu",
    train: int = 1200,
    seed: int,
    dtype: DTypeLike = jnp.float32,
) -> GrowthToy:
    """Return MLPs of these hidden widths on the handwritten digits (cross-entropy in nats), fused. Needs scikit-learn."""
    task = digits_task(train=train, seed=seed, dtype=dtype)
    loss = mlp.softmax_loss(*task.train, mlp.ACTIVATIONS[activation])
    sizes = [(64, *widths, 10) for widths in hidden]
    return _of_networks(loss, _drawn(sizes, seed, dtype), sizes, batch=train)


TOYS: dict[str, Callable[[int], GrowthToy]] = {
    "quadratic": lambda seed: quadratic_toy(20, 8, seed=seed),
    "deep linear": lambda seed: deep_linear_toy((4, 4), seed=seed),
    "tanh MLP": lambda seed: teacher_toy([(8, 12, 12, 2)] * 2, seed=seed),
    "GELU MLP": lambda seed: teacher_toy([(8, 12, 12, 2)] * 2, activation="gelu", seed=seed),
    "digits": lambda seed: digits_toy([(16, 16)] * 2, seed=seed),
}
"""One of each, by seed."""


def _drawn(sizes: Sequence[Sequence[int]], seed: int, dtype: DTypeLike) -> tuple[Params, ...]:
    return tuple(mlp.init(one, seed=1000 * (seed + 1) + i, dtype=dtype) for i, one in enumerate(sizes))


def _of_networks(
    loss: Callable[[Params], Any], sources: tuple[Params, ...], sizes: Sequence[Sequence[int]], batch: int
) -> GrowthToy:
    configs = [MLPConfig(tuple(one)) for one in sizes]
    _, config = fuse(list(zip(sources, configs, strict=True)))
    return GrowthToy(
        source_loss=loss,
        loss=loss,
        sources=sources,
        embed=fusion_map(configs).embed,
        small_flops=sum(mlp.gradient_flops(one, batch) for one in sizes),
        grown_flops=mlp.gradient_flops(config.sizes, batch),
    )
