r"""Gradient descent with momentum on its slow manifold, as a tree series.

Heavy ball, :math:`v \leftarrow \beta v + h f(\theta),\; \theta \leftarrow \theta + v`, is the two-step recurrence
:math:`\theta_{n+1} - \theta_n - \beta(\theta_n - \theta_{n-1}) = h f(\theta_n)`. After a transient the iterates
follow the time-one flow of a field X, so with the characters :math:`E_{\pm X}` of its flow forward and backward

.. math:: E_X(t) + \beta E_{-X}(t) = [t = \bullet], \qquad E_{\pm X}(t) = \pm x(t) + (\text{smaller trees}) ,

which gives x(t) one tree after another, exactly, for rational or symbolic β.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import sympy as sp

from bea.symbolic.equation import MEMORY_LIMIT, check_order, with_symmetry
from bea.symbolic.fields import Differentials, Symbols, _checked, check_expression, check_symbols, gradient_field
from bea.symbolic.losses import squared
from bea.symbolic.methods import exact
from bea.trees import Tree, trees

Polynomial = list[Any]


def root_subtrees(tree: Tree) -> list[tuple[Tree, tuple[Tree, ...]]]:
    """Return all ways to cut branches off: (the part with the root, the branches cut), one for each set of cut edges.

    Edges are distinguished, so equal results repeat, as is right for coefficients without symmetry factors.
    """
    choices = [[(None, (child,)), *((kept, cut) for kept, cut in root_subtrees(child))] for child in tree.children]
    found = []
    for pick in itertools.product(*choices):
        kept = Tree.of([part for part, _ in pick if part is not None], tree.colour)
        found.append((kept, tuple(branch for _, cut in pick for branch in cut)))
    return found


def flow_character(field: Mapping[Tree, Any], tree: Tree, known: dict[Tree, Polynomial]) -> Polynomial:
    r"""Return the coefficient of ``tree`` in the time-s flow of a series, as a polynomial in s (list of coefficients).

    .. math:: \frac{d}{ds} E_s(t) = \sum_{\text{cuts}} x(\text{part with the root}) \prod E_s(\text{branches})

    Source: Hairer, Lubich & Wanner, section IX.9.1 (the Lie derivative of a B-series).
    """
    if tree not in known:
        derivative: Polynomial = [0] * tree.order
        for kept, cut in root_subtrees(tree):
            product: Polynomial = [field[kept]]
            for branch in cut:
                product = _product(product, flow_character(field, branch, known))
            for k, value in enumerate(product):
                derivative[k] += value
        known[tree] = [0] + [value * Fraction(1, k + 1) for k, value in enumerate(derivative)]
    return known[tree]


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    total: Polynomial = [0] * (len(a) + len(b) - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        total[i + j] += x * y
    return total


def momentum_equation(beta: Any, order: int) -> dict[Tree, Any]:
    r"""Return the coefficients x(t) of the slow-manifold field of heavy ball, :math:`X = \sum_t h^{|t|} x(t) F(t)/\sigma(t)`.

    X is the displacement per step, of time :math:`\eta = h/(1-\beta)`. The symmetry factor is not in x(t), as in
    :func:`~bea.symbolic.equation.modified_equation`, with which this agrees for β = 0:
    :math:`x(\bullet) = \frac1{1-\beta},\; x([\bullet]) = -\frac{1+\beta}{2(1-\beta)^3}, \dots`

    Args:
      beta: the heavy-ball coefficient: exact and in [0, 1), or a sympy symbol.
      order: p ≥ 1, largest number of nodes.

    Raises:
      ValueError: β is outside [0, 1) or not exact, or the order is below 1 or needs too much memory.
    """
    symbolic = isinstance(beta, sp.Expr) and not beta.is_number
    if not symbolic:
        beta = exact(beta, "beta")
        if not 0 <= beta < 1:
            raise ValueError(f"beta is {beta}: the heavy-ball coefficient lies in [0, 1), where iterates settle")
    check_order(order, 1, MEMORY_LIMIT // 20_000, remedy="the coefficients are rational functions of beta")
    found: dict[Tree, Any] = {}
    forward: dict[Tree, Polynomial] = {}
    for tree in trees(order):
        found[tree] = 0  # first zero, then corrected: the equation is linear in x(t), as ±x(t)
        polynomial = flow_character(found, tree, forward)
        ahead = sum(polynomial)
        behind = sum((-1) ** k * value for k, value in enumerate(polynomial))
        rest = (1 if tree.order == 1 else 0) - ahead - beta * behind
        value = sp.factor(rest / (1 - beta)) if symbolic else Fraction(rest) / (1 - beta)
        found[tree] = value
        polynomial[1] = sp.factor(polynomial[1] + value) if symbolic else polynomial[1] + value
    return found


def momentum_field(field: Any, symbols: Symbols, step: Any, beta: Any, order: int) -> sp.Matrix:
    r"""Return the field whose time-η flow is one step of heavy ball on its slow manifold, :math:`\eta = h/(1-\beta)`.

    .. math:: \tilde f = f - \frac{\eta}{2}\,\frac{1+\beta}{1-\beta}\, f'f + O(\eta^2)

    Args:
      field: components of f (−∇E for gradient descent).
      symbols: the parameters.
      step: h.
      beta: exact β in [0, 1) or a symbol.
      order: p ≥ 1; the displacement per step is exact through h^p.
    """
    (f,) = _checked([field], symbols, order)
    check_symbols(symbols, f, "the field", [step])
    table, h, total = Differentials([f], symbols, order), sp.sympify(step), sp.zeros(len(symbols), 1)
    for tree, value in with_symmetry(momentum_equation(beta, order)).items():
        scale = sp.factor(sp.sympify(value) * (1 - sp.sympify(beta)))
        total += scale * h ** (tree.order - 1) * table.shown(table.combination({tree: Fraction(1)}))
    return total


def momentum_loss(loss: Any, symbols: Symbols, step: Any, beta: Any) -> sp.Expr:
    r"""Return the modified loss of heavy ball on its slow manifold, first two orders.

    .. math:: \tilde E = E + \frac{\eta}{4}\,\frac{1+\beta}{1-\beta}\,\|\nabla E\|^2, \qquad \eta = \frac{h}{1-\beta}

    The factor is computed by :func:`momentum_equation`. The flow of −∇Ẽ for the time η is one step.

    Source: theory.md, (1.5).
    """
    loss = check_expression(loss, "the loss")
    check_symbols(symbols, [loss], "the loss", [step], all_occur=True)
    series = momentum_equation(beta, 2)
    first, second = (sp.sympify(series[Tree(t)]) for t in ("[]", "[[]]"))
    table = Differentials([gradient_field(loss, symbols)], symbols, 1)
    square = squared(table, table.field(), sp.Integer(1))
    return loss + sp.factor(-second / first / 2) * sp.sympify(step) * square
