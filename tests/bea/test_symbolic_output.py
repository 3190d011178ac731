"""What leaves the symbolic package: LaTeX, drawn trees, text, and JAX functions that agree with the numeric ones."""

import itertools
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings

import bea
from bea.symbolic import (
    Phase,
    Step,
    compose,
    draw,
    gradient_field,
    jax_function,
    jax_source,
    latex,
    latex_table,
    lie_bracket,
    modified_equation,
    modified_field,
    modified_loss,
    momentum_loss,
    text,
)
from bea.trees import Tree, trees
from bea.words import bch
from tests.strategies.symbolic import tree_texts

x, y, h, h1, h2 = sp.symbols("x y h h1 h2")
XY = [x, y]
LOSS = sp.exp(x * y) / 2 + x**2 + sp.sqrt(1 + y**2) + sp.tanh(x) * y**3
POINT = np.array([0.7, -0.4])


def numeric_loss(p):
    return jnp.exp(p[0] * p[1]) / 2 + p[0] ** 2 + jnp.sqrt(1 + p[1] ** 2) + jnp.tanh(p[0]) * p[1] ** 3


def numeric_other(p):
    return (p[0] * p[1] - 1) ** 2 / 2


OTHER = (x * y - 1) ** 2 / 2


# --- LaTeX and text ---


def test_latex_prints_the_modified_equation_as_a_paper_does():
    assert latex(modified_equation("euler", 3)) == (
        r"h \tilde f = h f - \frac{h^{2}}{2} f' f + h^{3} \left(\frac{1}{12} f''(f, f) + \frac{1}{3} f' f' f\right)"
    )


def test_latex_reads_fields_as_losses_with_their_signs():
    printed = latex(modified_equation([Step(field=0), Step(field=1)], 2), kind="loss", align=True)
    assert printed.splitlines()[1] == r"F = {}&-h_{1} \nabla E_{1} - h_{2} \nabla E_{2} \\"
    assert r"\frac{1}{2} \nabla^{2} E_{2}\, \nabla E_{1} - \frac{1}{2} \nabla^{2} E_{1}\, \nabla E_{2}" in printed


def test_text_has_one_line_an_order():
    assert text(modified_equation("euler", 3)).splitlines() == [
        "h f",
        "- h**2/2 f' f",
        "+ h**3 (1/12 f''(f, f) + 1/3 f' f' f)",
    ]


def test_latex_prints_brackets_and_sympy():
    assert latex(bch(2, 3)) == r"X + Y + \frac{1}{2} [X, Y] + \frac{1}{12} [X, [X, Y]] + \frac{1}{12} [[X, Y], Y]"
    assert latex(x**2 / 2, left="E") == r"E = \frac{x^{2}}{2}"
    with pytest.raises(TypeError, match="latex prints"):
        latex([1, 2])


@settings(deadline=None)
@given(tree_texts(7, 3))
def test_a_drawn_tree_has_its_nodes_edges_and_no_two_nodes_in_one_place(text):
    tree = Tree(text)
    drawn = draw(tree)
    places = re.findall(r"\\filldraw\[fill=([^\]]+)\] \(([\d.]+),(\d+)\)", drawn)
    edges = re.findall(r"\\draw \(([\d.]+),(\d+)\) -- \(([\d.]+),(\d+)\)", drawn)
    assert len(places) == tree.order == len({(a, b) for _, a, b in places})
    assert len(edges) == tree.order - 1
    assert all(int(b) + 1 == int(d) for _, b, _, d in edges)
    assert drawn.count("{") == drawn.count("}")


def test_drawn_trees_stand_in_for_differentials_and_fill_a_table():
    coefficients = modified_equation("euler", 4)
    nonzero = sum(bool(value) for value in coefficients.values())
    assert latex(coefficients, trees=True).count(r"\tikz") == nonzero == 7
    table = latex_table(coefficients)
    assert table.count(r"\tikz") == len(coefficients) == 8
    assert r"$f''(f, f)$ & 2 & $\frac{1}{6}$" in table


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed: the LaTeX is checked by its text only"
)
def test_latex_compiles(tmp_path):
    two = modified_equation([Step(field=0), Step(field=1)], 3)
    body = "\n\n".join(
        [
            latex_table(modified_equation("euler", 4)),
            f"${latex(two, trees=True, align=True)}$",
            f"${latex(two, kind='loss')}$",
        ]
    )
    source = r"\documentclass{article}\usepackage{amsmath,tikz}\begin{document}" + body + r"\end{document}"
    (tmp_path / "a.tex").write_text(source)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("kind", ["field", "loss"])
def test_printed_coefficients_are_all_there(kind):
    # every tree of order 5 has its own body, so a lost or merged term changes the count
    for tree in trees(5):
        assert latex({tree: 1}, kind=kind, left="") != ""
    bodies = {latex({tree: 1}, kind=kind, left="") for tree in trees(5)}
    assert len(bodies) == 17


# --- JAX ---


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_generated_modified_field_is_the_numeric_one(x64, order):
    made = jax.jit(jax_function(modified_field(gradient_field(LOSS, XY), XY, h, order), XY, [h]))
    numeric = bea.modified_field(bea.gradient_field(numeric_loss), 0.05, order)
    np.testing.assert_allclose(made(jnp.array(POINT), 0.05), numeric(jnp.array(POINT)), rtol=1e-11)


def test_the_generated_field_differs_from_the_numeric_one_of_another_order(x64):
    made = jax_function(modified_field(gradient_field(LOSS, XY), XY, h, 2), XY, [h])
    numeric = bea.modified_field(bea.gradient_field(numeric_loss), 0.05, 3)
    assert np.abs(made(jnp.array(POINT), 0.05) - numeric(jnp.array(POINT))).max() > 1e-4


def test_the_generated_modified_loss_is_the_numeric_one_and_so_is_its_gradient(x64):
    made = jax_function(modified_loss(LOSS, XY, h, 2), XY, [h])
    numeric = bea.modified_loss(numeric_loss, 0.05)
    point = jnp.array(POINT)
    np.testing.assert_allclose(made(point, 0.05), numeric(point), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(made)(point, 0.05), jax.grad(numeric)(point), rtol=1e-11)


def test_the_generated_momentum_loss_is_the_numeric_one(x64):
    made = jax_function(momentum_loss(LOSS, XY, h, sp.Rational(9, 10)), XY, [h])
    numeric = bea.modified_loss(numeric_loss, 0.01, momentum=0.9)
    np.testing.assert_allclose(made(jnp.array(POINT), 0.01), numeric(jnp.array(POINT)), rtol=1e-12)


@pytest.mark.parametrize("repeats", [(1, 1), (3, 2)])
def test_the_generated_composite_is_the_numeric_one(x64, repeats):
    n, m = repeats
    symbolic = compose([Phase(gradient_field(LOSS, XY), h1, n), Phase(gradient_field(OTHER, XY), h2, m)], XY, 2)
    numeric = bea.compose(
        [bea.Phase(bea.gradient_field(numeric_loss), 0.02, n), bea.Phase(bea.gradient_field(numeric_other), 0.03, m)], 2
    )
    made = jax_function(symbolic, XY, [h1, h2])
    np.testing.assert_allclose(made(jnp.array(POINT), 0.02, 0.03), numeric(jnp.array(POINT)), rtol=1e-11)


def test_the_generated_bracket_is_the_numeric_one(x64):
    made = jax_function(lie_bracket(gradient_field(LOSS, XY), gradient_field(OTHER, XY), XY), XY)
    numeric = bea.lie_bracket(bea.gradient_field(numeric_loss), bea.gradient_field(numeric_other))
    np.testing.assert_allclose(made(jnp.array(POINT)), numeric(jnp.array(POINT)), rtol=1e-11)


def test_a_high_order_field_is_the_numeric_log_map_up_to_the_next_power(x64):
    made = jax_function(modified_field(gradient_field(OTHER, XY), XY, h, 5), XY, [h])
    gaps = []
    for size in (0.04, 0.02, 0.01):
        step = lambda p, size=size: p - size * jax.grad(numeric_other)(p)
        gaps.append(np.abs(size * made(jnp.array(POINT), size) - bea.log_map(step, jnp.array(POINT), 8)).max())
    slopes = [np.log2(a / b) for a, b in itertools.pairwise(gaps)]
    assert abs(slopes[-1] - 6) < 0.3, slopes  # h f̃ is right through h⁵


def test_generated_and_numeric_modified_losses_of_a_deep_linear_net_agree(x64):
    a = list(sp.symbols("a:6"))
    residual = sp.Matrix(1, 2, a[4:]) * sp.Matrix(2, 2, a[:4]) - sp.Matrix([[1, 2]])
    net = lambda p: jnp.sum((p[4:].reshape(1, 2) @ p[:4].reshape(2, 2) - jnp.array([[1.0, 2.0]])) ** 2) / 2
    point = jnp.array([0.3, -0.2, 0.5, 0.9, 1.1, -0.7])
    made = jax_function(modified_loss((residual.T * residual).trace() / 2, a, h, 2), a, [h])
    np.testing.assert_allclose(made(point, 0.1), bea.modified_loss(net, 0.1)(point), rtol=1e-12)


def test_numbers_of_a_quadratic_are_those_of_its_closed_form(x64):
    """``H̃ = −log(1 − hH)/h``."""
    hessian, size = np.array([[2.0, 1.0], [1.0, 3.0]]), 0.01
    values, basis = np.linalg.eigh(hessian)
    exact = -(basis * (np.log1p(-size * values) / size)) @ basis.T
    matrix, start = jnp.asarray(hessian), jnp.array(POINT)
    displacement = bea.log_map(lambda p: p - size * matrix @ p, start, 8)
    np.testing.assert_allclose(displacement, -size * exact @ POINT, rtol=1e-11)
    third = bea.modified_field(lambda p: -matrix @ p, size, 3)(start)
    rest = (size**3 / 4) * np.linalg.matrix_power(hessian, 4) @ POINT  # the next term of −log(1 − hH)/h
    np.testing.assert_allclose(third, -exact @ POINT + rest, rtol=1e-6)


def test_the_printed_program_computes_what_the_function_does(x64):
    field = modified_field(gradient_field(LOSS, XY), XY, h, 3)
    namespace = {"jnp": jnp}
    exec(jax_source(field, XY, [h], name="made"), namespace)  # our own output: what a reader would paste
    expected = jax_function(field, XY, [h])(jnp.array(POINT), 0.05)
    np.testing.assert_allclose(namespace["made"](jnp.array(POINT), 0.05), expected, rtol=1e-12)
    exec(jax_source(LOSS, XY, name="scalar"), namespace)
    np.testing.assert_allclose(namespace["scalar"](jnp.array(POINT)), numeric_loss(POINT), rtol=1e-12)


def test_generated_functions_refuse_what_they_cannot_know():
    with pytest.raises(ValueError, match=r"h in .* is neither a parameter nor a constant"):
        jax_function(x * h, [x])
    with pytest.raises(ValueError, match="has no translation to JAX"):
        jax_function(sp.zeta(x), [x])
    with pytest.raises(ValueError, match="Abs is not smooth"):
        jax_function(sp.Abs(x), [x])
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        jax_function(x * y, XY)(jnp.zeros(3))
    with pytest.raises(ValueError, match="1 constants"):
        jax_function(x * h, [x], [h])(jnp.zeros(1))
    for bad in ("a b", "import", "x);import os;(", "jnp"):
        with pytest.raises(ValueError, match="cannot be a Python variable"):
            jax_source(sp.Symbol(bad), [sp.Symbol(bad)])


def test_a_hostile_symbol_name_is_harmless_in_a_generated_function():
    evil = sp.Symbol("__import__('os').abort()")
    assert float(jax_function(evil**2, [evil])(jnp.array([3.0]))) == 9.0
