r"""The operators: which axis of which weight is a source's. Each takes the weights of the mean and returns a ``Rule``.

A fused network holds its sources side by side: every vector of activations is the concatenation ``(x_1, ..., x_k)``. An
array's rule follows from what it reads and what it writes:

===================== ========================== ============================
it reads              it writes the sources'     it writes the common outputs
===================== ========================== ============================
the common inputs     ``dense_in``: rows stacked
the sources'          ``dense``: block-diagonal  ``dense_out``: columns, ``w_i``
nothing (a bias)      ``bias``: concatenated     ``bias_out``: weighted sum
===================== ========================== ============================

Matrices are out × in, as in PyTorch's ``Linear``; ``conv1d`` is GPT-2's in × out. Convolutions (out × in × height ×
width) follow the same rules, as their first two axes are a matrix's. Attention's heads are ranges of the rows of q, k, v,
so q, k, v and o are ``dense``: source i's heads read its stream and write to it. Elementwise functions, gates and the
softmax of a head need no rule.

An architecture is a table from ``"name.weight"`` to an operator (``rules_of``); the tables of common blocks stand below.
Source: Mazzawi et al. (2024); docs/fusion.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fusion_core.growth.linear import FusionMap, Params, Rule

Weights = tuple[float, ...]
Operator = Callable[[Weights], Rule]
Table = Mapping[str, Operator]


def _ones(weights: Weights) -> tuple[float, ...]:
    return (1.0,) * len(weights)


def embedding(weights: Weights) -> Rule:
    """Token or position embedding (tokens × width): concatenated over the width."""
    return Rule((1,), _ones(weights))


def dense_in(weights: Weights) -> Rule:
    """A matrix or convolution that reads the common inputs: stacked over its outputs."""
    return Rule((0,), _ones(weights))


def dense(weights: Weights) -> Rule:
    """A matrix or convolution from the sources' activations to the sources' activations: block-diagonal."""
    return Rule((0, 1), _ones(weights), reads=1)


def dense_out(weights: Weights) -> Rule:
    """A matrix from the sources' activations to the common outputs (an untied head): side by side, times wᵢ."""
    return Rule((1,), weights, reads=1)


def conv1d(weights: Weights) -> Rule:
    """``dense`` in GPT-2's orientation, in × out."""
    return Rule((0, 1), _ones(weights), reads=0)


def packed_conv1d(count: int) -> Operator:
    """``conv1d`` whose outputs are ``count`` arrays one after the other (q, k and v in one)."""
    return lambda weights: Rule((0, 1), _ones(weights), ((1, count),), reads=0)


def bias(weights: Weights) -> Rule:
    """A bias on the sources' activations: concatenated."""
    return Rule((0,), _ones(weights))


def packed_bias(count: int) -> Operator:
    """``bias`` of ``packed_conv1d``."""
    return lambda weights: Rule((0,), _ones(weights), ((0, count),))


def bias_out(weights: Weights) -> Rule:
    """A bias on the common outputs: the weighted mean."""
    return Rule((), weights)


def per_head(weights: Weights) -> Rule:
    """Relative attention bias (buckets × heads): concatenated over the heads."""
    return Rule((1,), _ones(weights))


def norm(weights: Weights) -> Rule:
    """Scale or bias of RMSNorm and LayerNorm: concatenated."""
    return Rule((0,), _ones(weights))


def final_norm(weights: Weights) -> Rule:
    """Scale or bias of the norm before a tied head: it carries wᵢ, since the embedding cannot (the input reads it too)."""
    return Rule((0,), weights)


ATTENTION: Table = dict.fromkeys(("q.weight", "k.weight", "v.weight", "o.weight"), dense)
RELATIVE_ATTENTION: Table = {**ATTENTION, "relative_attention_bias.weight": per_head}
# query heads share key and value heads in order, and so do the fused ones if every source has the same ratio
GROUPED_QUERY_ATTENTION: Table = {
    **dict.fromkeys([f"{n}_proj.weight" for n in "qkvo"], dense),
    **dict.fromkeys([f"{n}_proj.bias" for n in "qkvo"], bias),
}
PACKED_ATTENTION: Table = {
    "c_attn.weight": packed_conv1d(3),
    "c_attn.bias": packed_bias(3),
    "c_proj.weight": conv1d,
    "c_proj.bias": bias,
}
FEED_FORWARD: Table = {"wi.weight": dense, "wo.weight": dense}
GATED_FEED_FORWARD: Table = {"wi_0.weight": dense, "wi_1.weight": dense, "wo.weight": dense}
RMS_NORM: Table = {"norm.weight": norm}
LAYER_NORM: Table = {"norm.weight": norm, "norm.bias": norm}
CONVOLUTION: Table = {"weight": dense, "bias": bias}


def table_map(table: Table, shapes: Sequence[Params], weights: Weights) -> FusionMap:
    """The fusion map of a table, for trees whose arrays it names by their last two keys (or their last one).

    Args:
      table: operator of each array.
      shapes: a tree of shapes a source.
      weights: of the mean.
    """

    def rule(path: tuple[Any, ...], _: Any) -> Rule:
        return table[".".join(str(part.key) for part in path[-2:])](weights)

    rules = jax.tree_util.tree_map_with_path(rule, shapes[0])
    return FusionMap(rules=rules, shapes=tuple(shapes), weights=weights)


def replace_scales(mapping: FusionMap, scales: Mapping[tuple[str, ...], Sequence[float]]) -> FusionMap:
    """The map with other scales at the paths given."""

    def rule(path: tuple[Any, ...], old: Rule) -> Rule:
        found = scales.get(tuple(part.key for part in path if hasattr(part, "key")))
        return old if found is None else Rule(old.axes, tuple(found), old.packed, old.reads)

    rules = jax.tree_util.tree_map_with_path(rule, mapping.rules)
    return FusionMap(rules=rules, shapes=mapping.shapes, weights=mapping.weights)
