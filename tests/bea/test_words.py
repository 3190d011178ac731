"""The Baker–Campbell–Hausdorff series, its published coefficients, and the Lyndon basis."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bea.words import (
    add,
    bch,
    bracket,
    bracketing,
    expand,
    exponential,
    is_lyndon,
    logarithm,
    lyndon_coordinates,
    lyndon_words,
    multiply,
)

X, Y = {(0,): Fraction(1)}, {(1,): Fraction(1)}


def nested(text):
    """[x1,[x2,[…]]] for a text such as "XYX", right-nested: [X,[Y,X]]."""
    letters = [X if c == "X" else Y for c in text]
    value = letters[-1]
    for letter in reversed(letters[:-1]):
        value = bracket(letter, value, len(text))
    return value


# Hairer, Lubich & Wanner, section III.4.2, and Dynkin (1947): coefficients of right-nested brackets
PUBLISHED = {
    1: [(1, "X"), (1, "Y")],
    2: [(Fraction(1, 2), "XY")],
    3: [(Fraction(1, 12), "XXY"), (Fraction(1, 12), "YYX")],
    4: [(Fraction(-1, 24), "YXXY")],
    5: [
        (Fraction(-1, 720), "YYYYX"),
        (Fraction(-1, 720), "XXXXY"),
        (Fraction(1, 360), "XYYYX"),
        (Fraction(1, 360), "YXXXY"),
        (Fraction(1, 120), "YXYXY"),
        (Fraction(1, 120), "XYXYX"),
    ],
}


@pytest.mark.parametrize("degree", PUBLISHED)
def test_bch_has_the_published_coefficients_to_degree_five(degree):
    published = {}
    for value, text in PUBLISHED[degree]:
        published = add(published, nested(text), value)
    found = expand({word: value for word, value in bch(2, 5).items() if len(word) == degree})
    assert published
    assert found == published


@pytest.mark.parametrize(("factors", "order"), [(2, 7), (3, 4)])
def test_the_exponential_of_bch_is_the_product_of_exponentials(factors, order):
    product = {(): Fraction(1)}
    for letter in range(factors):
        product = multiply(product, exponential({(letter,): Fraction(1)}, order), order)
    assert exponential(expand(bch(factors, order)), order) == product


def test_combining_in_pairs_is_combining_at_once():
    order = 4
    first = logarithm(multiply(exponential(X, order), exponential(Y, order), order), order)
    both = logarithm(multiply(exponential(first, order), exponential({(2,): Fraction(1)}, order), order), order)
    assert lyndon_coordinates(both) == bch(3, order)


def test_lyndon_words_are_as_many_as_witt_counts():
    words = list(lyndon_words(2, 8))
    assert [sum(len(w) == n for w in words) for n in range(1, 9)] == [2, 1, 2, 3, 6, 9, 18, 30]
    assert words == sorted(words)
    assert all(map(is_lyndon, words))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(list(lyndon_words(2, 5))), st.fractions(-3, 3, max_denominator=6), max_size=5))
def test_coordinates_undo_expansion(lie):
    lie = {word: value for word, value in lie.items() if value}
    assert lyndon_coordinates(expand(lie)) == lie


def test_a_product_that_is_no_lie_element_is_refused():
    with pytest.raises(ValueError, match="not a Lie element"):
        lyndon_coordinates({(1, 0): Fraction(1)})
    with pytest.raises(ValueError, match="not a Lyndon word"):
        bracketing((1, 0))
    with pytest.raises(ValueError, match="constant term"):
        logarithm(X, 2)


@pytest.mark.parametrize(("factors", "order"), [(0, 2), (2, 0), (2, 30), (5, 10**9)])
def test_absurd_sizes_are_refused_with_an_estimate(factors, order):
    with pytest.raises(ValueError, match=r"at least one|words and about .* GiB"):
        bch(factors, order)
