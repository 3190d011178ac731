r"""Elementary differentials on pytrees, and sums of them over rooted trees.

.. math:: F([t_1, \dots, t_k]_c)(\theta) = f_c^{(k)}(\theta)\bigl(F(t_1)(\theta), \dots, F(t_k)(\theta)\bigr)

No derivative is ever formed. A sum over trees is evaluated from the root: all trees that differ in their last child only
share one derivative along the weighted sum of these children's differentials, and ``f'a + f''(u, b)`` is one derivative
of ``(θ, u) ↦ f'(θ)u`` along ``(b, a)``. Under jit the compiler shares what two derivatives have in common (the same point,
the same direction).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bea.fields import directional_derivative
from bea.pytrees import Field, Params, check_params, checked, scale, weighted_sum, zeros_like
from bea.trees import Tree


class Differentials:
    """The elementary differentials of some fields at one point.

    Args:
      fields: f_0, f_1, …; colour c of a tree stands for ``fields[c]``.
      params: θ.
      names: name of field number c in errors, as a format string.
    """

    def __init__(self, fields: Sequence[Field], params: Params, names: str = "field"):
        check_params(params)
        self.params = params
        self._fields = [checked(field, names.format(c)) for c, field in enumerate(fields)]
        self._known: dict[Tree, Params] = {}

    def __call__(self, tree: Tree) -> Params:
        """Return F(t), a tree like params; computed once."""
        if tree not in self._known:
            field, children = self._fields[tree.colour], [self(child) for child in tree.children]
            self._known[tree] = self._derivative(field, children)(self.params)
        return self._known[tree]

    @staticmethod
    def _derivative(field: Field, directions: Sequence[Params]) -> Field:
        """Return ``θ ↦ f^{(k)}(θ)(u_1, …, u_k)`` with the directions held fixed."""
        for u in directions:
            field = lambda point, lower=field, u=u: directional_derivative(lower, point, u)  # type: ignore[misc]
        return field

    def combination(self, weights: Mapping[Tree, Any]) -> Params:
        """Return ``Σ c(t) F(t)``, a tree like params."""
        # {colour: {all children but the last: {last child: weight}}}
        groups: dict[int, dict[tuple[Tree, ...], dict[Tree, Any]]] = {}
        terms: list[tuple[Any, Params]] = []
        for tree, weight in weights.items():
            if tree.order <= 2:  # these occur in many trees, and are computed once
                continue
            *inner, last = tree.children
            groups.setdefault(tree.colour, {}).setdefault(tuple(inner), {})[last] = weight
        for tree, weight in weights.items():
            if tree.order == 1 or (tree.order == 2 and () not in groups.get(tree.colour, {})):
                terms.append((weight, self(tree)))
            elif tree.order == 2:
                groups[tree.colour][()][tree.children[0]] = weight
        for colour, group in groups.items():
            terms += self._derivatives(self._fields[colour], group)
        if not terms:
            return zeros_like(self.params)
        return weighted_sum([weight for weight, _ in terms], [part for _, part in terms])

    def _derivatives(
        self, field: Field, group: Mapping[tuple[Tree, ...], Mapping[Tree, Any]]
    ) -> list[tuple[Any, Params]]:
        """Return ``Σ f^{(k)}(F(t_1), …, F(t_{k−1}), Σ c F(t_k))`` of one field, as weighted terms."""
        straight, terms = group.get(()), []
        for inner, lasts in group.items():
            if not inner:
                continue
            weight: Any = 1.0
            if len(lasts) == 1:  # the direction itself, not a multiple of it: its derivative may be computed already
                ((last, weight),) = lasts.items()
                direction = self(last)
            else:
                direction = self.combination(lasts)
            if straight and len(inner) == 1:
                along = self.combination({tree: c / weight for tree, c in straight.items()})
                straight = None
                slope = lambda point, u: directional_derivative(field, point, u)
                _, part = jax.jvp(slope, (self.params, self(inner[0])), (direction, along))
            else:
                fixed = [self(child) for child in inner]
                part = self._derivative(field, [*fixed, direction])(self.params)
            terms.append((weight, part))
        if straight:
            terms.append((1.0, directional_derivative(field, self.params, self.combination(straight))))
        return terms


def elementary_differential(tree: Tree | str, fields: Field | Sequence[Field]) -> Field:
    r"""Return the elementary differential of a rooted tree.

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
