"""RMSE: the root of the mean squared error of predicted numbers; lower is better.

RMSE = sqrt(mean of (predicted - true)^2)
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The RMSE over all pairs; NaN where there are none.

    sqrt((1^2 + 2^2) / 2)

    >>> round(pointwise(Labels(np.array([4.0, 1.0]), np.array([5.0, 3.0]), np.array([0, 0])), np.ones(2)), 4)
    1.5811
    """
    total = weights.sum()
    return float(np.sqrt(weights @ labels.once(_squares) / total)) if total > 0 else float("nan")


def _squares(labels: Labels) -> np.ndarray:
    squares: np.ndarray = np.square(labels.scores - labels.labels)
    return squares


MEMBER = Metric(
    summary="root of the mean squared error", pointwise=pointwise, outputs=("values",), higher_is_better=False
)
