r"""Rate factors that keep the function's velocity across a growth.

Let a small entry have N grown entries that get one and the same gradient, a times the small one's. For k equal copies in a
fusion these are all blocks, the off-diagonal ones of a hidden matrix too: ``N = k^(number of axes with parts)`` and
``a = w/s``, as the loss depends on w times a part's outputs and the array holds s times its parameters. For n copies of a
unit by replication, whose outputs are divided by n, N is the product of the numbers along the axes and ``a = 1/n`` for
what makes the units. Adding u to all N changes the function as adding ``N a u`` to the small entry does. An optimizer's update
is proportional to (gradient)^p · (root mean square of the parameter)^q, and the grown array's root mean square is ρ times
the small one's. The velocity is kept by the factor

.. math:: r = \frac{1}{N a \cdot a^p \rho^q}

with (p, q) = (1, 0) for gradient descent, (0, 0) for Adam, (0, 1) for Adafactor. For an MLP these are the width factors of
the maximal-update parametrization (Yang & Hu 2021). Deepening has no such factors: the gradients of the old layers stay,
and the new layers change the function too. Source: theory.md, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_core.errors import InputError
from fusion_core.growth.fuse import fusion_map
from fusion_core.growth.maps import Rule
from fusion_core.growth.operators import GROWTH_OPERATORS, grow, growth_map
from fusion_core.models.units import Config, Params

# optimizer -> (p, q): its update is proportional to gradient^p · rms(parameter)^q
UPDATES: dict[str, tuple[int, int]] = {"sgd": (1, 0), "adam": (0, 0), "adafactor": (0, 1)}


def _check_optimizer(optimizer: str) -> None:
    if optimizer not in UPDATES:
        raise InputError(f"no rate factors for the optimizer {optimizer!r}; there are factors for {', '.join(UPDATES)}")


def _numbers(rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Return N, and the number of copies by which the gradient is divided: arrays that broadcast to all entries."""
    number, divided = np.ones([1] * len(rule.shape)), np.ones([1] * len(rule.shape))
    for i, axis in enumerate(rule.axes):
        if axis is None:
            continue
        shape = [-1 if j == i else 1 for j in range(len(rule.shape))]
        number = number * np.bincount(axis.taken)[axis.taken].reshape(shape)
        if axis.copies is not None and not axis.reads:
            divided = divided * axis.copies.reshape(shape)
    return number, divided


def _size_ratio(rule: Rule) -> float:
    """Return ρ, if the entries of a part's array are of one size."""
    if not rule.own and len(rule.blocks) > 1:
        return math.fsum(rule.scales)  # a sum of equal terms is the term
    placements = rule.placements()
    squares = (p.scale**2 * math.prod(t.stop - t.start for t in p.take) for p in placements)
    return math.sqrt(math.fsum(squares) / math.prod(rule.shape))


class Terms(NamedTuple):
    """The terms of an array's factor: arrays that broadcast to all its entries, or numbers.

    Attributes:
      number: N, the number of grown entries of a small one.
      gradient: a, their gradient over the small one's.
      size: ρ, the root mean square of the grown array over the small one's.
    """

    number: Any
    gradient: Any
    size: float

    @property
    def equal(self) -> bool:
        """Whether all units have the same number of copies, so that the terms are numbers."""
        return bool(np.ptp(self.number) == 0 and np.ptp(self.gradient) == 0)

    def factor(self, optimizer: str) -> Any:
        """Return r, ``1 / (N a · a^p ρ^q)``."""
        p, q = UPDATES[optimizer]
        return 1 / (self.number * self.gradient * self.gradient**p * self.size**q)


def rate_terms(rule: Rule) -> Terms:
    """Return the terms of the factor on one array's learning rate, for fusion of equal copies and for copied units."""
    number, divided = _numbers(rule)
    return Terms(number, rule.blocks[0].weight / rule.blocks[0].scale / divided, _size_ratio(rule))


def _factor(rule: Rule, optimizer: str, measured: Callable[[], float] | None = None) -> float | np.ndarray:
    """Return r of one array: a number, or an array if units have different numbers of copies."""
    terms = rate_terms(rule)
    if UPDATES[optimizer][1] and measured is not None and not terms.equal:
        terms = terms._replace(size=measured())
    factor = terms.factor(optimizer)
    return float(factor.flat[0]) if np.ptp(factor) == 0 else np.broadcast_to(factor, rule.shape)


def rate_factors(
    params: Params, config: Config, copies: int, optimizer: Literal["sgd", "adam", "adafactor"] | str
) -> Params:
    """Return factors on the learning rate of every array with which fusion keeps the velocity of the function.

    Exact for equal copies, to first order in the rate, if all blocks train: with gradient descent always, with Adam and
    Adafactor once their moments are the fused network's own (those of the source times the square of the gradient's
    factor, off the diagonal too) and far above their epsilon. For different sources they hold on average (theory.md,
    section 5).

    Args:
      params: parameters of the source or of the fused network; only their tree matters.
      config: configuration of the source or of the fused network: the factors depend on an array's kind, not on its size.
      copies: number of copies k ≥ 2.
      optimizer: ``"sgd"``, ``"adam"`` or ``"adafactor"`` (factored or not, scaled by the parameter's root mean square).

    Returns:
      A tree like params with one float a leaf.

    Raises:
      InputError: there are fewer than two copies, the optimizer is unknown, or the params do not fit the configuration.

    Source: theory.md, (5.1).
    """
    if not isinstance(copies, int) or isinstance(copies, bool) or copies < 2:
        raise InputError(f"copies is {copies!r}; fusion takes at least two copies")
    _check_optimizer(optimizer)
    mapping = fusion_map([config] * copies)
    found: object = jax.tree.structure(params)
    wanted: object = jax.tree.structure(mapping.rules)
    if found != wanted:
        raise InputError(
            f"params have the tree {found}, but the configuration's is {wanted}; pass the two of one network"
        )
    return jax.tree.map(lambda rule: _factor(rule, optimizer), mapping.rules)


def growth_rate_factors(
    params: Params,
    config: Config,
    operator: str,
    optimizer: str,
    *,
    factor: Any = None,
    width: Any = None,
    depth: Any = None,
    seed: Any = None,
) -> Params:
    """Return factors on the learning rate of every array with which the growth keeps the velocity of the function.

    Exact to first order in the rate, without noise, under the conditions of ``rate_factors``, with which it agrees for
    ``deep_fusion``; for Adafactor only if all units have the same number of copies.

    Args:
      params: parameters of the small network.
      config, operator, factor, width, depth, seed: as they were given to ``grow``.
      optimizer: ``"sgd"``, ``"adam"`` or ``"adafactor"``.

    Returns:
      A tree like the grown params: a float for each array, or an array of its shape if units have different numbers of
      copies.

    Raises:
      InputError: as ``grow``; the optimizer is unknown; or not all new entries of the operator are copies.

    Source: theory.md, (5.1).
    """
    _check_optimizer(optimizer)
    sizes = {"factor": factor, "width": width, "depth": depth, "seed": seed}
    grown, _ = grow(params, config, operator, **sizes)
    if GROWTH_OPERATORS[operator].properties.keeps_dynamics != "with factors":
        with_factors = [o.name for o in GROWTH_OPERATORS.values() if o.properties.keeps_dynamics == "with factors"]
        raise InputError(
            f"no rate factors for {operator}: its new entries move the function on their own; there are factors for "
            f"{', '.join(with_factors)}"
        )
    mapping, rms = growth_map(config, operator, **sizes), lambda x: float(jnp.sqrt(jnp.mean(jnp.square(x))))
    small = mapping.each(lambda rule, parts: parts[0], [params])
    return jax.tree.map(
        lambda rule, x, y: _factor(rule, optimizer, lambda: rms(y) / rms(x)), mapping.rules, small, grown
    )
