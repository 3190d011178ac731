"""GLUE's metrics, as fractions of one; a prediction that is no label counts as wrong, as in T5's evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from fusion_core.errors import InputError

Values = Sequence[Any]  # classes or numbers

NO_LABEL = -1  # the class of a prediction that is no label


def _pair(targets: Values, predictions: Values) -> tuple[np.ndarray, np.ndarray]:
    if len(targets) != len(predictions) or not len(targets):
        raise InputError(
            f"there are {len(predictions)} predictions for {len(targets)} targets; give one for each, and at least one"
        )
    return np.asarray(targets), np.asarray(predictions)


def accuracy(targets: Values, predictions: Values) -> float:
    """Return the share of predictions that equal their target."""
    t, p = _pair(targets, predictions)
    return float(np.mean(t == p))


def f1(targets: Values, predictions: Values) -> float:
    """Return F₁ = 2 TP / (2 TP + FP + FN) of class 1 against class 0; 0 if there is no positive, in targets or predictions.

    A prediction that is neither class counts as the class that its target is not. Source: T5's ``f1_score_with_invalid``.
    """
    t, p = _pair(targets, predictions)
    p = np.where((p == 0) | (p == 1), p, 1 - t)
    hits, errors = np.sum((t == 1) & (p == 1)), np.sum(t != p)
    return float(2 * hits / (2 * hits + errors)) if hits + errors else 0.0


def matthews(targets: Values, predictions: Values) -> float:
    r"""Return the Matthews correlation of any number of classes; 0 if targets or predictions are all of one class.

    .. math:: \frac{c n - \sum_k t_k p_k}{\sqrt{(n^2 - \sum_k p_k^2)(n^2 - \sum_k t_k^2)}}

    with n pairs, c of them right, and t_k targets and p_k predictions of class k. Predictions that are no label are a class of
    their own, as in T5's evaluation.
    """
    t, p = _pair(targets, predictions)
    classes = np.unique(np.concatenate([t, p]))
    in_targets, in_predictions = (np.asarray([np.sum(x == k) for k in classes], float) for x in (t, p))
    n, right = float(len(t)), float(np.sum(t == p))
    spread = (n**2 - np.sum(in_predictions**2)) * (n**2 - np.sum(in_targets**2))
    return float((right * n - np.sum(in_targets * in_predictions)) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(targets: Values, predictions: Values) -> float:
    """Return Pearson's correlation; not a number if targets or predictions are constant, where it is undefined."""
    t, p = (x.astype(float) for x in _pair(targets, predictions))
    if t.min() == t.max() or p.min() == p.max():
        return math.nan
    return float(np.corrcoef(t, p)[0, 1])


def spearman(targets: Values, predictions: Values) -> float:
    """Return Pearson's correlation of the ranks; equal values share their mean rank."""
    t, p = _pair(targets, predictions)
    return pearson(stats.rankdata(t).tolist(), stats.rankdata(p).tolist())


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
