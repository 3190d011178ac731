"""Formulas in rings: equal to plain sympy's, exact about zero, and written as a product where they are one."""

import json

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from bea.symbolic import NotAGradient, antisymmetric_part, gradient_field, modified_field, modified_loss, parse_formula
from bea.symbolic.compact import is_irreducible, quotient
from bea.symbolic.fields import tidy
from bea.symbolic.rings import Ring
from bea.symbolic.work import check_work
from benchmarks import formulas
from tests.strategies.symbolic import as_sympy, polynomial_fields

x, y, z, h = sp.symbols("x y z h")
XY, XYZ = [x, y], [x, y, z]
AT = {x: sp.Rational(3, 7), y: sp.Rational(5, 11), h: sp.Rational(2, 9)}


def polynomial(draw, symbols=XYZ):
    """The polynomial over the integers that is drawn, in the ring of the symbols."""
    (expr,) = as_sympy(draw, symbols)
    return Ring([expr], symbols).read(expr).top


def plain(field_of, symbols, order):
    corrections = formulas.plain_field(field_of, symbols, order)
    return sum((c * h**k for k, c in enumerate(corrections)), sp.zeros(len(symbols), 1))


@settings(max_examples=8, deadline=None)
@given(polynomial_fields(3, 3).filter(lambda f: f[0]), st.integers(2, 4))
def test_fields_and_losses_of_polynomials_are_those_of_plain_sympy(components, order):
    loss = as_sympy(components, XYZ)[0] + x**2 + y**2 + z**2 + x * y
    expected = plain(loss, XYZ, order)
    found = modified_field(gradient_field(loss, XYZ), XYZ, h, order)
    assert (found - expected).applyfunc(sp.expand) == sp.zeros(3, 1)
    jacobian = expected.jacobian(XYZ)
    skew = ((jacobian - jacobian.T) / 2).applyfunc(sp.expand)
    assert (antisymmetric_part(found, XYZ) - skew).applyfunc(sp.expand) == sp.zeros(3)
    try:
        potential = modified_loss(loss, XYZ, h, order)
    except NotAGradient as error:
        refusal = error
        assert any(skew)
    else:
        assert all(sp.expand(sp.diff(potential, s) + e) == 0 for s, e in zip(XYZ, expected, strict=True))
        return
    assert (refusal.field - expected).applyfunc(sp.expand) == sp.zeros(3, 1)
    assert (refusal.antisymmetric - skew).applyfunc(sp.expand) == sp.zeros(3)


FUNCTIONS = [
    x * sp.exp(x * y) + y**2, sp.log(1 + sp.exp(-x * y)), sp.sqrt(1 + x**2) * y, (1 + x * y) ** sp.Rational(-2, 3),
    1 / (1 + x**2 + y), sp.sin(x) * sp.cos(y) + x**2, sp.tanh(x * y) / x, sp.cosh(x + y) * sp.exp(-x / 2), x**y + sp.pi * x,
    sp.atan(x * y) + sp.asinh(y), sp.exp(sp.exp(x * y)), sp.erf(x) * y, sp.Function("E")(x, y) ** 2 / x, sp.sqrt(x) * y**2,
]  # fmt: skip


@pytest.mark.parametrize("loss", FUNCTIONS, ids=str)
def test_fields_with_functions_are_those_of_plain_sympy(loss):
    found = modified_field(gradient_field(loss, XY), XY, h, 3)
    for a, b in zip(found, plain(loss, XY, 3), strict=True):
        gap = (a - b).xreplace({atom: sp.Rational(k + 2, 2 * k + 5) for k, atom in enumerate(jets(a - b))}).subs(AT)
        assert abs(gap.evalf(40)) < 1e-30


def jets(expr):
    return sorted(expr.atoms(sp.Derivative) | expr.atoms(sp.Function("E")), key=str)


@pytest.mark.parametrize(
    ("zero", "expr"),
    [
        (True, sp.sin(x) ** 2 + sp.cos(x) ** 2 - 1),
        (True, sp.cosh(x * y) ** 4 - (1 + sp.sinh(x * y) ** 2) ** 2),
        (True, 1 / (x + 1) - 1 / (x - 1) + 2 / (x**2 - 1)),
        (True, sp.exp(x) * sp.exp(-x) - 1),
        (True, sp.sqrt(x + 1) ** 3 - x * sp.sqrt(x + 1) - sp.sqrt(1 + x)),
        (True, sp.exp(x + y) - sp.exp(x) * sp.exp(y)),
        (False, sp.exp(x + y) - sp.exp(x) * sp.exp(2 * y)),
        (False, sp.sin(x) ** 2 - sp.cos(x) ** 2),
        (False, sp.sqrt(x**2 + 1) - x),
        (False, sp.Function("E")(x, y).diff(x) - sp.Function("E")(x, y).diff(y)),
    ],
    ids=str,
)
def test_what_is_zero_is_known(zero, expr):
    ring = Ring([expr], XY)
    assert ring.is_zero(ring.read(expr).top) == zero


@settings(deadline=None)
@given(polynomial_fields(3, 4), polynomial_fields(3, 2))
def test_a_product_is_divided_by_its_factors_and_is_never_called_irreducible(one, other):
    one, other = (polynomial(f[:1]) for f in (one, other))
    if not one or not other:
        return
    product = one * other
    assert quotient(product, other) == one
    if not (one.is_ground or other.is_ground):
        assert not is_irreducible(product.primitive()[1])
    assert (quotient(product + 1, other) is None) == (not other.is_ground or abs(other.LC) != 1)


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (sp.expand((x * y - 1) ** 3 * (x + y) / 6), (x + y) * (x * y - 1) ** 3 / 6),
        (x**2 * y - x * y**2, x * y * (x - y)),
        (x / (1 + x**2) - x**3 / (1 + x**2) ** 2, x / (x**2 + 1) ** 2),
        (1 / (1 + x**2) - 1, -(x**2) / (x**2 + 1)),
        (sp.exp(2 * x * y) * x + sp.exp(x * y) * x**2, x * (sp.exp(x * y) + x) * sp.exp(x * y)),
        (sp.sqrt(1 + x) * x + sp.sqrt(1 + x), (1 + x) ** sp.Rational(3, 2)),
        (sp.Integer(0), sp.Integer(0)), (sp.Rational(2, 3), sp.Rational(2, 3)),
    ],
)  # fmt: skip
def test_results_are_written_as_a_person_would(expr, expected):
    assert str(tidy(expr)) == str(expected)


def test_factors_of_a_loss_are_found_in_corrections_of_any_size():
    a, b, c, d = symbols = list(sp.symbols("a:d"))
    with pytest.raises(NotAGradient) as caught:
        modified_loss((a * b * c * d - 1) ** 2 / 2, symbols, h, 4)
    for e in caught.value.field:
        highest = e.coeff(h, 3)
        assert sum(f == a * b * c * d - 1 for f in highest.args) == 1
        assert len(sp.Add.make_args(sp.expand(highest))) == 88
    assert str(caught.value.leading[1, 0]).startswith("-c*d*(a - b)*(a + b)*(a*b*c*d - 1)*(")


def test_six_parameters_to_order_four_are_within_the_bounds_of_the_work():
    for _, formula, order, *_ in formulas.CASES:
        loss = parse_formula(formula)
        symbols = sorted(loss.free_symbols, key=str)
        check_work([loss], symbols, order)
        with pytest.raises(ValueError, match="products of terms, above the limit"):
            check_work([loss * sum(symbols) ** 6], symbols, 6)


def test_the_benchmark_compares_with_plain_sympy(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(formulas, "CASES", [(*case[:3], 1e9, case[4]) for case in formulas.CASES])
    assert formulas.main(["--smoke", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["formulas"]
    assert [row["off"] < 1e-20 for row in rows] == [True, True]
    assert "| four parameters, two products: `(a*b+c*d-1)**2/2` | 2 |" in capsys.readouterr().out
