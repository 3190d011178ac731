r"""Learning rates across a fusion: the factors with which the function goes on at the velocity that it had.

For k equal copies one array of the fused network has N blocks that train, ``N = k^(number of axes that belong to a
source)``, and by the symmetry between copies every block, the off-diagonal ones of a hidden matrix too, gets the same
gradient: ``a = w/s`` times the source's, since the loss sees ``w`` times a source's outputs and the array holds ``s``
times its parameters. Moving all blocks by u therefore changes the function as moving the source's array by ``N a u``
does. An optimizer's update is proportional to (gradient)^p · (root mean square of the parameter)^q, and the fused
array's root mean square is ``ρ = s √(k/N)`` of the source's, as k of the N blocks are filled. The velocity is kept by
the factor

.. math:: r = \frac{1}{N a \cdot a^p \rho^q}

with (p, q) = (1, 0) for gradient descent, (0, 0) for Adam, (0, 1) for Adafactor. For an MLP these are the width factors of
the maximal-update parametrization (Yang & Hu 2021). Source: theory.md, section 5.
"""

from __future__ import annotations

from typing import Any, Literal

import jax

from fusion_core.errors import InputError
from fusion_core.growth.linear import Params, Rule
from fusion_core.growth.networks import fusion_map

# optimizer -> (p, q): its update goes as gradient^p · rms(parameter)^q
UPDATES: dict[str, tuple[int, int]] = {"sgd": (1, 0), "adam": (0, 0), "adafactor": (0, 1)}


def rate_factors(
    params: Params, config: Any, copies: int, optimizer: Literal["sgd", "adam", "adafactor"] | str
) -> Params:
    """Factors on the learning rate of every array with which fusion keeps the velocity of the function.

    Exact for equal copies, to first order in the rate, where all blocks train: gradient descent in general, Adam and
    Adafactor once their moments are the fused network's own (theirs times the square of the gradient's factor, off the
    diagonal too) and far above their epsilon. For different sources they hold on average (theory.md, section 5).

    Args:
      params: of the source or of the fused network; only their tree matters.
      config: of the source or of the fused network: the factors depend on an array's kind, not on its size.
      copies: k ≥ 2.
      optimizer: ``"sgd"``, ``"adam"`` or ``"adafactor"`` (factored or not, scaled by the parameter's root mean square).

    Returns:
      A tree like params with one float a leaf.

    Raises:
      InputError: fewer than two copies, an unknown optimizer, or params that are not those of the configuration.
    """
    if not isinstance(copies, int) or isinstance(copies, bool) or copies < 2:
        raise InputError(f"copies is {copies!r}; fusion takes at least two copies")
    if optimizer not in UPDATES:
        raise InputError(f"no rate factors for the optimizer {optimizer!r}; there are factors for {', '.join(UPDATES)}")
    mapping = fusion_map([config] * copies)
    found: object = jax.tree.structure(params)
    wanted: object = jax.tree.structure(mapping.rules)
    if found != wanted:
        raise InputError(
            f"params have the tree {found}, but the configuration's is {wanted}; pass the two of one network"
        )
    p, q = UPDATES[optimizer]
    weight = mapping.weights[0]

    def factor(rule: Rule) -> float:
        blocks, scale = copies ** len(rule.axes), rule.scales[0]
        gradient = weight / scale
        filled = scale * (copies / blocks) ** 0.5 if rule.axes else 1.0  # a sum of equal terms is the term
        return 1 / (blocks * gradient * gradient**p * filled**q)

    return jax.tree.map(factor, mapping.rules)
