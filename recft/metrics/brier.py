"""Brier score: how far the probabilities are from what is true, squared; lower is better.

    yes or no: mean of (p - y)^2
    classes:   mean of half the sum over classes c of (p(c) - [c is the true class])^2

Brier, Verification of forecasts expressed in terms of probability (1950). His sum over classes runs from 0 to 2; half
of it runs from 0 to 1, and of two classes is the yes-or-no figure.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric
from recft.metrics._calibration import refuse_improbable

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The Brier score over all pairs; NaN where there are none.

    (0.2^2 + 0.4^2) / 2

    >>> round(pointwise(Labels(np.array([0.8, 0.4]), np.array([1, 0]), np.array([0, 0])), np.ones(2)), 4)
    0.1

    Of three classes the second is true: (0.2^2 + 0.5^2 + 0.3^2) / 2

    >>> round(pointwise(Labels(np.array([[0.2, 0.5, 0.3]]), np.array([1]), np.array([0])), np.ones(1)), 4)
    0.19

    Raises:
        ModelError: a score is no probability.
    """
    total = weights.sum()
    return float(weights @ labels.once(_distances) / total) if total > 0 else float("nan")


def _distances(labels: Labels) -> np.ndarray:
    """The squared distance of each pair, (P,)."""
    refuse_improbable(labels.scores, "the Brier score")
    if labels.scores.ndim == 1:
        squares: np.ndarray = np.square(labels.scores - (labels.labels == 1))
        return squares
    of_true = labels.scores[np.arange(len(labels)), labels.labels.astype(np.int64)]
    halves: np.ndarray = (np.square(labels.scores).sum(axis=1) - 2 * of_true + 1) / 2
    return halves


MEMBER = Metric(
    summary="squared distance of the probabilities from the truth",
    pointwise=pointwise,
    outputs=("labels", "classes"),
    needs_probabilities=True,
    higher_is_better=False,
)
