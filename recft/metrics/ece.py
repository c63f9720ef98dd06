"""Expected calibration error: how far probabilities are from how often they come true; lower is better.

    ECE = sum over bins b of n(b) / n * |share(b) that came true - mean probability in b|

Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning (2015); Guo et al., On
calibration of modern neural networks (2017): 15 bins of equal width. Of classes it is the answer's probability that
is judged, of yes or no that of yes. `_calibration.bins` gives the bins themselves.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric
from recft.metrics._calibration import gaps

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The calibration error over all pairs; NaN where there are none.

    Four answers of 0.75 of which two are yes, and one of 0.1 that is no: (4 x |0.5 - 0.75| + 1 x 0.1) / 5.

    >>> scores = np.array([0.75, 0.75, 0.75, 0.75, 0.1])
    >>> round(pointwise(Labels(scores, np.array([1, 1, 0, 0, 0]), np.zeros(5)), np.ones(5)), 4)
    0.22

    Raises:
        ModelError: a score is no probability.
    """
    total = weights.sum()
    return float(np.abs(gaps(labels, weights)).sum() / total) if total > 0 else float("nan")


MEMBER = Metric(
    summary="how far probabilities are from how often they come true (15 bins)",
    pointwise=pointwise,
    outputs=("labels", "classes"),
    needs_probabilities=True,
    higher_is_better=False,
)
