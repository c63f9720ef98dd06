"""Grouped AUC: how well each user's own pairs are ordered.

    GAUC = sum over users of n(user) * AUC(user) / sum over users of n(user)

n is how many pairs a user has; users who have only yes or only no have no AUC and are left out (`dropped` counts
them). Unlike AUC, it gains nothing from knowing which users say yes more often (Zhu et al., Optimized cost per
click in Taobao display advertising, 2017; Zhou et al., Deep interest network, 2018).
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric

__all__ = ["MEMBER", "dropped", "pointwise"]


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The grouped AUC; NaN where no user has both classes.

    User 0 (3 pairs) is right in 1 of 2 comparisons, user 1 (2 pairs) in 1 of 1, user 2 has no yes:
    (3 x 1/2 + 2 x 1) / 5.

    >>> scores = np.array([0.5, 0.9, 0.1, 0.8, 0.2, 0.7])
    >>> labels = Labels(scores, np.array([1, 0, 0, 1, 0, 0]), np.array([0, 0, 0, 1, 1, 2]))
    >>> pointwise(labels, np.ones(6))
    0.7
    >>> dropped(labels)
    1
    """
    if not len(labels.labels):
        return float("nan")
    order, starts = labels.by_group_and_score.order, labels.by_group_and_score.starts
    is_yes = labels.labels[order] == 1
    sorted_weights = weights[order]
    yes = np.add.reduceat(np.where(is_yes, sorted_weights, 0.0), starts)  # by group and distinct score, upwards
    no = np.add.reduceat(np.where(is_yes, 0.0, sorted_weights), starts)
    group = labels.groups[order][starts]
    first = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))  # (G,)
    before = np.cumsum(no) - no
    lower = before - np.repeat(before[first], np.diff(first, append=len(group)))  # noes of the group below
    right = np.add.reduceat(yes * (lower + no / 2), first)
    n_yes, n_no = np.add.reduceat(yes, first), np.add.reduceat(no, first)
    both = (n_yes > 0) & (n_no > 0)
    size = (n_yes + n_no)[both]
    if not size.sum() > 0:
        return float("nan")
    return float((size * right[both] / (n_yes[both] * n_no[both])).sum() / size.sum())


def dropped(labels: Labels) -> int:
    """How many users have one class only."""
    _, codes = np.unique(labels.groups, return_inverse=True)
    n_yes = np.bincount(codes, weights=labels.labels == 1)
    return int(((n_yes == 0) | (n_yes == np.bincount(codes))).sum())


MEMBER = Metric(summary="AUC of each user's own pairs, averaged by pairs", pointwise=pointwise, left_out=dropped)
