"""Macro F1: the F1 of each class, averaged with every class counting the same.

    F1(c) = 2 TP(c) / (2 TP(c) + FP(c) + FN(c))
    macro F1 = mean of F1(c) over the classes that are true of some pair or were answered for one

A rare class weighs as much as a frequent one.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric
from recft.metrics._classes import f1_by_class

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The macro F1 over all pairs; NaN where there are none.

    True 0, 0, 1, answered 0, 1, 1: F1 of 0 is 2 / (2 + 0 + 1), of 1 the same; the third class never occurs.

    >>> scores = np.array([[0.8, 0.1, 0.1], [0.3, 0.5, 0.2], [0.1, 0.9, 0.0]])
    >>> round(pointwise(Labels(scores, np.array([0, 0, 1]), np.zeros(3)), np.ones(3)), 4)
    0.6667
    """
    if not weights.sum() > 0:
        return float("nan")
    f1, _ = f1_by_class(labels, weights)
    return float(np.nanmean(f1))


MEMBER = Metric(summary="F1 of each class, averaged by class", pointwise=pointwise, outputs=("classes",))
