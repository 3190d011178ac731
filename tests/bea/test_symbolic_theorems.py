"""Theorems of backward error analysis for training, for abstract losses: undefined functions, generic matrices.

``Function("E")(x, y)`` is any smooth loss of two parameters: its partial derivatives are independent symbols, so an
identity between them holds for every loss.
"""

import itertools
from fractions import Fraction

import pytest
import sympy as sp

from bea.symbolic import (
    LinearGrowth,
    NotAGradient,
    Phase,
    Step,
    antisymmetric_part,
    commutator,
    compose,
    corrections,
    gradient_field,
    gradient_order,
    is_gradient_series,
    lie_bracket,
    loss_conflict,
    minibatch_field,
    minibatch_loss,
    modified_equation,
    modified_field,
    modified_loss,
    momentum_equation,
    momentum_field,
    momentum_loss,
    split_gradient,
)
from bea.symbolic.losses import averaged_over_orders
from bea.trees import Tree

x, y, z, h, h1, h2, n1, n2, b = sp.symbols("x y z h h1 h2 n1 n2 beta")
XY = [x, y]
E, E1, E2, E3 = (sp.Function(name)(x, y) for name in ("E", "E1", "E2", "E3"))


def gradient(loss, symbols=XY):
    return -gradient_field(loss, symbols)


def zero(expr):
    return sp.expand(sp.expand(expr).doit()) == 0


def norm2(vector):
    return (vector.T * vector)[0]


def symmetric(name, n):
    return sp.Matrix(n, n, lambda i, j: sp.Symbol(f"{name}{min(i, j)}{max(i, j)}"))


# --- one phase ---


def test_the_first_correction_of_gradient_descent_is_the_gradient_of_the_implicit_regularizer_for_any_loss():
    claimed = E + h / 4 * norm2(gradient(E))
    found = modified_field(gradient_field(E, XY), XY, h, 2, simplify=False)
    assert all(zero(v + sp.diff(claimed, s)) for v, s in zip(found, XY, strict=True))
    assert zero(modified_loss(E, XY, h, 2) - claimed)
    wrong = E + h / 2 * norm2(gradient(E))
    assert not all(zero(v + sp.diff(wrong, s)) for v, s in zip(found, XY, strict=True))


def test_a_gradient_descent_step_is_the_flow_of_the_modified_loss_for_any_loss():
    # time-h flow by its Taylor series (Lie derivatives), compared with the step through h²
    field = modified_field(gradient_field(E, XY), XY, h, 2, simplify=False)
    for s in XY:
        term, flow = s, s
        for k in range(1, 3):
            term = sum(v * sp.diff(term, u) for v, u in zip(field, XY, strict=True))
            flow += h**k / sp.factorial(k) * term
        rest = sp.expand((flow - (s - h * sp.diff(E, s))).doit())
        assert all(sp.expand(rest.coeff(h, k)) == 0 for k in range(3))
        assert sp.expand(rest.coeff(h, 3)) != 0


def test_the_second_correction_of_gradient_descent_has_the_published_form_for_any_loss():
    g, hessian = gradient(E), sp.hessian(E, XY)
    third = sp.Matrix(
        [sum(sp.diff(E, s, u, v) * g[i] * g[j] for i, u in enumerate(XY) for j, v in enumerate(XY)) for s in XY]
    )
    claimed = -(hessian * hessian * g) / 3 - third / 12
    found = corrections(gradient_field(E, XY), XY, 3, simplify=False)[2]
    assert all(zero(a - c) for a, c in zip(found, claimed, strict=True))


def test_the_second_correction_is_no_gradient_in_general_and_the_code_finds_a_counterexample():
    found = None
    monomials = [x**i * y**j for i, j in itertools.product(range(3), range(3)) if i + j]
    for first, second in itertools.combinations(monomials, 2):
        loss = first + second
        if loss.free_symbols != {x, y}:
            continue
        try:
            modified_loss(loss, XY, h, 3)
        except NotAGradient as error:
            found = loss, error
            break
    assert found is not None
    loss, error = found
    assert error.order == 3
    assert any(error.antisymmetric)
    assert error.antisymmetric == -error.antisymmetric.T
    assert zero(error.loss - (loss + h / 4 * norm2(gradient(loss))))
    assert all(
        zero(v - w) for v, w in zip(error.field, modified_field(gradient_field(loss, XY), XY, h, 3), strict=True)
    )


def test_the_second_correction_is_no_gradient_for_the_abstract_loss_either():
    assert any(antisymmetric_part(corrections(gradient_field(E, XY), XY, 3, simplify=False)[2], XY))
    assert not any(antisymmetric_part(corrections(gradient_field(E, XY), XY, 2, simplify=False)[1], XY))


def test_in_every_dimension_gradient_descent_has_a_modified_loss_through_order_two_only():
    assert gradient_order("euler", 6) == 2
    assert gradient_order("rk4", 5) == 4
    euler = modified_equation("euler", 3)
    assert is_gradient_series(euler, 2)
    assert not is_gradient_series(euler, 3)
    potential, rest = split_gradient(euler)
    assert potential == {Tree("[]"): 1, Tree("[[]]"): Fraction(1, 4), Tree("[[][]]"): Fraction(5, 36)}
    assert set(rest) == {Tree("[[][]]"), Tree("[[[]]]")}


def test_in_one_dimension_every_correction_is_a_gradient():
    loss = sp.Function("E")(x)
    for correction in corrections(gradient_field(loss, [x]), [x], 5, simplify=False):
        assert not any(antisymmetric_part(correction, [x]))
    found = modified_loss(x**4 + x**3, [x], h, 5)
    field = modified_field(gradient_field(x**4 + x**3, [x]), [x], h, 5)
    assert zero(sp.diff(found, x) + field[0])


@pytest.mark.parametrize("rotation", [sp.eye(2), sp.Matrix([[3, -4], [4, 3]]) / 5], ids=["axes", "rotated"])
def test_with_commuting_hessians_the_second_correction_is_a_gradient(rotation):
    # Hessians that commute at all points have common eigenvectors: the loss is separable in those coordinates
    u, v = rotation * sp.Matrix(XY)
    f, g = sp.Function("f"), sp.Function("g")
    loss = (f(u) + g(v)).doit()
    hessian = sp.hessian(loss, XY).doit()
    elsewhere = hessian.subs({x: sp.Symbol("X"), y: sp.Symbol("Y")}, simultaneous=True).doit()
    assert (hessian * elsewhere - elsewhere * hessian).doit().applyfunc(sp.simplify) == sp.zeros(2)
    t = sp.Symbol("t")
    concrete = loss.subs({f: sp.Lambda(t, t**4 + t**3), g: sp.Lambda(t, t**3 - t**2)}).doit()
    field = modified_field(gradient_field(concrete, XY), XY, h, 4)
    found = modified_loss(concrete, XY, h, 4)
    assert all(zero(sp.diff(found, s) + w) for s, w in zip(XY, field, strict=True))
    mixed = concrete + x**2 * y  # and a loss whose Hessians do not commute has none
    with pytest.raises(NotAGradient):
        modified_loss(mixed, XY, h, 3)


# --- closed forms ---


def test_quadratics_have_the_modified_hessian_minus_log_to_all_orders():
    """``H̃ = −log(1 − hH)/h``, by its series."""
    hessian, theta = sp.Matrix([[2, 1], [1, 3]]), sp.Matrix(XY)
    loss = (theta.T * hessian * theta)[0] / 2
    terms = [h ** (k - 1) * hessian**k / k for k in range(1, 8)]
    field = modified_field(gradient_field(loss, XY), XY, h, 7)
    assert (field + sum(terms, sp.zeros(2)) * theta).applyfunc(sp.expand) == sp.zeros(2, 1)
    assert zero(modified_loss(loss, XY, h, 5) - (theta.T * sum(terms[:5], sp.zeros(2)) * theta)[0] / 2)


def test_two_layer_deep_linear_nets_have_the_closed_modified_loss():
    names = sp.symbols("a:6")
    first, second, target = sp.Matrix(2, 2, names[:4]), sp.Matrix(1, 2, names[4:]), sp.Matrix([[1, 2]])
    residual = second * first - target
    loss = (residual.T * residual).trace() / 2
    norms = sum((g.T * g).trace() for g in (second.T * residual, residual * first.T))
    assert zero(modified_loss(sp.expand(loss), list(names), h, 2) - loss - h / 4 * norms)


def test_the_modified_field_of_a_scalar_deep_linear_net_multiplies_the_balance_as_the_step_does():
    loss, order = (x * y - 1) ** 2 / 2, 3
    field = modified_field(gradient_field(loss, XY), XY, h, order, simplify=False)
    term = flowed = x**2 - y**2
    for k in range(1, order + 1):  # time-h flow by Lie derivatives
        term = sp.expand(sum(v * sp.diff(term, s) for v, s in zip(field, XY, strict=True)))
        flowed += h**k * term / sp.factorial(k)
    # one step multiplies the balance by exactly this factor
    rest = sp.Poly(sp.expand(flowed - (x**2 - y**2) * (1 - h**2 * (x * y - 1) ** 2)), h)
    assert all(rest.coeff_monomial(h**k) == 0 for k in range(order + 1))
    assert rest.coeff_monomial(h ** (order + 1)) != 0


# --- several phases ---


def test_two_phases_have_the_published_field_for_any_losses_and_any_repeats():
    f1, f2 = (gradient_field(e, XY) for e in (E1, E2))
    found = compose([Phase(f1, h1, n1), Phase(f2, h2, n2)], XY, 2, simplify=False)
    t1, t2 = n1 * h1, n2 * h2
    own = [f.jacobian(sp.Matrix(XY)) * f for f in (f1, f2)]
    claimed = (
        t1 * f1 + t2 * f2 - n1 * h1**2 * own[0] / 2 - n2 * h2**2 * own[1] / 2 + t1 * t2 * lie_bracket(f1, f2, XY) / 2
    )
    assert all(zero(a - c) for a, c in zip(found, claimed, strict=True))


def test_the_bracket_of_two_gradient_fields_is_the_conflict_term_for_any_losses():
    g1, g2, H1, H2 = gradient(E1), gradient(E2), sp.hessian(E1, XY), sp.hessian(E2, XY)
    found = lie_bracket(-g1, -g2, XY)
    assert all(zero(a - c) for a, c in zip(found, H2 * g1 - H1 * g2, strict=True))


def test_the_conflict_of_different_sources_is_what_swapping_the_phases_changes_for_any_losses():
    # L2 after (1 then 2) minus after (2 then 1), from the steps themselves by Taylor expansion: h1 h2 ⟨g2, [f1, f2]⟩
    g1, g2, H1, H2 = gradient(E1), gradient(E2), sp.hessian(E1, XY), sp.hessian(E2, XY)

    def after(first, second, hess):  # θ − a·first − b·(second at the moved point), through order two
        (a, ga), (c, gc) = first, second
        return -a * ga - c * gc + a * c * hess * ga

    ahead = after((h1, g1), (h2, g2), H2) - after((h2, g2), (h1, g1), H1)
    lead = sp.expand((g2.T * ahead)[0])
    assert zero(lead - h1 * h2 * loss_conflict(E1, E2, XY))
    assert not zero(lead)
    critical = {sp.Derivative(E1, x): 0, sp.Derivative(E1, y): 0}
    at_critical = loss_conflict(E1, E2, XY).subs({sp.Derivative(E2, x): 0, sp.Derivative(E2, y): 0})
    assert at_critical.subs(critical) == 0 == at_critical


def test_phases_that_commute_have_no_conflict():
    f1, f2 = gradient_field(x**2 + 3 * y**2, XY), gradient_field(5 * x**2 - y**2, XY)
    assert lie_bracket(f1, f2, XY) == sp.zeros(2, 1)
    assert lie_bracket(f1, gradient_field(x * y, XY), XY) != sp.zeros(2, 1)


# --- minibatches ---


def test_smiths_formula_for_minibatches_without_replacement_is_derived_for_any_losses():
    losses = [E1, E2, E3]
    derived = minibatch_field(losses, XY, h, 2)
    mean = sum(losses) / 3
    spread = sum(norm2(gradient(e - mean)) for e in losses)
    smith = mean + h / 4 * norm2(gradient(mean)) + h / 12 * spread
    assert all(zero(v + sp.diff(smith, s)) for v, s in zip(derived, XY, strict=True))
    assert zero(minibatch_loss(losses, XY, h) - smith)
    without_spread = smith - h / 12 * spread
    assert not all(zero(v + sp.diff(without_spread, s)) for v, s in zip(derived, XY, strict=True))


@pytest.mark.parametrize("batches", [2, 3, 4, 5])
def test_averaging_over_orders_leaves_only_the_terms_of_each_batch_with_itself(batches):
    # in every dimension: conflict terms cancel, −½ f_i' f_i stays, which is −(1/4)∇|∇E_i|² for gradients
    series = averaged_over_orders(batches, 2)
    for tree, value in series.items():
        expected = 1 if tree.order == 1 else Fraction(-1, 2) if len(set(tree.colours)) == 1 else 0
        assert value == expected


def test_one_order_alone_has_conflict_terms():
    assert modified_equation([Step(field=0), Step(field=1)], 2)[Tree("[1[]]")] == Fraction(-1, 2)


# --- momentum ---


def test_momentum_on_its_slow_manifold_has_the_published_factor_for_any_loss():
    eta = h / (1 - b)
    claimed = E + eta * (1 + b) / (4 * (1 - b)) * norm2(gradient(E))
    found = momentum_loss(E, XY, h, b)
    assert sp.simplify(found - claimed) == 0
    field = momentum_field(gradient_field(E, XY), XY, h, b, 2)
    assert all(sp.simplify((v + sp.diff(claimed, s)).doit()) == 0 for v, s in zip(field, XY, strict=True))


def test_momentum_on_a_quadratic_is_the_dominant_root():
    # θ_n = ρ^n with ρ² − (1 + β − hλ)ρ + β = 0; log ρ as a series in h is minus the displacement's coefficients
    lam = sp.Symbol("lambda")
    order, beta = 4, sp.Rational(1, 3)
    trace = 1 + beta - h * lam
    root = (trace + sp.sqrt(trace**2 - 4 * beta)) / 2
    series = sp.series(sp.log(root), h, 0, order + 1).removeO()
    tall, tree = 0, Tree()
    for coefficient in range(1, order + 1):
        value = momentum_equation(beta, order)[tree]
        tall += sp.Rational(value.numerator, value.denominator) * (-h * lam) ** coefficient
        tree = Tree.of([tree])
    assert sp.expand(series - tall) == 0


def test_symbolic_momentum_specialises_to_rational_momentum():
    symbolic = momentum_equation(b, 4)
    for beta in (Fraction(0), Fraction(1, 2), Fraction(9, 10)):
        at = {b: sp.Rational(beta.numerator, beta.denominator)}
        assert {t: sp.sympify(c).subs(at) for t, c in symbolic.items()} == {
            t: sp.Rational(c.numerator, c.denominator) for t, c in momentum_equation(beta, 4).items()
        }


# --- growth ---


@pytest.mark.parametrize("n", [2, 3])
def test_the_conflict_of_function_preserving_growth_leaves_the_loss_for_any_gradient_hessian_and_metrics(n):
    H, P, M = (symmetric(name, n) for name in "HPM")
    g = sp.Matrix(sp.symbols(f"g:{n}"))
    assert sp.expand((g.T * commutator(H, P, g, M))[0]) == 0
    assert sp.expand((g.T * commutator(H, P, g))[0]) == 0
    assert any(sp.expand(e) for e in commutator(H, P, g))  # while the parameters do move
    crooked = sp.Matrix(n, n, lambda i, j: sp.Symbol(f"Q{i}{j}"))
    assert sp.expand((g.T * commutator(H, crooked, g))[0]) != 0  # symmetry of P is needed


def test_growth_that_preserves_the_function_follows_the_metric_and_its_conflict_is_the_commutator():
    grown, small = list(sp.symbols("X Y Z")), [x, y]
    growth = LinearGrowth([[1, 0], [0, 1], [0, 1]])
    loss = sp.Function("L")(*grown)
    restricted = growth.restrict(loss, grown, small).doit()
    pushed = growth.embed * gradient_field(restricted, small)  # J f_s at θ
    image = dict(zip(grown, growth.embed * sp.Matrix(small), strict=True))
    claimed = growth.metric_field(loss, grown)
    for quadratic in (grown[0] ** 2 * grown[1] + grown[2] ** 3, grown[0] * grown[1] * grown[2]):
        put = lambda e, q=quadratic: e.subs(loss, q).doit()
        concrete = growth.embed * gradient_field(growth.restrict(quadratic, grown, small), small)
        assert (concrete - put(claimed).subs(image, simultaneous=True)).applyfunc(sp.expand) == sp.zeros(3, 1)
    assert pushed.shape == (3, 1)
    before, after = growth.metric_field(loss, grown), gradient_field(loss, grown)
    hessian = sp.hessian(loss, grown)
    bracket = lie_bracket(before, after, grown)
    assert all(
        zero(v - w) for v, w in zip(bracket, commutator(hessian, growth.metric, gradient(loss, grown)), strict=True)
    )


def test_the_pushed_field_is_the_small_phase_on_the_image():
    growth, small, grown = LinearGrowth([[1, 0], [1, 0], [0, 2]]), [x, y], list(sp.symbols("X Y Z"))
    field = gradient_field(x**3 * y, small)
    pushed = growth.push(field, small, grown)
    at = dict(zip(grown, growth.embed * sp.Matrix(small), strict=True))
    assert (pushed.subs(at, simultaneous=True) - growth.embed * field).applyfunc(sp.expand) == sp.zeros(3, 1)
    assert growth.pseudo_inverse * growth.embed == sp.eye(2)
    assert growth.metric == growth.embed * growth.embed.T


def test_growth_may_have_a_kernel_and_then_inverts_with_least_norm():
    growth = LinearGrowth([[1, 0, 0], [0, sp.Rational(1, 2), sp.Rational(1, 2)]])  # a weight kept, two biases averaged
    embed, back = growth.embed, growth.pseudo_inverse
    assert embed * back * embed == embed
    assert back * embed == (back * embed).T
    assert back * sp.Matrix([0, 1]) == sp.Matrix([0, 1, 1])


def test_the_first_effect_of_the_conflict_on_the_loss_is_of_third_order():
    # one step under the metric P and one plain step, in both orders, on a cubic loss of any gradient and Hessian
    c = sp.symbols("c:5")
    loss = sum(a * m for a, m in zip(c, (x, y, x**2, x * y, y**2), strict=True))
    loss += 2 * x**3 - 3 * x**2 * y + 5 * x * y**2 + 7 * y**3
    at, P = {x: 0, y: 0}, sp.Matrix([[2, 1], [1, 3]])  # the coefficients are generic, so the origin is
    plain = gradient_field(loss, XY)
    skewed = P * plain
    step = lambda field, point: point + h * field.subs(dict(zip(XY, point, strict=True)), simultaneous=True)
    one, other = (step(b, step(a, sp.zeros(2, 1))) for a, b in ((skewed, plain), (plain, skewed)))
    apart = (one - other).applyfunc(sp.expand)
    H, g = sp.hessian(loss, XY).subs(at), gradient(loss).subs(at)
    assert apart.applyfunc(lambda e: e.coeff(h, 2)) == commutator(H, P, g).applyfunc(sp.expand)
    value = lambda point: loss.subs(dict(zip(XY, point, strict=True)), simultaneous=True)
    gap = sp.Poly(sp.expand(value(one) - value(other)), h)
    assert all(gap.coeff_monomial(h**k) == 0 for k in range(3))
    assert gap.coeff_monomial(h**3) != 0
