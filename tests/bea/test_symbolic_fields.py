"""Fields and losses from formulas: what comes out, what is refused, and that refusals name the culprit."""

import itertools

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from bea.symbolic import (
    FormulaError,
    LinearGrowth,
    NotAGradient,
    Phase,
    compose,
    corrections,
    gradient_field,
    minibatch_field,
    modified_field,
    modified_loss,
    momentum_equation,
    momentum_field,
    parse_formula,
    phase_series,
    potential,
)
from bea.symbolic.brackets import is_gradient_series
from bea.symbolic.rings import is_zero
from bea.trees import Tree
from tests.strategies.symbolic import as_sympy, polynomial_fields

x, y, h, h1, h2, n1, n2 = sp.symbols("x y h h1 h2 n1 n2")
XY = [x, y]


@settings(max_examples=15, deadline=None)
@given(polynomial_fields(2, 3))
def test_polynomial_rings_and_expressions_give_the_same_field(components):
    field = as_sympy(components, XY)
    ring = modified_field(field, XY, h, 3, simplify=False)
    # a field that sympy's rings refuse: the constant term times exp of a symbol that is then put to 0
    a = sp.Symbol("a")
    slow = modified_field([e * sp.exp(a) for e in field], XY, h, 3, simplify=False).subs(a, 0)
    assert (ring - slow).applyfunc(sp.expand) == sp.zeros(2, 1)


def test_simplifying_changes_no_value():
    field = gradient_field(sp.exp(x * y) + sp.sqrt(1 + x**2), XY)
    plain, short = (modified_field(field, XY, h, 3, simplify=s) for s in (False, True))
    assert all(is_zero(a - b) for a, b in zip(plain, short, strict=True))


@settings(max_examples=10, deadline=None)
@given(polynomial_fields(2, 3).filter(lambda f: f[0]), st.integers(2, 4))
def test_a_modified_loss_where_it_exists_is_the_potential_of_the_modified_field(components, order):
    loss = as_sympy(components, XY)[0] + x**2 + y**2 + x * y
    field = modified_field(gradient_field(loss, XY), XY, h, order)
    try:
        found = modified_loss(loss, XY, h, order)
    except NotAGradient as error:
        whole, found, exists = error.field, error.loss, error.order - 1
    else:
        whole, exists = field, order
    assert whole == field
    assert 2 <= exists <= order
    field = modified_field(gradient_field(loss, XY), XY, h, exists)
    assert all(sp.expand(sp.diff(found, s) + v) == 0 for s, v in zip(XY, field, strict=True))


@pytest.mark.parametrize("loss", [sp.exp(x + 2 * y), sp.cos(x - y), sp.sin(x + y) ** 2])
def test_losses_of_one_combination_of_parameters_have_a_modified_loss(loss):
    found = modified_loss(loss, XY, h, 3)
    field = modified_field(gradient_field(loss, XY), XY, h, 3)
    at = {x: sp.Rational(1, 3), y: sp.Rational(2, 7), h: sp.Rational(1, 5)}
    for s, v in zip(XY, field, strict=True):
        assert abs((sp.diff(found, s) + v).subs(at).evalf(40)) < 1e-30


def test_other_methods_have_their_own_modified_loss():
    loss = (x * y - 1) ** 2 / 2
    square = sum(sp.diff(loss, s) ** 2 for s in XY)
    assert sp.expand(modified_loss(loss, XY, h, 2, method="implicit-euler") - loss + h / 4 * square) == 0
    assert sp.expand(modified_loss(loss, XY, h, 2, method="midpoint") - loss) == 0


def test_symbols_that_are_no_parameters_are_constants():
    c = sp.Symbol("c")
    assert sp.expand(modified_loss(c * x**2, [x], h, 2) - (c * x**2 + h * c**2 * x**2)) == 0


def test_a_step_size_may_be_a_number():
    assert modified_loss(x**2, [x], sp.Rational(1, 10), 2) == x**2 + sp.Rational(1, 10) * x**2


@settings(deadline=None)
@given(polynomial_fields(1, 2))
def test_the_potential_of_a_gradient_is_the_function(components):
    phi = as_sympy(components, [x])[0] * x + x**2 * y
    field = sp.Matrix([sp.diff(phi, s) for s in XY])
    assert sp.expand(potential(field, XY) - phi) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5)])
def test_symbolic_repeats_specialise_to_numbers(n, m):
    runs = lambda a, b: [Phase(gradient_field((x * y - 1) ** 2, XY), h1, a), Phase(gradient_field(x**2 * y, XY), h2, b)]
    symbolic = compose(runs(n1, n2), XY, 3, simplify=False).subs({n1: n, n2: m})
    assert (symbolic - compose(runs(n, m), XY, 3, simplify=False)).applyfunc(sp.expand) == sp.zeros(2, 1)


def test_one_phase_is_the_modified_field_times_its_step():
    field = gradient_field(x**2 * y, XY)
    composite = compose([Phase(field, h)], XY, 4)
    assert (composite - h * modified_field(field, XY, h, 4)).applyfunc(sp.expand) == sp.zeros(2, 1)


def test_a_composite_of_gradients_is_a_gradient_through_order_one_only():
    series = {
        t: c.subs({h1: 1, h2: 1}) * t.symmetry for t, c in phase_series([(h1, 1, "euler"), (h2, 1, "euler")], 2).items()
    }
    assert is_gradient_series(series, 1)
    assert not is_gradient_series(series, 2)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (sp.Abs(x) + y, "Abs"), (sp.Max(x, y), "Max"), (sp.Min(x, y), "Min"), (sp.sign(x) * y, "sign"),
        (sp.Piecewise((x, y > 0), (0, True)), "Piecewise"), (sp.floor(x) + y, "floor"),
    ],
)  # fmt: skip
def test_functions_that_are_not_smooth_are_refused_by_name(loss, name):
    for call in (lambda: modified_loss(loss, XY, h, 2), lambda: modified_field([loss, x], XY, h, 2)):
        with pytest.raises(ValueError, match=rf"{name}.* is not smooth"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: modified_loss(x**2, XY, h, 2), "y missing from the loss: its symbols are x"),
        (lambda: modified_loss(sp.Integer(3), [x], h, 2), "x missing from the loss: its symbols are none"),
        (lambda: modified_loss(x**2, [], h, 2), "symbols must be a non-empty sequence"),
        (lambda: modified_loss(x**2, [x, x], h, 2), "symbols has x twice"),
        (lambda: modified_loss(h * x**2, [x], h, 2), "the step size h also occurs in the loss"),
        (lambda: modified_loss(0.5 * x**2, [x], h, 2), "contains the float 0.5"),
        (lambda: modified_loss(sp.oo * x, [x], h, 2), "is not finite"),
        (lambda: modified_loss(x**2, [x], h, 0), "order is 0"),
        (lambda: modified_loss(x**2, [x], h, 10**6), "trees and more than"),
        (lambda: modified_field([x * y], XY, h, 2), "1 components for 2 symbols"),
        (lambda: corrections([x], [x], 40), "trees"),
        (lambda: modified_field(list(sp.symbols("a:30")), sp.symbols("a:30"), h, 5), "symbolic products"),
        (lambda: compose([], [x], 2), "at least one phase"),
        (lambda: compose([Phase([x], h1, 0)], [x], 2), "a whole number of steps"),
        (lambda: compose([Phase([x], h1, sp.Rational(1, 2))], [x], 2), "a whole number of steps"),
        (lambda: compose([Phase([x], x)], [x], 2), "the step size x also occurs"),
        (lambda: minibatch_field([], [x], h, 2), "there are 0 losses"),
        (lambda: minibatch_field([x**2] * 7, [x], h, 2), "there are 7 losses"),
        (lambda: momentum_equation(1, 2), "beta is 1"),
        (lambda: momentum_equation("-1/2", 2), "beta is -1/2"),
        (lambda: momentum_equation(0.5, 2), "0.5, not an exact rational"),
        (lambda: momentum_equation(0, 40), "trees"),
        (lambda: LinearGrowth([]), "has no entries"),
        (lambda: LinearGrowth([[0.5]]), "float 0.5"),
        (lambda: LinearGrowth([[1], [1]]).conflict(x**2, [x]), "1 grown symbols"),
        (lambda: LinearGrowth([[1], [1]]).push([x], [x], [x]), "J is 2 × 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_culprit_in_the_message(call, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        call()


def test_not_a_gradient_says_where_why_and_what_to_do():
    with pytest.raises(NotAGradient, match=r"no modified loss of order 3 .* h\^2 term .* at \(2, 1\); ask for order 2"):
        modified_loss((x * y - 1) ** 2 / 2, XY, h, 5)


def test_not_a_gradient_carries_the_field_and_the_antisymmetric_part_of_its_jacobian():
    with pytest.raises(NotAGradient) as caught:
        modified_loss((x * y - 1) ** 2 / 2, XY, h, 4)
    jacobian = caught.value.field.jacobian(XY)
    assert ((jacobian - jacobian.T) / 2 - caught.value.antisymmetric).applyfunc(sp.expand) == sp.zeros(2)
    lowest = caught.value.antisymmetric.applyfunc(lambda e: sp.expand(e).coeff(h, 2))
    assert (lowest - caught.value.leading).applyfunc(sp.expand) == sp.zeros(2)


def test_the_order_at_which_a_loss_stops_existing_need_not_be_three():
    # momentum and phases aside, a 4th-order method keeps every loss through order 4
    with pytest.raises(NotAGradient) as caught:
        modified_loss(x**2 * y + y**3, XY, h, 5, method="rk4")
    assert caught.value.order == 5
    assert caught.value.antisymmetric == h**4 * caught.value.leading
    assert caught.value.loss == x**2 * y + y**3


def test_momentum_with_numbers_and_with_a_symbol_agree():
    beta = sp.Symbol("b")
    field = gradient_field(x**2 * y, XY)
    symbolic = momentum_field(field, XY, h, beta, 3).subs(beta, sp.Rational(1, 2))
    assert (symbolic - momentum_field(field, XY, h, "1/2", 3)).applyfunc(sp.simplify) == sp.zeros(2, 1)


def test_formulas_are_read_exactly():
    assert parse_formula("(x*y-1)**2/2") == (x * y - 1) ** 2 / 2
    assert parse_formula("0.1*x^2 + 1e-3") == x**2 / 10 + sp.Rational(1, 1000)
    assert parse_formula("exp(-x)*tanh(pi*y)") == sp.exp(-x) * sp.tanh(sp.pi * y)
    assert parse_formula("E", names=["E"]) == sp.Symbol("E")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "x.__class__", "().__class__", "lambda: 1", "[x for x in y]",
        "x if y else 1", "open('a')", "eval('x')", "exp(x, y)", "exp(*x)", "exp(x=1)", "x[0]", "x < y", "x and y",
        "not x", "~x", "x @ y", "x // y", "x % y", "'x'", "b'x'", "True", "None", "...", "f'{x}'", "x; y", "x := 1",
        "import os", "", " ", "1/0", "x__y", "_x", "9**9**9", "x**(10**9)", "10**40", "1e400", "1e-40", "exp",
        "Abs(x)", "relu(x)", "Max(x, y)", "sqrt(-1)", "x\n+y;z",
        "(" * 300 + "x" + ")" * 300, "-" * 300 + "x", "x+" * 2000 + "x", "1(2)", "x\0",
    ],
)  # fmt: skip
def test_what_is_no_formula_is_refused_and_never_run(text):
    with pytest.raises(FormulaError):
        parse_formula(text)


def test_refusals_name_what_is_allowed():
    with pytest.raises(FormulaError, match=r"unknown function foo: use one of exp, log"):
        parse_formula("foo(x)")
    with pytest.raises(FormulaError, match=r"unknown name z .*: the names are x, y"):
        parse_formula("x*z", names=["x", "y"])
    with pytest.raises(FormulaError, match="Abs is not smooth"):
        parse_formula("Abs(x)")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="xy12.+-*/^()exp, _['\\", max_size=14))
def test_any_text_is_a_formula_or_refused(text):
    try:
        found = parse_formula(text)
    except FormulaError:
        return
    assert isinstance(found, sp.Expr)


def test_every_series_of_a_composite_is_homogeneous_in_the_step_sizes():
    for tree, value in phase_series([(h1, n1, "euler"), (h2, 1, "heun")], 3).items():
        counts = [tree.colours.count(c) for c in (0, 1)]
        assert sp.Poly(value, h1, h2).monoms() == [tuple(counts)]


def test_a_loss_that_comes_back_is_one_field():
    series = phase_series([(h1, 1, "euler"), (h2, 1, "euler"), (h1, 1, "euler")], 2)
    pair = {
        t: sum((c for u, c in series.items() if u.recolour([0, 1, 0]) == t), sp.Integer(0))
        for t in map(Tree, ("[1[]]", "1[[]]"))
    }
    assert all(sp.expand(c) == 0 for c in pair.values())  # symmetric: no conflict of second order
    assert len(list(itertools.chain(series))) > 3
