"""F1: the harmonic mean of precision and recall.

    F1 = 2 TP / (2 TP + FP + FN), with yes from 0.5 on

TP: answered yes rightly; FP: answered yes wrongly; FN: a yes that was missed. Rightly answered noes do not count.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The F1 over all pairs; NaN where nothing is yes and nothing was answered yes.

    TP 1 (0.9), FP 1 (0.5), FN 1 (0.4): 2 / (2 + 1 + 1).

    >>> labels = Labels(np.array([0.9, 0.5, 0.4, 0.1]), np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]))
    >>> pointwise(labels, np.ones(4))
    0.5
    """
    answered, true = labels.scores >= 0.5, labels.labels == 1
    both = weights[answered].sum() + weights[true].sum()  # 2 TP + FP + FN
    return float(2 * weights[answered & true].sum() / both) if both > 0 else float("nan")


MEMBER = Metric(summary="harmonic mean of precision and recall", pointwise=pointwise, needs_probabilities=True)
