r"""Words and Lie words: the logarithm of a composition of flows in a free Lie algebra, exact.

A word is a tuple of letters 0, 1, …; an element of the free associative algebra is ``{word: Fraction}``. Lie elements
are written in the Lyndon basis, ``{Lyndon word: Fraction}``, where a Lyndon word stands for its standard bracketing
(:func:`bracketing`): ``(0, 0, 1)`` is [X, [X, Y]] for the letters X = 0, Y = 1.

**Convention.** The letters are Lie derivatives along vector fields; the first factor of ``exp(X) exp(Y)`` acts first,
and [X, Y] = XY − YX is the Lie derivative along :math:`[f_1, f_2] = f_2' f_1 - f_1' f_2`.

Source: Hairer, Lubich & Wanner, *Geometric Numerical Integration*, section III.4; Reutenauer, *Free Lie Algebras*,
for the triangularity that :func:`lyndon_coordinates` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

Word = tuple[int, ...]
Element = dict[Word, Fraction]

MOST_WORDS = 2_000_000
"""Words that an element may have above which :func:`bch` refuses."""


def add(a: Mapping[Word, Fraction], b: Mapping[Word, Fraction], scale: Fraction | int = 1) -> Element:
    """Return a + scale · b, without zeros."""
    total = dict(a)
    for word, value in b.items():
        total[word] = total.get(word, Fraction(0)) + scale * value
    return {word: value for word, value in total.items() if value}


def multiply(a: Mapping[Word, Fraction], b: Mapping[Word, Fraction], order: int) -> Element:
    """Return the product (concatenation) without words longer than ``order``."""
    product: Element = {}
    for left, x in a.items():
        for right, y in b.items():
            if len(left) + len(right) <= order:
                word = left + right
                product[word] = product.get(word, Fraction(0)) + x * y
    return {word: value for word, value in product.items() if value}


def bracket(a: Mapping[Word, Fraction], b: Mapping[Word, Fraction], order: int) -> Element:
    """Return [a, b] = ab − ba without words longer than ``order``."""
    return add(multiply(a, b, order), multiply(b, a, order), -1)


def exponential(a: Mapping[Word, Fraction], order: int) -> Element:
    """Return exp(a) through words of length ``order``; a has no constant term."""
    total: Element = {(): Fraction(1)}
    power: Element = {(): Fraction(1)}
    for k in range(1, order + 1):
        power = {word: value / k for word, value in multiply(power, a, order).items()}
        total = add(total, power)
    return total


def logarithm(a: Mapping[Word, Fraction], order: int) -> Element:
    """Return log(a) through words of length ``order``; raise ValueError if the constant term of a is not 1."""
    if a.get((), 0) != 1:
        raise ValueError(f"the logarithm needs the constant term 1, not {a.get((), 0)}")
    rest = {word: value for word, value in a.items() if word}
    total: Element = {}
    power: Element = {(): Fraction(1)}
    for k in range(1, order + 1):
        power = multiply(power, rest, order)
        total = add(total, power, Fraction((-1) ** (k + 1), k))
    return total


def lyndon_words(letters: int, order: int) -> Iterator[Word]:
    """Return all Lyndon words of at most ``order`` letters, in lexicographic order (Duval's algorithm)."""
    word = [-1]
    while word:
        word[-1] += 1
        yield tuple(word)
        word = [word[i % len(word)] for i in range(order)]
        while word and word[-1] == letters - 1:
            word.pop()


def is_lyndon(word: Word) -> bool:
    """Return whether the word is smaller than all its proper suffixes."""
    return bool(word) and all(word < word[i:] for i in range(1, len(word)))


@cache
def bracketing(word: Word) -> Any:
    """Return the standard bracketing of a Lyndon word as nested pairs: ``(0, 0, 1)`` gives ``(0, (0, 1))``.

    The right part is the longest proper suffix that is a Lyndon word.

    Raises:
      ValueError: the word is not a Lyndon word.
    """
    if not is_lyndon(word):
        raise ValueError(f"{word} is not a Lyndon word: it must be smaller than each of its proper suffixes")
    if len(word) == 1:
        return word[0]
    cut = next(i for i in range(1, len(word)) if is_lyndon(word[i:]))
    return bracketing(word[:cut]), bracketing(word[cut:])


def evaluate_bracket(bracket: Any, leaf: Callable[[int], Any], commute: Callable[[Any, Any], Any]) -> Any:
    """Return the value of a nested bracket in any Lie algebra: ``leaf(letter)`` for letters, ``commute(a, b)`` for pairs."""
    if isinstance(bracket, int):
        return leaf(bracket)
    return commute(*(evaluate_bracket(part, leaf, commute) for part in bracket))


@cache
def _expanded(word: Word) -> Element:
    if len(word) == 1:
        return {word: Fraction(1)}
    cut = next(i for i in range(1, len(word)) if is_lyndon(word[i:]))
    return bracket(_expanded(word[:cut]), _expanded(word[cut:]), len(word))


def expand(lie: Mapping[Word, Fraction]) -> Element:
    """Return a Lie element in the Lyndon basis as an element of the free associative algebra.

    Raises:
      ValueError: a word is not a Lyndon word.
    """
    total: Element = {}
    for word, value in lie.items():
        if not is_lyndon(word):
            raise ValueError(f"{word} is not a Lyndon word: it must be smaller than each of its proper suffixes")
        total = add(total, _expanded(word), value)
    return total


def lyndon_coordinates(element: Mapping[Word, Fraction]) -> Element:
    """Return the coordinates of a Lie element in the Lyndon basis.

    A bracketed Lyndon word is itself plus larger words of its length, so the smallest word of a Lie element is a Lyndon
    word and carries its coordinate.

    Raises:
      ValueError: the element is not a Lie element.
    """
    left, found = {word: value for word, value in element.items() if value}, {}
    for length in sorted({len(word) for word in left}):
        part = {word: value for word, value in left.items() if len(word) == length}
        while part:
            word = min(part)
            if not is_lyndon(word):
                raise ValueError(f"not a Lie element: after subtracting brackets the word {word} is left")
            found[word] = part[word]
            part = add(part, _expanded(word), -part[word])
    return found


def bch(factors: int, order: int) -> Element:
    r"""Return log(exp(X_0) exp(X_1) … ) in the Lyndon basis through brackets of ``order`` letters (Baker–Campbell–Hausdorff).

    For two factors: X + Y + ½ [X, Y] + 1/12 [X, [X, Y]] + 1/12 [[X, Y], Y] + …; the first factor acts first.

    Args:
      factors: number of letters, at least 1.
      order: length of the longest words, at least 1.

    Raises:
      ValueError: either is below 1, or there would be more than ``MOST_WORDS`` words.
    """
    if factors < 1 or order < 1:
        raise ValueError(f"bch needs at least one factor and order 1, not {factors} factors to order {order}")
    words = sum(factors**k for k in range(min(order, 64) + 1))
    if words > MOST_WORDS:
        raise ValueError(
            f"{factors} factors to order {order} mean {'more than ' if order > 64 else ''}{words:,} words and about "
            f"{words * 400 / 2**30:,.1f} GiB: at most {MOST_WORDS:,} words are built; lower the order or combine "
            f"factors in pairs"
        )
    product: Element = {(): Fraction(1)}
    for letter in range(factors):
        product = multiply(product, exponential({(letter,): Fraction(1)}, order), order)
    return lyndon_coordinates(logarithm(product, order))
