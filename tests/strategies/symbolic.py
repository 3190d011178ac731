"""What the symbolic tests draw: texts of trees, rational tableaux, polynomial fields.

Plain data only: beartype, which checks the package in tests, draws random numbers, and hypothesis forbids that here.
"""

from fractions import Fraction

import sympy as sp
from hypothesis import strategies as st

fractions = st.builds(Fraction, st.integers(-6, 6), st.integers(1, 5))


@st.composite
def tree_texts(draw, max_order: int = 7, colours: int = 1) -> str:
    """Texts of trees, nodes hung at random, children in random order; ``Tree(text)`` reads them."""
    parents = [draw(st.integers(0, k)) for k in range(draw(st.integers(0, max_order - 1)))]
    colour = [draw(st.integers(0, colours - 1)) for _ in range(len(parents) + 1)]

    def subtree(node):
        children = [subtree(k + 1) for k, parent in enumerate(parents) if parent == node]
        return f"{colour[node] or ''}[{''.join(draw(st.permutations(children)))}]"

    return subtree(0)


@st.composite
def tableaux(draw, max_stages: int = 3, explicit: bool = False) -> tuple[list[list[Fraction]], list[Fraction]]:
    """(a, b) of consistent Runge–Kutta methods with small rational entries, implicit ones among them."""
    stages = draw(st.integers(1, max_stages))
    a = [[draw(fractions) if j < i or not explicit else Fraction(0) for j in range(stages)] for i in range(stages)]
    b = [draw(fractions) for _ in range(stages - 1)]
    return a, [*b, 1 - sum(b, Fraction(0))]


@st.composite
def polynomial_fields(draw, dimension: int = 2, degree: int = 2) -> list[dict[tuple[int, ...], Fraction]]:
    """One {exponents: coefficient} a component, with up to three terms each."""
    exponents = st.tuples(*[st.integers(0, degree)] * dimension).filter(lambda e: sum(e) <= degree)
    return [draw(st.dictionaries(exponents, fractions, min_size=1, max_size=3)) for _ in range(dimension)]


def evaluate(field, point):
    """A polynomial field at a point of any numbers that add and multiply."""
    values = []
    for component in field:
        total = 0 * point[0]
        for exponents, coefficient in component.items():
            term = coefficient + 0 * point[0]
            for x, k in zip(point, exponents, strict=True):
                for _ in range(k):
                    term = term * x
            total = total + term
        values.append(total)
    return values


def as_sympy(field, symbols) -> list[sp.Expr]:
    """The same field as sympy expressions."""
    return [
        sp.Add(
            *(
                sp.Rational(c.numerator, c.denominator) * sp.prod([x**k for x, k in zip(symbols, e, strict=True)])
                for e, c in component.items()
            )
        )
        for component in field
    ]
