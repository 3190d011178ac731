"""``deepfusion derive`` prints what the library derives, and refuses in one line."""

import json
import shlex

import pytest
import sympy as sp

from bea.symbolic import modified_equation, modified_loss, parse_formula


@pytest.fixture
def derive(run):
    """``derive(...)``: what the command prints."""

    def call(*arguments):
        code, out, err = run("derive", *arguments)
        assert (code, err) == (0, "")
        return out

    return call


@pytest.fixture
def as_json(derive):
    return lambda *arguments: json.loads(derive(*arguments, "--json"))


def test_two_phases_to_order_three_print_as_latex(derive):
    printed = derive("--phases", "E1:h1,E2:h2", "--order", "3", "--latex")
    assert printed.startswith(r"\begin{aligned}")
    assert r"\frac{1}{2} \nabla^{2} E_{2}\, \nabla E_{1} - \frac{1}{2} \nabla^{2} E_{1}\, \nabla E_{2}" in printed
    assert printed.count("\n&") == 1 + 4  # one line each for orders 1 and 2, four for the powers of order 3


def test_a_loss_without_a_modified_loss_says_which_order_fails_and_by_how_much(derive, as_json):
    printed = derive("--loss", "(x*y-1)**2/2", "--order", "3")
    assert "no modified loss of order 3" in printed
    assert "antisymmetric part" in printed
    data = as_json("--loss", "(x*y-1)**2/2", "--order", "3")
    assert (data["exists"], data["fails_at_order"]) == (False, 3)
    x, y, h = sp.symbols("x y h")
    assert sp.expand(parse_formula(data["modified_loss"]) - modified_loss((x * y - 1) ** 2 / 2, [x, y], h, 2)) == 0


def test_json_carries_every_coefficient_exactly(as_json):
    data = as_json("--method", "rk4", "--order", "5")
    found = {row["tree"]: row["omega"] for row in data["coefficients"]}
    assert found == {str(tree): str(value) for tree, value in modified_equation("rk4", 5).items()}


def test_repeats_may_be_a_name_and_losses_may_be_given(derive, as_json):
    assert "h1*h2*n" in derive("--phases", "E1:h1:n,E2:h2")
    data = as_json("--phases", "E1:h1:n,E2:h2", "--where", "E1=x**2*y", "--where", "E2=y**2/2")
    x, y, h1, n = sp.symbols("x y h1 n")
    first = parse_formula(data["field"][0])
    assert sp.expand(first.coeff(h1, 1).coeff(n, 1).subs(sp.Symbol("h2"), 0) + 2 * x * y) == 0


def test_a_palindrome_of_phases_has_no_conflict_of_second_order(as_json):
    data = as_json("--phases", "E1:h1,E2:h2,E1:h1")
    omega = {row["tree"]: row["omega"] for row in data["coefficients"]}
    assert omega.get("[1[]]", "0") == omega.get("1[[]]", "0") == "0"
    assert data["loss_exists_through_order"] == 2


def test_momentum_and_fields_are_derived_too(derive):
    assert "(b + 1)" in derive("--loss", "x**2*y", "--momentum", "b")
    assert "dy/dt" in derive("--field", "y, -sin(x)", "--symbols", "x,y", "--order", "3")
    assert r"\tikz" in derive("--latex", "--trees")


@pytest.mark.parametrize(("constant", "letter"), [("E", "G"), ("pi", "pj")])
@pytest.mark.parametrize(
    "arguments",
    [
        "--field 'y, -X' --symbols X,y",
        "--loss X**2*y/2 --symbols X,y --order 3",
        "--loss y**2/2 --step X",
        "--loss y**2/2 --momentum X",
        "--phases X:h1:n,b:h2",
        "--phases a:h1:X,b:h2 --where a=y**2/2 --where b=y",
        "--phases X:h1,b:h2 --where X=y**2/2 --where b=y",
    ],
)
def test_a_symbol_may_be_called_as_a_constant_is(derive, arguments, constant, letter):
    found, expected = (derive(*shlex.split(arguments.replace("X", name))) for name in (constant, letter))
    assert found == expected.replace(letter, constant)
    assert letter in expected or "--where X" in arguments


def test_a_constant_that_is_not_named_is_a_number(derive, as_json):
    data = as_json("--loss", "E*x**2/2")
    assert data["symbols"] == ["x"]
    assert parse_formula("E*x", own=["E"]) == sp.Symbol("E") * sp.Symbol("x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "Abs(x)"], "Abs is not smooth"),
        (["--loss", "__import__('os').system('true')"], "is not allowed"),
        (["--loss", "x.__class__"], "is not allowed"),
        (["--loss", "x*h"], "name another with --step"),
        (["--loss", "3"], "no parameters"),
        (["--loss", "x", "--symbols", "x,y"], "y missing from the loss"),
        (["--loss", "x**2", "--symbols", "1"], "not a list of names"),
        (["--loss", "x**2", "--momentum", "2"], "beta is 2"),
        (["--loss", "x**2", "--phases", "E:h"], "exclude each other"),
        (["--momentum", "1/2"], "goes with --loss"),
        (["--phases", "E1"], "is not name:step"),
        (["--phases", "E1:h:0"], "repeats are a whole number"),
        (["--phases", "E1:-1"], "not positive"),
        (["--phases", "2:h"], "is not the name of a loss"),
        (["--phases", "E1:h", "--where", "E2=x"], "is not name=formula"),
        (["--phases", "E1:h,E2:h", "--where", "E1=x"], "no formula for E2"),
        (["--where", "E1=x"], "there is no --phases"),
        (["--order", "0"], "order is 0"),
        (["--order", "99"], "trees and more than"),
        (["--order", "three"], "--order"),
        (["--method", "eular"], "unknown method"),
        (["--bogus"], "--bogus"),
    ],
)
def test_usage_errors_are_one_clear_line_and_exit_code_two(run, arguments, message):
    code, out, err = run("derive", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("Error: ")
    assert message in err


def test_help_teaches_by_examples_that_work(derive):
    lines = [line.strip() for line in derive("--help").splitlines()]
    examples = [line.removeprefix("deepfusion derive ") for line in lines if line.startswith("deepfusion derive ")]
    assert len(examples) == 7
    for example in examples:
        assert derive(*shlex.split(example))
