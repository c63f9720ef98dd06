"""Accuracy: how many answers are right.

accuracy = pairs answered rightly / pairs, with yes from 0.5 on
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The accuracy over all pairs; NaN where there are none.

    >>> labels = Labels(np.array([0.9, 0.5, 0.4, 0.1]), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    >>> pointwise(labels, np.ones(4))
    0.5
    """
    right = (labels.scores >= 0.5) == (labels.labels == 1)
    total = weights.sum()
    return float(weights[right].sum() / total) if total > 0 else float("nan")


MEMBER = Metric(summary="share of answers that are right", pointwise=pointwise, needs_probabilities=True)
