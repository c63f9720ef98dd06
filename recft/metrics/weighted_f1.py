"""Weighted F1: the F1 of each class, averaged with every class counting as often as it is true.

    F1(c) = 2 TP(c) / (2 TP(c) + FP(c) + FN(c))
    weighted F1 = sum over classes c of n(c) * F1(c) / sum over classes of n(c)

n(c) is how many pairs are truly of class c.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric
from recft.metrics._classes import f1_by_class

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The weighted F1 over all pairs; NaN where there are none.

    True 0, 0, 0, 1, answered 0, 0, 0, 0: F1 of 0 is 6 / 7, of 1 it is 0: 3/4 x 6/7.

    >>> scores = np.array([[0.8, 0.2]] * 4)
    >>> round(pointwise(Labels(scores, np.array([0, 0, 0, 1]), np.zeros(4)), np.ones(4)), 4)
    0.6429
    """
    if not weights.sum() > 0:
        return float("nan")
    f1, n = f1_by_class(labels, weights)
    return float(np.nansum(n * f1) / n.sum())


MEMBER = Metric(summary="F1 of each class, averaged by how often it is true", pointwise=pointwise, outputs=("classes",))
