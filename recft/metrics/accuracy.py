"""Accuracy: how many answers are right.

accuracy = pairs answered rightly / pairs

The answer is yes from 0.5 on; of classes it is the one of the highest probability, of several the one of the lowest
number.
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

    Of two classes the first is answered twice, rightly once:

    >>> pointwise(Labels(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1]), np.array([0, 0])), np.ones(2))
    0.5
    """
    total = weights.sum()
    return float(weights[labels.once(_right)].sum() / total) if total > 0 else float("nan")


def _right(labels: Labels) -> np.ndarray:
    """Whether each answer is right, (P,)."""
    is_right: np.ndarray
    if labels.scores.ndim == 1:
        is_right = (labels.scores >= 0.5) == (labels.labels == 1)
    else:
        is_right = labels.scores.argmax(axis=1) == labels.labels
    return is_right


MEMBER = Metric(
    summary="share of answers that are right",
    pointwise=pointwise,
    outputs=("labels", "classes"),
    needs_probabilities=True,
)
