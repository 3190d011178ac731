"""A multi-layer perceptron: ``{"layers": [{"weight": out × in, "bias": out}, ...]}``."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.models.units import Axis, Layout, Params, Space, Stack, fan_in, shapes_of


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Widths of a multi-layer perceptron, input and output included: (in, hidden, ..., out).

    Raises:
      InputError: there is no hidden layer, or a width is below 1.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) < 3 or min(self.sizes) < 1:
            raise InputError(f"MLPConfig.sizes is {self.sizes}; it needs input, at least one hidden and output width")


def chain(
    field: str, prefix: str, widths: tuple[int, ...], hidden: range, kernel: tuple[int, ...] = ()
) -> list[Params]:
    """Return the layouts of layers that each read the one before, as in an MLP or in convolutions.

    Args:
      field: the configuration's field that holds the widths.
      prefix: first part of the spaces' names.
      widths: widths of the input and of every layer's output.
      hidden: the positions in ``widths`` that count hidden units.
      kernel: sides of the layers' kernels.
    """

    def axis(i: int, *, reads: bool) -> Axis | int:
        space = Space(f"{prefix}.{i - 1}", widths[i], field, i)
        return (space.reads() if reads else space.makes()) if i in hidden else widths[i]

    return [
        {
            "weight": Layout((axis(i + 1, reads=False), axis(i, reads=True), *kernel)),
            "bias": Layout((axis(i + 1, reads=False),)),
        }
        for i, _ in enumerate(itertools.pairwise(widths))
    ]


def arrays(config: MLPConfig) -> Params:
    """Return the layout of every array."""
    return {"layers": chain("sizes", "hidden", config.sizes, range(1, len(config.sizes) - 1))}


def stacks(config: MLPConfig) -> tuple[Stack, ...]:
    """Return the hidden-to-hidden layers, those that may be repeated, among all layers."""
    layers = len(config.sizes) - 1
    return (Stack("sizes", "layers", layers, range(1, layers - 1)),)


def from_scratch(layouts: Params, seed: int, dtype: Any = jnp.float32) -> Params:
    """Return normal weights of mean 0 and variance 1 / fan-in, and biases of zero; equal seeds give equal parameters."""
    rng = np.random.default_rng(seed)

    def drawn(struct: jax.ShapeDtypeStruct) -> Any:
        if len(struct.shape) < 2:
            return jnp.zeros(struct.shape, dtype)
        return jnp.asarray(rng.standard_normal(struct.shape, np.float32) / fan_in(struct.shape) ** 0.5, dtype)

    return jax.tree.map(drawn, shapes_of(layouts))


def init(config: MLPConfig, seed: int, *, dtype: Any = jnp.float32) -> Params:
    """Return random parameters (``from_scratch``)."""
    return from_scratch(arrays(config), seed, dtype)
