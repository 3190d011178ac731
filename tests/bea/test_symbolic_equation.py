"""Coefficients of modified equations: tables, another program, another route, and actual steps in exact arithmetic."""

import functools
import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import bea
from bea.symbolic import (
    METHODS,
    RungeKutta,
    Step,
    Truncated,
    log_map,
    modified_equation,
    modified_equation_by_brackets,
    modified_field,
    momentum_equation,
    recoloured,
    with_symmetry,
    without_symmetry,
)
from bea.symbolic.equation import fits_64_bits, log_functional, repeat_functional
from bea.symbolic.fields import Differentials
from bea.symbolic.methods import steps_of
from bea.trees import Tree, trees
from tests.strategies.symbolic import as_sympy, evaluate, fractions, polynomial_fields, tableaux, tree_texts

# Hairer, Lubich & Wanner, chapter IX: modified equation of explicit Euler; h²/12 (f''(f,f) + 4f'f'f) in IX.1, the
# rest in the table of b(τ) in IX.9 (also Chartier, Hairer & Vilmart 2010, table of ω)
EULER_TABLE = {
    "[]": 1, "[[]]": "-1/2", "[[[]]]": "1/3", "[[][]]": "1/6",
    "[[[[]]]]": "-1/4", "[[[][]]]": "-1/6", "[[][[]]]": "-1/12", "[[][][]]": 0,
}  # fmt: skip


def test_explicit_euler_has_the_published_table_to_order_four():
    assert modified_equation("euler", 4) == {Tree(t): Fraction(value) for t, value in EULER_TABLE.items()}


def test_explicit_euler_on_a_square_has_the_published_series():
    # Hairer, Lubich & Wanner, example IX.1.1: y' = y²
    y, h = sp.symbols("y h")
    published = y**2 - h * y**3 + sp.Rational(3, 2) * h**2 * y**4 - sp.Rational(8, 3) * h**3 * y**5
    published += sp.Rational(31, 6) * h**4 * y**6 - sp.Rational(157, 15) * h**5 * y**7
    assert sp.expand(modified_field([y**2], [y], h, 6)[0] - published) == 0


def test_bushy_trees_of_explicit_euler_carry_the_bernoulli_numbers():
    coefficients = modified_equation("euler", 12)
    for n in range(1, 12):
        bernoulli = sp.bernoulli(n) if n > 1 else sp.Rational(-1, 2)
        assert coefficients[Tree.of([Tree()] * n)] == Fraction(int(bernoulli.p), int(bernoulli.q))


def test_tall_trees_of_explicit_euler_are_the_logarithm():
    coefficients, tall = modified_equation("euler", 12), Tree()
    for n in range(1, 12):
        assert coefficients[tall] == Fraction((-1) ** (n + 1), n)
        tall = Tree.of([tall])


@functools.cache
def kauri_logarithm():
    """kauri's φ ↦ log φ for all methods at once, so that its coproducts are computed once."""
    kauri = pytest.importorskip("kauri", reason="kauri is not installed: pip install 'deepfusion[dev]'")
    from kauri.cem.cem import antipode_impl

    inverse_flow = kauri.exact_weights & kauri.Map(antipode_impl)
    return kauri, lambda weights: weights ^ inverse_flow


def from_kauri(shape):
    return Tree.of([from_kauri(child) for child in shape[:-1]])


@pytest.mark.parametrize("name", ["euler", "implicit-euler", "midpoint", "rk4"])
@pytest.mark.parametrize("order", [6, pytest.param(8, marks=pytest.mark.slow)])
def test_coefficients_are_kauris(name, order):
    kauri, logarithm = kauri_logarithm()
    method = METHODS[name]
    theirs = logarithm(
        kauri.RK([[float(x) for x in row] for row in method.a], [float(x) for x in method.b]).elementary_weights_map()
    )
    ours, compared = modified_equation(name, order), 0
    for tree in kauri.trees_up_to_order(order):
        if tree.list_repr:
            assert abs(float(theirs(tree)) - ours[from_kauri(tree.list_repr)]) < 1e-12
            compared += 1
    assert compared == len(ours)


@settings(max_examples=15, deadline=None)
@given(polynomial_fields(2, 2), tableaux(3, explicit=True), st.tuples(fractions, fractions), st.integers(1, 4))
def test_the_logarithm_of_actual_steps_is_equal_in_exact_arithmetic(field, tableau, point, order):
    method = RungeKutta(*tableau)
    assert exact_displacement(field, [method], point, order) == series_displacement([field], [method], point, order)


@settings(max_examples=15, deadline=None)
@given(
    polynomial_fields(2, 2),
    polynomial_fields(2, 2),
    st.tuples(fractions, fractions),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_the_logarithm_of_two_phases_is_equal_in_exact_arithmetic(first, second, point, order, repeats):
    steps = [Step("midpoint", field=0, steps=repeats), Step("euler", field=1)]
    fields, h = [first, second], Truncated.h(order)

    def run(p):
        for step in steps:
            for _ in range(step.steps):
                p = rk_step(fields[step.field], step.method, p, h)
        return p

    start = [Truncated.constant(x, order) for x in point]
    actual = [value.coefficients for value in log_map(run, start, order)]
    assert actual == series_displacement(fields, steps, point, order)


def rk_step(field, method, point, h):
    stages = []
    for row in method.a:
        at = [x + h * sum((a * k[i] for a, k in zip(row, stages, strict=False)), 0 * x) for i, x in enumerate(point)]
        stages.append(evaluate(field, at))
    return [x + h * sum((b * k[i] for b, k in zip(method.b, stages, strict=True)), 0 * x) for i, x in enumerate(point)]


def exact_displacement(field, methods, point, order):
    h, start = Truncated.h(order), [Truncated.constant(x, order) for x in point]
    return [value.coefficients for value in log_map(lambda p: rk_step(field, methods[0], p, h), start, order)]


def series_displacement(fields, method, point, order):
    """[h⁰, h¹, …] coefficients of Σ h^|t| ω(t)/σ(t) F(t), from the trees."""
    symbols = sp.symbols("x y")
    table = Differentials([as_sympy(f, symbols) for f in fields], symbols, order)
    series = with_symmetry(modified_equation(method[0] if len(method) == 1 else method, order))
    at = dict(zip(symbols, [sp.Rational(p.numerator, p.denominator) for p in point], strict=True))
    result = [[Fraction(0)] * (order + 1) for _ in symbols]
    for q in range(1, order + 1):
        components = table.combination({t: c for t, c in series.items() if t.order == q})
        part = table.shown(components, simplify=False).subs(at)
        for i, value in enumerate(part):
            result[i][q] = Fraction(int(value.p), int(value.q))
    return result


def test_an_exact_equality_would_notice_a_wrong_coefficient():
    field, point = [{(2, 0): Fraction(1)}, {(1, 1): Fraction(2)}], (Fraction(1, 2), Fraction(3))
    euler, heun = METHODS["euler"], METHODS["heun"]
    assert exact_displacement(field, [euler], point, 3) == series_displacement([field], [euler], point, 3)
    assert exact_displacement(field, [euler], point, 3) != series_displacement([field], [heun], point, 3)


def test_the_numeric_log_map_is_the_exact_one(x64):
    field, point, order, h = (
        [{(2, 0): Fraction(1), (0, 1): Fraction(-1)}, {(1, 1): Fraction(2)}],
        (Fraction(1, 2), Fraction(3)),
        4,
        2.0**-6,
    )
    step = lambda p: p + h * jnp.stack([p[0] ** 2 - p[1], 2 * p[0] * p[1]])
    numeric = bea.log_map(step, jnp.array([0.5, 3.0]), order)
    exact_step = lambda p: [x + Fraction(1, 64) * v for x, v in zip(p, evaluate(field, p), strict=True)]
    exact = log_map(exact_step, list(point), order)
    np.testing.assert_allclose(np.asarray(numeric), [float(x) for x in exact], rtol=1e-11)


COMPOSITIONS = [
    [Step(field=0), Step(field=1)],
    [Step("implicit-euler", field=1, steps=3), Step("midpoint", field=0, scale="1/3"), Step("rk4", field=1)],
    [Step(field=0), Step(field=1, steps=2), Step(field=2)],
    [Step(field=0, steps=7), Step("heun", field=0, scale=-2)],
]


@pytest.mark.parametrize("steps", COMPOSITIONS)
def test_trees_and_brackets_agree(steps):
    order = 5 if len(steps) == 2 else 4
    assert modified_equation(steps, order) == modified_equation_by_brackets(steps, order)


@settings(max_examples=10, deadline=None)
@given(tableaux(2), tableaux(2), st.integers(1, 4), st.integers(1, 4))
def test_both_routes_agree_for_any_tableaux(first, second, n, m):
    steps = [Step(RungeKutta(*first), field=0, steps=n), Step(RungeKutta(*second), field=1, steps=m)]
    assert modified_equation(steps, 4) == modified_equation_by_brackets(steps, 4)


@settings(deadline=None, max_examples=30)
@given(tableaux(3))
def test_integers_modulo_2_to_64_and_python_integers_agree(tableau):
    import bea.symbolic.equation as equation

    method = RungeKutta(*tableau)
    expected = exact_weights_by_definition(method, 4)
    assert modified_equation(method, 4) == expected
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(equation, "fits_64_bits", lambda steps, order: False)
        assert modified_equation(method, 4) == expected


def exact_weights_by_definition(method, order):
    """ω from P_t(n), n = 0 … p, where P_t(n) is the weight of t for the tableau of n repeats, written out."""
    zero, repeated = Fraction(0), [([], [])]
    for _ in range(order):
        a, b = repeated[-1]
        repeated.append((a + [b + list(row) for row in method.a], b + list(method.b)))

    def stage(a, i, tree):
        return math.prod((sum((x * stage(a, j, c) for j, x in enumerate(a[i])), zero) for c in tree.children), start=1)

    found = {}
    for tree in trees(order):
        values = [sum((x * stage(a, i, tree) for i, x in enumerate(b)), zero) for a, b in repeated]
        found[tree] = sum((w * (values[j + 1] - values[j]) for j, w in enumerate(log_functional(order))), zero)
    return found


def test_large_numerators_leave_64_bits_and_stay_right():
    method = RungeKutta([["1/97", 0], ["1/89", "3/83"]], ["1/101", "100/101"])
    assert not fits_64_bits(steps_of(method), 5)
    assert fits_64_bits(steps_of("euler"), 15)
    assert not fits_64_bits(steps_of("euler"), 16)
    assert modified_equation(method, 4) == exact_weights_by_definition(method, 4)


def test_the_bound_that_allows_64_bits_holds():
    from bea.symbolic.methods import growth_rate

    fubini = [1, 1, 3, 13, 75, 541, 4683, 47293]
    for name in METHODS:
        rate = growth_rate(steps_of(name))
        for tree, value in modified_equation(name, 8).items():
            assert abs(value) <= rate**tree.order * (fubini[tree.order - 1] + Fraction(1, 2))


def test_momentum_zero_is_explicit_euler_by_another_recursion():
    assert momentum_equation(0, 7) == modified_equation("euler", 7)


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("midpoint", 2), ("implicit-midpoint", 2), ("heun", 2), ("rk4", 4)]
)
def test_a_method_of_order_p_changes_nothing_up_to_p_and_something_after(name, order):
    coefficients = modified_equation(name, order + 1)
    assert all(value == (tree == "[]") for tree, value in coefficients.items() if tree.order <= order)
    assert any(value for tree, value in coefficients.items() if tree.order == order + 1)


def test_the_adjoint_of_euler_has_the_opposite_signs():
    euler, implicit = modified_equation("euler", 8), modified_equation("implicit-euler", 8)
    assert implicit == {tree: (-1) ** (tree.order + 1) * value for tree, value in euler.items()}


def test_a_step_and_its_adjoint_backwards_cancel():
    steps = [Step("euler"), Step("implicit-euler", scale=-1)]
    assert not any(modified_equation(steps, 7).values())


@pytest.mark.parametrize("repeats", [1, 3, 20])
def test_repeats_are_multiples_of_the_modified_field(repeats):
    once, often = modified_equation("heun", 6), modified_equation(Step("heun", steps=repeats), 6)
    assert often == {tree: repeats * value for tree, value in once.items()}


def test_many_repeats_cost_no_more_and_are_the_same_as_writing_them_out():
    written = [Step(field=0)] * 6 + [Step(field=1)] * 9
    assert modified_equation([Step(field=0, steps=6), Step(field=1, steps=9)], 4) == modified_equation(written, 4)


def test_merging_two_colours_gives_two_half_steps_on_one_field():
    two = modified_equation([Step(field=0), Step(field=1)], 5)
    assert recoloured(two, [0, 0]) == modified_equation([Step(), Step()], 5)


def test_conventions_convert_both_ways_and_differ():
    coefficients = modified_equation("euler", 6)
    printed = with_symmetry(coefficients)
    assert printed[Tree("[[][]]")] == Fraction(1, 12)
    assert without_symmetry(printed) == coefficients != printed


@settings(deadline=None)
@given(st.integers(1, 8), st.lists(fractions, min_size=1, max_size=8))
def test_the_log_functional_reads_off_the_linear_term(order, coefficients):
    values = [
        sum((c * n ** (k + 1) for k, c in enumerate(coefficients[:order])), Fraction(0)) for n in range(order + 1)
    ]
    assert (
        sum((w * (values[j + 1] - values[j]) for j, w in enumerate(log_functional(order))), Fraction(0))
        == coefficients[0]
    )


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(fractions, min_size=1, max_size=6))
def test_the_repeat_functional_sums_polynomials(repeats, coefficients):
    g = lambda m: sum((c * m**k for k, c in enumerate(coefficients)), Fraction(0))
    weights = repeat_functional(repeats, len(coefficients))
    assert sum((e * g(m) for m, e in enumerate(weights)), Fraction(0)) == sum(
        (g(m) for m in range(repeats)), Fraction(0)
    )


@settings(deadline=None)
@given(tree_texts(5, 2))
def test_texts_of_trees_look_coefficients_up(text):
    assert Tree(text) in TWO_FIELDS
    assert str(Tree(text)) in TWO_FIELDS


TWO_FIELDS = modified_equation([Step(field=0), Step(field=1)], 5)


@pytest.mark.parametrize("order", [0, -3, True])
def test_an_order_that_is_no_positive_whole_number_is_refused(order):
    with pytest.raises(ValueError, match=r"order is (0|-3|True)"):
        modified_equation("euler", order)


@pytest.mark.parametrize(("method", "order"), [("euler", 20), ("euler", 10**9), ([Step(field=7)], 9)])
def test_an_absurd_order_is_refused_with_an_estimate_before_the_work_starts(method, order):
    with pytest.raises(ValueError, match=r"order \d+ for .* trees and .* GiB.*ask for order \d+ or less"):
        modified_equation(method, order)


def test_the_memory_limit_is_the_callers():
    with pytest.raises(ValueError, match=r"above the limit of 0\.1 MiB"):
        modified_equation("euler", 12, memory_limit=10**5)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0, 0], [1]], [1, 0], "not square"),
        ([[0, 0]], [1, 0], "not square"),
        ([], [], "not square"),
        ([[0, 0], [1, 0]], [1, 1], "inconsistent: the weights b sum to 2"),
        ([[0.5]], [1], "0.5, not an exact rational"),
        ([["x"]], [1], "not an exact rational"),
        ([[None]], [1], "not an exact rational"),
        ([["1/0"]], [1], "not an exact rational"),
    ],
)
def test_a_bad_tableau_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        RungeKutta(a, b)


def test_nodes_that_are_not_the_row_sums_are_refused():
    assert RungeKutta([[0, 0], ["1/2", 0]], [0, 1], c=[0, "1/2"]) == METHODS["midpoint"]
    with pytest.raises(ValueError, match="row 1 sums to 1/2, but c is 1"):
        RungeKutta([[0, 0], ["1/2", 0]], [0, 1], c=[0, 1])


def test_unknown_methods_and_bad_steps_are_refused():
    with pytest.raises(ValueError, match="unknown method 'eular': choose one of euler"):
        modified_equation("eular", 2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        Step(steps=0)
    with pytest.raises(ValueError, match="number of a vector field"):
        Step(field=-1)
    with pytest.raises(ValueError, match="non-empty sequence of Step"):
        modified_equation([], 2)
