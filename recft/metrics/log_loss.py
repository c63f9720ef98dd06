"""Log loss: how surprised the probabilities are by the truth; lower is better.

    yes or no: log loss = - mean of (y ln p + (1 - y) ln(1 - p))
    classes:   log loss = - mean of ln p(the true class)

Probabilities are kept 1e-7 away from 0 and 1: float32, in which models answer, has nothing between that and 1, and
a single certain mistake would make the mean infinite.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric
from recft.metrics._calibration import refuse_improbable

__all__ = ["MEMBER", "pointwise"]

CLIP = 1e-7


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The log loss over all pairs; NaN where there are none.

    -(ln 0.5 + ln(1 - 0.75)) / 2 = (0.6931 + 1.3863) / 2

    >>> labels = Labels(np.array([0.5, 0.75]), np.array([1, 0]), np.array([0, 0]))
    >>> round(pointwise(labels, np.ones(2)), 4)
    1.0397

    Of three classes the second is true: -ln 0.5

    >>> round(pointwise(Labels(np.array([[0.2, 0.5, 0.3]]), np.array([1]), np.array([0])), np.ones(1)), 4)
    0.6931

    Raises:
        ModelError: a score is no probability.
    """
    total = weights.sum()
    return float(weights @ labels.once(_surprises) / total) if total > 0 else float("nan")


def _surprises(labels: Labels) -> np.ndarray:
    """The log loss of each pair, (P,)."""
    refuse_improbable(labels.scores, "log loss")
    if labels.scores.ndim == 1:
        right = np.where(labels.labels == 1, labels.scores, 1 - labels.scores)
    else:
        right = labels.scores[np.arange(len(labels)), labels.labels.astype(np.int64)]
    surprises: np.ndarray = -np.log(np.clip(right, CLIP, 1 - CLIP))
    return surprises


MEMBER = Metric(
    summary="how surprised the probabilities are by the truth",
    pointwise=pointwise,
    outputs=("labels", "classes"),
    needs_probabilities=True,
    higher_is_better=False,
)
