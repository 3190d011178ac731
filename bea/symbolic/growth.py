r"""Growth events in symbols: a linear map J from a small parameter space into a grown one.

In the grown space the small phase follows :math:`f_1(\Theta) = J f_s(J^+\Theta)`. If growing preserves the
function (:math:`L \circ J = L_s`), that is :math:`-P\nabla L` with the constant metric :math:`P = JJ^T`, and the
conflict between the phases is the commutator :math:`(MHP - PHM)\nabla L`, M the metric of the grown optimizer.

Source: theory.md, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy as sp

from bea.symbolic.fields import Components, Symbols, check_expression, check_symbols, gradient_field, tidy


def commutator(
    hessian: sp.MatrixBase, metric: sp.MatrixBase, gradient: sp.MatrixBase, grown_metric: sp.MatrixBase | None = None
) -> sp.Matrix:
    r"""Return (M H P − P H M) g; with M = 1 this is [H, P] g. Entries may be any sympy expressions.

    Source: theory.md, (3.2).
    """
    grown_metric = sp.eye(hessian.rows) if grown_metric is None else grown_metric
    return (grown_metric * hessian * metric - metric * hessian * grown_metric) * gradient


@dataclass(frozen=True, init=False)
class LinearGrowth:
    """The growth event Θ = J θ.

    Args:
      embed: J, a grown × small matrix of exact entries. It may have a kernel, as for the mean of two biases.

    Raises:
      ValueError: J is empty or has floats.

    Source: theory.md, (3.1).
    """

    embed: sp.ImmutableMatrix

    def __init__(self, embed: Any):
        matrix = sp.ImmutableMatrix(embed)
        if not matrix.rows or not matrix.cols:
            raise ValueError(f"the growth matrix is {matrix.rows} × {matrix.cols} (grown × small): it has no entries")
        for entry in matrix:
            check_expression(entry, "the growth matrix")
        object.__setattr__(self, "embed", matrix)

    @property
    def pseudo_inverse(self) -> sp.Matrix:
        """J⁺ (Moore–Penrose): (JᵀJ)⁻¹Jᵀ if J is injective, else the inverse of least norm."""
        return sp.Matrix(self.embed.pinv())

    @property
    def metric(self) -> sp.Matrix:
        """P = J Jᵀ, the metric that the small phase uses in the grown space."""
        return sp.Matrix(self.embed * self.embed.T)

    def restrict(self, loss: Any, grown: Symbols, small: Symbols) -> sp.Expr:
        """Return L ∘ J, the loss as a function of the small parameters."""
        image = self.embed * sp.Matrix(list(small))
        return sp.expand(sp.sympify(loss).subs(dict(zip(grown, image, strict=True)), simultaneous=True))

    def push(self, field: Components, small: Symbols, grown: Symbols) -> sp.Matrix:
        """Return the small field in the grown space, Θ ↦ J f_s(J⁺Θ).

        Raises:
          ValueError: the symbols or the components are not as many as J has columns or rows.
        """
        rows, columns = self.embed.shape
        if (len(grown), len(small), len(list(field))) != (rows, columns, columns):
            raise ValueError(
                f"J is {rows} × {columns}, but there are {len(grown)} grown symbols, {len(small)} small ones and "
                f"{len(list(field))} components of the small field"
            )
        back = self.pseudo_inverse * sp.Matrix(list(grown))
        inside = sp.Matrix(list(field)).subs(dict(zip(small, back, strict=True)), simultaneous=True)
        return sp.Matrix(self.embed * inside).applyfunc(tidy)

    def preserves(self, loss: Any, grown: Symbols, small_loss: Any, small: Symbols) -> bool:
        """Return whether L(Jθ) = L_s(θ) identically."""
        return sp.simplify(self.restrict(loss, grown, small) - sp.sympify(small_loss)) == 0

    def metric_field(self, loss: Any, grown: Symbols) -> sp.Matrix:
        """Return −P∇L, the small phase of a function-preserving growth."""
        return (self.metric * gradient_field(loss, grown)).applyfunc(sp.expand)

    def conflict(self, loss: Any, grown: Symbols, grown_metric: sp.MatrixBase | None = None) -> sp.Matrix:
        """Return [f_1, f_2] = (MHP − PHM)∇L for f_1 = −P∇L before and f_2 = −M∇L after the event; if M is None, M = 1.

        Raises:
          ValueError: as :func:`~bea.symbolic.losses.modified_loss`; or the grown symbols are not as many as J has rows.
        """
        loss = check_expression(loss, "the loss")
        check_symbols(grown, [loss], "the loss", all_occur=True)
        if len(grown) != self.embed.rows:
            raise ValueError(f"J grows into {self.embed.rows} parameters, but there are {len(grown)} grown symbols")
        hessian, gradient = sp.hessian(loss, list(grown)), -gradient_field(loss, grown)
        return commutator(hessian, self.metric, gradient, grown_metric).applyfunc(tidy)


def loss_conflict(first: Any, second: Any, symbols: Symbols) -> sp.Expr:
    r"""Return :math:`\langle g_2, H_2 g_1 - H_1 g_2\rangle`, the effect of the phases' conflict on the second loss.

    The conflict term of the composite field changes L_2 by ½ h_1 h_2 times this.

    Source: theory.md, (3.3).
    """
    g1, g2 = (-gradient_field(e, symbols) for e in (first, second))
    h1, h2 = (sp.hessian(e, list(symbols)) for e in (first, second))
    return sp.expand(g2.dot(h2 * g1 - h1 * g2))
