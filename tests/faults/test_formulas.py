"""Formulas that explode: refused by what the work would be, before it begins; and no code in them is run."""

import os
import signal
import threading
import time

import pytest

from bea.symbolic import parse_formula
from bea.symbolic.work import slopes, terms

BAD = {
    "a power of a sum": ("(x+y+z)**60", 2, "1,891 terms"),
    "a product of sums": ("*".join(f"(x+y+z+{i})" for i in range(25)), 2, "terms"),
    "powers of powers": ("(((x+y)**64)**64)**64", 2, "terms"),
    "functions of functions": (40 * "tanh(" + "x*y" + 40 * ")", 3, "more than 6 functions in one another"),
    "a tower of exp": (6 * "exp(" + "x" + 6 * ")", 2, "a tower of exponentials: at most 3"),
    "a tower of numbers": (5 * "exp(" + "5" + 5 * ")", 2, "a tower of exponentials"),
    "a tower of **": ("x**(x**(x**(x**(x**x))))", 3, "a tower of exponentials"),
    "a large exponent": ("exp(exp(10**9*x))", 2, "may reach 10,000"),
    "many parameters": ("+".join(f"a{i}*b{i}" for i in range(50)) + "+x**4", 6, "fewer parameters"),
    "an order too high": ("x**4", 40, "ask for order 12 or less"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_formula_that_explodes_is_refused_before_the_work(refused, case):
    formula, order, message = BAD[case]
    refused(message, "derive", "--loss", formula, "--order", order)


@pytest.mark.parametrize("formula", ["(x+y+z)**8", "exp(exp(x*y))", "log(1+exp(-x*y))", "2**(2**x)", "tanh(x*y)**2"])
def test_a_formula_of_ordinary_size_is_answered(run, formula):
    assert run("derive", "--loss", formula)[0] == 0


@pytest.mark.parametrize("formula", ["(x+y+z)**5", "(x*y-1)**2*(x+2)", "exp(x*y)*x+3", "tanh(x*y)*(x+y)"])
def test_the_estimated_terms_are_no_fewer_than_there_are(formula):
    expr = parse_formula(formula)
    assert terms(expr) >= len(expr.expand().as_ordered_terms())
    assert all(slopes(expr) >= len(expr.diff(x).expand().as_ordered_terms()) for x in expr.free_symbols)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_derivation_in_one_line(run, monkeypatch, request, number):
    def endless(*_, **__):
        threading.Timer(0.2, os.kill, [os.getpid(), number]).start()
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            sum(range(1000))
        raise AssertionError("the signal has ended nothing")

    before = signal.getsignal(signal.SIGINT)
    # a job in the background of a shell ignores it, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr("bea.symbolic.presentation.modified_loss", endless)
    assert run("derive", "--loss", "x**2") == (128 + number, "", "Interrupted.\n")


def test_what_takes_long_says_so(run, monkeypatch):
    wait = threading.Event()
    monkeypatch.setattr("bea.symbolic.presentation.modified_loss", lambda *_, **__: wait.wait(0.3))
    timer = threading.Timer
    monkeypatch.setattr(threading, "Timer", lambda _, *rest: timer(0.01, *rest))
    code, _, err = run("derive", "--loss", "x**2")
    assert (code, "Ctrl-C ends it" in err) == (0, True)


@pytest.mark.parametrize(
    "code", ["__import__('os').system('touch ran')", "().__class__", "exec('1')", "x.y", "[x for x in y]"]
)
def test_code_in_a_formula_is_never_run(refused, monkeypatch, tmp_path, code):
    monkeypatch.chdir(tmp_path)
    refused("", "derive", "--loss", code)
    assert not list(tmp_path.iterdir())
