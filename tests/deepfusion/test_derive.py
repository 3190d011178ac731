"""``deepfusion derive`` prints what the library derives, and refuses in one line."""

import json
import subprocess
import sys

import pytest
import sympy as sp
from typer.testing import CliRunner

from bea.symbolic import modified_equation, modified_loss, parse_formula
from deepfusion.derive import app, main


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def test_two_phases_to_order_three_print_as_latex():
    printed = run("--phases", "E1:h1,E2:h2", "--order", "3", "--latex")
    assert printed.startswith(r"\begin{aligned}")
    assert r"\frac{1}{2} \nabla^{2} E_{2}\, \nabla E_{1} - \frac{1}{2} \nabla^{2} E_{1}\, \nabla E_{2}" in printed
    assert printed.count("\n&") == 1 + 4  # one line each for orders 1 and 2, four for the powers of order 3


def test_a_loss_without_a_modified_loss_says_which_order_fails_and_by_how_much():
    printed = run("--loss", "(x*y-1)**2/2", "--order", "3")
    assert "no modified loss of order 3" in printed
    assert "antisymmetric part" in printed
    data = as_json("--loss", "(x*y-1)**2/2", "--order", "3")
    assert (data["exists"], data["fails_at_order"]) == (False, 3)
    x, y, h = sp.symbols("x y h")
    assert sp.expand(parse_formula(data["modified_loss"]) - modified_loss((x * y - 1) ** 2 / 2, [x, y], h, 2)) == 0


def test_json_carries_every_coefficient_exactly():
    data = as_json("--method", "rk4", "--order", "5")
    found = {row["tree"]: row["omega"] for row in data["coefficients"]}
    assert found == {str(tree): str(value) for tree, value in modified_equation("rk4", 5).items()}


def test_repeats_may_be_a_name_and_losses_may_be_given():
    assert "h1*h2*n" in run("--phases", "E1:h1:n,E2:h2")
    data = as_json("--phases", "E1:h1:n,E2:h2", "--where", "E1=x**2*y", "--where", "E2=y**2/2")
    x, y, h1, n = sp.symbols("x y h1 n")
    first = parse_formula(data["field"][0])
    assert sp.expand(first.coeff(h1, 1).coeff(n, 1).subs(sp.Symbol("h2"), 0) + 2 * x * y) == 0


def test_a_palindrome_of_phases_has_no_conflict_of_second_order():
    data = as_json("--phases", "E1:h1,E2:h2,E1:h1")
    omega = {row["tree"]: row["omega"] for row in data["coefficients"]}
    assert omega.get("[1[]]", "0") == omega.get("1[[]]", "0") == "0"
    assert data["loss_exists_through_order"] == 2


def test_momentum_and_fields_are_derived_too():
    assert "(b + 1)" in run("--loss", "x**2*y", "--momentum", "b")
    assert "dy/dt" in run("--field", "y, -sin(x)", "--symbols", "x,y", "--order", "3")
    assert r"\tikz" in run("--latex", "--trees")


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
def test_usage_errors_are_one_clear_line_and_exit_code_two(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("deepfusion derive: ")
    assert message in captured.err


def test_help_teaches_by_examples_that_work(capsys):
    printed = run("--help")
    examples = [
        line.split("deepfusion derive ", 1)[1]
        for line in printed.splitlines()
        if line.strip().startswith("deepfusion derive ")
    ]
    assert len(examples) == 7
    import shlex

    for example in examples:
        assert main(shlex.split(example)) == 0
        assert capsys.readouterr().out


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "deepfusion.derive", "--loss", "x**2"], capture_output=True, text=True, check=True
    )
    assert "modified loss through order 2" in done.stdout
