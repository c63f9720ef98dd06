"""AUC: the chance that a yes scores above a no.

    AUC = (pairs of a yes and a no with the yes above + half of those that tie) / all such pairs

The area under the ROC curve, by the Mann-Whitney statistic (Hanley and McNeil, 1982). With weights, a pair of a
yes and a no counts as the product of its two weights.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The AUC over all pairs; NaN where there is only one class.

    The yes of 0.8 beats both noes, the yes of 0.3 ties with one and loses to the other: (2 + 0.5) / 4.

    >>> labels = Labels(np.array([0.8, 0.3, 0.3, 0.5]), np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))
    >>> pointwise(labels, np.ones(4))
    0.625
    """
    if not len(labels.labels):
        return float("nan")
    order, starts = labels.by_score.order, labels.by_score.starts
    everyone = weights[order]
    of_yes = everyone * labels.once(_is_yes)
    yes = np.add.reduceat(of_yes, starts)  # by distinct score, upwards
    no = np.add.reduceat(everyone - of_yes, starts)
    everything = yes.sum() * no.sum()
    return float((yes * (np.cumsum(no) - no / 2)).sum() / everything) if everything > 0 else float("nan")


def _is_yes(labels: Labels) -> np.ndarray:
    """1.0 for yes, else 0.0, by score upwards."""
    is_yes: np.ndarray = (labels.labels[labels.by_score.order] == 1).astype(np.float64)
    return is_yes


MEMBER = Metric(summary="chance that a yes scores above a no", pointwise=pointwise)
