r"""Modified equations known in closed form, as references for series and numbers.

* Quadratics: one step is :math:`\theta \mapsto (1 - hH)\theta`, so the modified Hessian is :math:`-\log(1 - hH)/h` to
  all orders.
* Two-layer deep linear nets :math:`E = \frac12\|W_2 W_1 - S\|^2`: the modified loss of order 2, and the balance
  :math:`D = W_1 W_1^T - W_2^T W_2`, constant along the gradient flow, which one step changes by exactly
  :math:`h^2(G_1 G_1^T - G_2^T G_2)`.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from bea.symbolic.fields import check_expression


def quadratic_modified_hessian(hessian: Any, step: Any) -> sp.Matrix:
    r""":math:`\tilde H = -\log(1 - hH)/h`, all orders, for a diagonalizable H.

    Args:
      hessian: a square symmetric matrix of exact entries.
      step: h; with 1 − hλ > 0 for all eigenvalues λ the result is real.

    Raises:
      ValueError: the matrix is not square or not symmetric.
    """
    h, matrix = sp.sympify(step), _symmetric(hessian)
    vectors, values = matrix.diagonalize()
    logs = sp.diag(*(-sp.log(1 - h * value) / h for value in values.diagonal()))
    return (vectors * logs * vectors.inv()).applyfunc(sp.simplify)


def quadratic_modified_series(hessian: Any, step: Any, order: int) -> sp.Matrix:
    r"""The same as a series, :math:`\sum_{k=1}^{p} h^{k-1} H^k / k`."""
    h, matrix = sp.sympify(step), _symmetric(hessian)
    terms = (h ** (k - 1) * matrix**k / k for k in range(1, order + 1))
    return sum(terms, sp.zeros(*matrix.shape)).applyfunc(sp.expand)


def _symmetric(hessian: Any) -> sp.Matrix:
    matrix = sp.Matrix(hessian)
    if matrix.rows != matrix.cols or not matrix.equals(matrix.T):
        raise ValueError(f"a Hessian is a square symmetric matrix, not {matrix.rows} × {matrix.cols} {matrix.tolist()}")
    return matrix.applyfunc(lambda e: check_expression(e, "the Hessian"))


def two_layer_loss(first: sp.MatrixBase, second: sp.MatrixBase, target: sp.MatrixBase) -> sp.Expr:
    r""":math:`E = \frac12 \|W_2 W_1 - S\|_F^2`, the loss on whitened inputs."""
    residual = second * first - target
    return sp.expand((residual.T * residual).trace() / 2)


def two_layer_gradients(
    first: sp.MatrixBase, second: sp.MatrixBase, target: sp.MatrixBase
) -> tuple[sp.Matrix, sp.Matrix]:
    r""":math:`G_1 = W_2^T R,\; G_2 = R W_1^T` with the residual :math:`R = W_2 W_1 - S`."""
    residual = second * first - target
    return second.T * residual, residual * first.T


def two_layer_modified_loss(first: sp.MatrixBase, second: sp.MatrixBase, target: sp.MatrixBase, step: Any) -> sp.Expr:
    r""":math:`\tilde E = E + \frac h4 (\|W_2^T R\|^2 + \|R W_1^T\|^2)`, right through order 2."""
    norms = sum((g.T * g).trace() for g in two_layer_gradients(first, second, target))
    return sp.expand(two_layer_loss(first, second, target) + sp.sympify(step) / 4 * norms)


def balance(first: sp.MatrixBase, second: sp.MatrixBase) -> sp.Matrix:
    r""":math:`D = W_1 W_1^T - W_2^T W_2`, constant along the gradient flow."""
    return first * first.T - second.T * second


def scalar_two_layer_balance_factor(a: Any, b: Any, target: Any, step: Any) -> sp.Expr:
    r"""One step on :math:`\frac12(ab - s)^2` multiplies :math:`a^2 - b^2` by exactly :math:`1 - h^2(ab - s)^2`."""
    a, b, target, h = (sp.sympify(value) for value in (a, b, target, step))
    return 1 - h**2 * (a * b - target) ** 2
