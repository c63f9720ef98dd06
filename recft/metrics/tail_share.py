"""Tail share: how much of a list is long-tail items (APLT, the average percentage of long-tail items).

    tail share@k = places within the first k that hold a tail item / places within the first k that are not empty

Abdollahpouri, Burke and Mobasher, Managing popularity bias in recommender systems with personalized re-ranking
(2019). Tail are the items outside the most popular ones that take 80% of training events; items of one popularity
go together. An invalid output is a place without a tail item.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Lists, Metric
from recft.metrics._lists import tail_counts

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The tail share of each record's list, (R,), NaN where it is empty.

    Item 0 takes 8 of 10 events, so that 1 and 2 are tail:

    >>> lists(Lists(np.array([[0, 1, 2], [2, -1, -1]]), np.array([8, 1, 1]), [""] * 3), 2).tolist()
    [0.5, 1.0]
    """
    tail, filled = tail_counts(given, cutoff)
    out = np.full(len(given), np.nan)
    np.divide(tail, filled, out=out, where=filled > 0)
    return out


MEMBER = Metric(summary="share of a list that is long-tail items (APLT)", lists=lists, needs_cutoff=True)
