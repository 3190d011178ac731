r"""Modified fields of any order in Taylor arithmetic, at a cost that grows polynomially with the order.

The modified field solves a fixed-point equation in its own Lie derivative ``D = f̃·∇``. One step is ``exp(hD)``, so
``(exp(hD) − 1)/D f̃ = h f``, that is

.. math:: \tilde f = \frac{hD}{e^{hD} - 1} f = \sum_{k \ge 0} \frac{B_k}{k!}\, h^k D^k f

with the Bernoulli numbers ``B = 1, −1/2, 1/6, 0, −1/30, …``. And ``D^k f(θ)`` is the k-th derivative at time 0 of
``f(y(τ))`` along the flow ``y' = f̃(y)``, whose own Taylor coefficients are ``y^{(m)} = D^{m−1} f̃ = Σ_k B_k/k! h^k
D^{k+m−1} f``: univariate Taylor arithmetic (``jax.experimental.jet``) gives all of them at once. Each pass makes one
power of h more right. Pass q has degree q and costs ``(q+1)(q+2)/2`` gradients at most, so order p costs O(p³) of them,
where nested directional derivatives cost O(c^p).

Source: Hairer, Lubich & Wanner (2006), section IX.1, for the series; the fixed point is its resummation by ``hD``.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import jax
from jax.experimental import jet

from bea.pytrees import Field, Number, Params, check_params, checked, scale, weighted_sum


def bernoulli_ratios(count: int) -> list[Fraction]:
    """Return ``B_k / k!`` for k = 0 … count − 1: the series of ``x / (e^x − 1)``."""
    ratios: list[Fraction] = []
    for k in range(count):
        rest = sum((ratio / math.factorial(k + 1 - i) for i, ratio in enumerate(ratios)), Fraction(0))
        ratios.append(Fraction(int(k == 0)) - rest)
    return ratios


def derivatives_along(field: Field, params: Params, curve: Sequence[Params]) -> list[Params]:
    """Return the derivatives 1 … d of ``f(y(τ))`` at τ = 0, for a curve from ``params`` with the derivatives ``curve``.

    Costs at most ``(d+1)(d+2)/2`` evaluations of f.

    Raises:
      NotImplementedError: the field uses an operation for which JAX has no Taylor rule.
    """
    leaves, tree = jax.tree.flatten(params)
    flat = lambda *point: jax.tree.leaves(field(jax.tree.unflatten(tree, point)))
    series = list(zip(*(jax.tree.leaves(term) for term in curve), strict=True))
    try:
        _, terms = jet.jet(flat, leaves, [list(terms) for terms in series])
    except (NotImplementedError, KeyError) as error:
        raise NotImplementedError(
            f"the field uses an operation without a Taylor rule in JAX ({error}): orders up to 4 need none"
        ) from error
    return [jax.tree.unflatten(tree, [terms[leaf][k] for leaf in range(len(leaves))]) for k in range(len(curve))]


def modified_field_by_taylor(field: Field, step_size: Number, order: int) -> Field:
    """Return the modified field of the Euler step by the fixed point above; ``h f̃`` is right through h^order.

    Unlike in the truncated series, the higher powers of h are not zero: the passes produce a part of them.

    Source: theory.md, (1.2).
    """
    f, h, b = checked(field), step_size, bernoulli_ratios(order)

    def modified(params: Params) -> Params:
        check_params(params)
        lie = [f(params)]  # h^k D^k f, k = 0, 1, …
        for done in range(1, order):
            degree = done if done < order - 1 else max(k for k in range(order) if b[k])
            # h^m y^(m), a tree for each m
            curve = [
                scale(h, weighted_sum([float(b[k]) for k in range(len(lie) + 1 - m)], lie[m - 1 :]))
                if m <= len(lie)
                else scale(0.0, params)
                for m in range(1, degree + 1)
            ]
            lie = [lie[0], *derivatives_along(f, params, curve)]
        return weighted_sum([float(b[k]) for k in range(len(lie))], lie)

    return modified
