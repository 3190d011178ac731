"""Rooted trees are canonical, countable, and enumerated once each."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bea.trees import Tree, count_trees, trees
from tests.strategies.symbolic import tree_texts

PLAIN = [1, 1, 2, 4, 9, 20, 48, 115, 286, 719, 1842, 4766]  # OEIS A000081
TWO_COLOURS = [2, 4, 14, 52, 214, 916, 4116]  # OEIS A000151


@pytest.mark.parametrize(("colours", "published"), [(1, PLAIN), (2, TWO_COLOURS)])
def test_trees_are_as_many_as_published_and_all_different(colours, published):
    order = len(published) if colours == 1 else 6
    found = list(trees(order, colours))
    assert count_trees(len(published), colours) == published
    assert len(set(found)) == len(found) == sum(published[:order])
    assert [sum(t.order == q for t in found) for q in range(1, order + 1)] == published[:order]


def test_the_enumeration_is_sorted_and_canonical():
    found = list(trees(6, 2))
    assert found == sorted(found, key=Tree.sort_key)
    assert all(Tree(str(t)) == t and Tree.of(t.children, t.colour) == t for t in found)


@settings(deadline=None)
@given(tree_texts(7, 3))
def test_any_tree_is_in_the_enumeration_whatever_the_order_of_its_children(text):
    tree = Tree(text)
    assert tree in ALL_SMALL or tree.order > 4
    assert Tree.of(reversed(tree.children), tree.colour) == tree
    assert tree.order == 1 + sum(child.order for child in tree.children) == len(tree.colours)


ALL_SMALL = set(trees(4, 3))


@settings(deadline=None)
@given(tree_texts(6, 2))
def test_symmetry_counts_the_automorphisms(text):
    tree = Tree(text)
    shape = []

    def label(t, parent):
        here = len(shape)
        shape.append((parent, t.colour))
        for child in t.children:
            label(child, here)

    label(tree, None)
    count = sum(
        all(
            colour == shape[p[i]][1] and (None if parent is None else p[parent]) == shape[p[i]][0]
            for i, (parent, colour) in enumerate(shape)
        )
        for p in itertools.permutations(range(len(shape)))
    )
    assert tree.symmetry == count


def test_densities_and_symmetries_count_increasing_labellings():
    # |t|! / (γ(t) σ(t)) labels increase away from the root; all trees of one order have (n − 1)! of them together
    for n in range(1, 8):
        labellings = [Fraction(math.factorial(n), t.density * t.symmetry) for t in trees(n) if t.order == n]
        assert all(x.denominator == 1 for x in labellings)
        assert sum(labellings) == math.factorial(n - 1)


@settings(deadline=None)
@given(tree_texts(6, 2))
def test_merging_colours_keeps_the_shape(text):
    tree = Tree(text)
    assert tree.recolour([0, 0]) in set(trees(6))
    assert tree.recolour([1, 0]).recolour([1, 0]) == tree


@pytest.mark.parametrize(
    "text", ["", "[", "]", "[]]", "[][]", "x", "[a]", "[[]", "-1[]", "[ ]", "[" * 5000 + "]" * 5000]
)
def test_a_text_that_is_no_tree_is_refused(text):
    with pytest.raises(ValueError, match="tree"):
        Tree(text)


@settings(deadline=None)
@given(st.text(alphabet="[]01", max_size=12))
def test_reading_never_fails_in_another_way(text):
    try:
        tree = Tree(text)
    except ValueError:
        return
    assert Tree(str(tree)) == tree
