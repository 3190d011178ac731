r"""Elementary differentials on pytrees, and sums of them over rooted trees.

.. math:: F([t_1, \dots, t_k]_c)(\theta) = f_c^{(k)}(\theta)\bigl(F(t_1)(\theta), \dots, F(t_k)(\theta)\bigr)

No derivative is ever formed: ``f^{(k)}(u_1, …, u_{k−1}, ·)`` is one linearisation (``jax.linearize``) of
``f^{(k−1)}(u_1, …, u_{k−1})``, shared by all the vectors that it is applied to.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bea.fields import directional_derivative
from bea.pytrees import Field, Params, axpy, check_params, checked, scale, weighted_sum, zeros_like
from bea.trees import Tree

Prefix = tuple[int, tuple[Tree, ...]]
"""A colour c and trees t_1 … t_{k−1}: the map ``v ↦ f_c^{(k)}(F(t_1), …, F(t_{k−1}), v)``."""


class Differentials:
    """The elementary differentials of some fields at one point, each computed once.

    Args:
      fields: f_0, f_1, …; colour c of a tree stands for ``fields[c]``.
      params: θ.
      names: how errors call field number c.
    """

    def __init__(self, fields: Sequence[Field], params: Params, names: str = "field"):
        check_params(params)
        self.params = params
        self._fields = [checked(field, names.format(c)) for c, field in enumerate(fields)]
        self._linearised: dict[Prefix, Any] = {}
        self._known: dict[Tree, Params] = {}

    def _derivative(self, prefix: Prefix) -> Field:
        """``θ ↦ f_c^{(k−1)}(θ)(F(t_1), …, F(t_{k−1}))`` with the vectors held fixed."""
        colour, inner = prefix
        if not inner:
            return self._fields[colour]
        lower, direction = self._derivative((colour, inner[:-1])), self(inner[-1])
        return lambda point: directional_derivative(lower, point, direction)

    def linear(self, prefix: Prefix) -> Any:
        """``(f_c^{(k−1)}(…), v ↦ f_c^{(k)}(…, v))``."""
        if prefix not in self._linearised:
            self._linearised[prefix] = jax.linearize(self._derivative(prefix), self.params)
        return self._linearised[prefix]

    def __call__(self, tree: Tree) -> Params:
        """F(t), a tree like params."""
        if tree not in self._known:
            children = tree.children
            if children:
                self._known[tree] = self.linear((tree.colour, children[:-1]))[1](self(children[-1]))
            else:
                self._known[tree] = self.linear((tree.colour, ()))[0]
        return self._known[tree]

    def combination(self, weights: Mapping[Tree, Any]) -> Params:
        """``Σ c(t) F(t)``. Trees that differ in their last child only share one application of a linear map."""
        singles: list[tuple[Any, Tree]] = []
        groups: dict[Prefix, list[tuple[Any, Tree]]] = {}
        for tree, weight in weights.items():
            children = tree.children
            if children:
                groups.setdefault((tree.colour, children[:-1]), []).append((weight, children[-1]))
            else:
                singles.append((weight, tree))
        total = weighted_sum([w for w, _ in singles], [self(t) for _, t in singles]) if singles else None
        for prefix, terms in groups.items():
            direction = weighted_sum([w for w, _ in terms], [self(t) for _, t in terms])
            part = self.linear(prefix)[1](direction)
            total = part if total is None else axpy(1.0, part, total)
        return zeros_like(self.params) if total is None else total


def elementary_differential(tree: Tree | str, fields: Field | Sequence[Field]) -> Field:
    r"""The elementary differential of a rooted tree.

    .. math:: F([t_1, \dots, t_k]_c) = f_c^{(k)}\bigl(F(t_1), \dots, F(t_k)\bigr)

    ``"[]"`` is f, ``"[[]]"`` is f'f, ``"[[][]]"`` is f''(f, f), ``"[[[]]]"`` is f'f'f; with two fields ``"[1[]]"`` is
    f_0'f_1 (see ``bea.trees``).

    Args:
      tree: the tree or its text.
      fields: f, or f_0, f_1, … one for each colour.

    Returns:
      ``params -> F(t)``; it can be jitted. A node with k children costs k nested derivatives of its field, about 2^k
      gradients.

    Raises:
      ValueError: the text is no tree, or has a colour without a field; when evaluated, params has an entry that is not
        finite or the field returns another tree.
      TypeError: a leaf of params is not floating.
    """
    shape = Tree(tree)
    chosen = [fields] if callable(fields) else list(fields)
    if max(shape.colours) >= len(chosen):
        raise ValueError(
            f"the tree {str(shape)!r} has a node of colour {max(shape.colours)}, but there are {len(chosen)} fields: "
            "colours count from 0, one for each field"
        )
    return lambda params: scale(1.0, Differentials(chosen, params, names="field {}")(shape))
