"""MAE: how far predicted numbers are from the true ones, on average; lower is better.

MAE = mean of |predicted - true|
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The mean absolute error over all pairs; NaN where there are none.

    (1 + 2) / 2

    >>> pointwise(Labels(np.array([4.0, 1.0]), np.array([5.0, 3.0]), np.array([0, 0])), np.ones(2))
    1.5
    """
    total = weights.sum()
    return float(weights @ labels.once(_errors) / total) if total > 0 else float("nan")


def _errors(labels: Labels) -> np.ndarray:
    errors: np.ndarray = np.abs(labels.scores - labels.labels)
    return errors


MEMBER = Metric(summary="mean absolute error", pointwise=pointwise, outputs=("values",), higher_is_better=False)
