"""Log loss: how surprised the probabilities are by the truth; lower is better.

    log loss = - mean of (y ln p + (1 - y) ln(1 - p))

Probabilities are kept 1e-7 away from 0 and 1: float32, in which models answer, has nothing between that and 1, and
a single certain mistake would make the mean infinite.
"""

from __future__ import annotations

import numpy as np

from recft.errors import ModelError, problem
from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]

CLIP = 1e-7


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The log loss over all pairs; NaN where there are none.

    -(ln 0.5 + ln(1 - 0.75)) / 2 = (0.6931 + 1.3863) / 2

    >>> labels = Labels(np.array([0.5, 0.75]), np.array([1, 0]), np.array([0, 0]))
    >>> round(pointwise(labels, np.ones(2)), 4)
    1.0397

    Raises:
        ModelError: a score is no probability.
    """
    if not weights.sum() > 0:
        return float("nan")
    p = labels.scores
    if not ((p >= 0) & (p <= 1)).all():
        raise ModelError(
            problem(
                "scores", f"from {p.min():g} to {p.max():g}", "log loss reads probabilities from 0 to 1", "take auc"
            )
        )
    right = np.clip(np.where(labels.labels == 1, p, 1 - p), CLIP, 1 - CLIP)
    return float(-(weights * np.log(right)).sum() / weights.sum())


MEMBER = Metric(
    summary="how surprised the probabilities are by the truth",
    pointwise=pointwise,
    needs_probabilities=True,
    higher_is_better=False,
)
