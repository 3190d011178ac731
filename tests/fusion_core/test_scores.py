import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fusion_core as fc
from fusion_core.text import scores

classes = st.integers(0, 2)
pairs = st.lists(st.tuples(classes, classes), min_size=1, max_size=30)
binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)
numbers = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=2, max_size=30)


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is an extra: pip install 'deepfusion[data]'")


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_accuracy_and_matthews_equal_scikit_learns(reference, drawn):
    targets, predictions = map(list, zip(*drawn, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn on a single class
        expected = reference.matthews_corrcoef(targets, predictions)
    assert scores.matthews(targets, predictions) == pytest.approx(expected, abs=1e-12)
    assert scores.accuracy(targets, predictions) == pytest.approx(reference.accuracy_score(targets, predictions))


@given(binary)
@settings(max_examples=50, deadline=None)
def test_f1_equals_scikit_learns(reference, drawn):
    targets, predictions = map(list, zip(*drawn, strict=True))
    assert scores.f1(targets, predictions) == pytest.approx(reference.f1_score(targets, predictions, zero_division=0.0))


@given(numbers)
@settings(max_examples=50, deadline=None)
def test_correlations_equal_scipys(drawn):
    targets, predictions = (np.asarray(x) / 5 for x in zip(*drawn, strict=True))
    if len(set(targets)) == 1 or len(set(predictions)) == 1:
        assert math.isnan(scores.pearson(targets.tolist(), predictions.tolist()))
        assert math.isnan(scores.spearman(targets.tolist(), predictions.tolist()))
        return
    for ours, theirs in ((scores.pearson, stats.pearsonr), (scores.spearman, stats.spearmanr)):
        expected = theirs(targets, predictions).statistic
        assert ours(targets.tolist(), predictions.tolist()) == pytest.approx(expected, abs=1e-12)


def test_known_values():
    targets, predictions = [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1]
    assert scores.accuracy(targets, predictions) == pytest.approx(4 / 6)
    assert scores.f1(targets, predictions) == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert scores.matthews(targets, predictions) == pytest.approx((2 * 2 - 1) / 9)
    assert scores.pearson([0, 1, 2], [1, 0, 2]) == pytest.approx(0.5)
    assert scores.spearman([0, 1, 1, 9], [0, 1, 1, 2]) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_an_answer_that_is_no_label_is_worse_than_the_right_one(metric):
    targets = [1, 1, 0, 0]
    score = scores.METRICS[metric]
    for place in range(4):
        predictions = list(targets)
        predictions[place] = scores.NO_LABEL
        assert score(targets, predictions) < score(targets, targets) == 1
    # for F1 it is the other class, as in T5's evaluation
    assert scores.f1(targets, [1, -1, 0, -1]) == scores.f1(targets, [1, 0, 0, 1])


def test_lists_of_unequal_lengths_and_empty_ones_are_refused():
    for targets, predictions in (([1], [1, 0]), ([], [])):
        with pytest.raises(fc.InputError, match="give one for each, and at least one"):
            scores.accuracy(targets, predictions)
