"""Tail count: how many long-tail items a list holds (ACLT, the average coverage of long-tail items).

    tail count@k = places within the first k that hold a tail item

Abdollahpouri, Burke and Mobasher, Managing popularity bias in recommender systems with personalized re-ranking
(2019), whose formula is this sum, from 0 to k. Unlike the tail share it does not reward short lists. Tail are the
items outside the most popular ones that take 80% of training events; items of one popularity go together.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Lists, Metric
from recft.metrics._lists import tail_counts

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The number of tail items in each record's list, (R,), NaN where it is empty.

    Item 0 takes 8 of 10 events, so that 1 and 2 are tail:

    >>> lists(Lists(np.array([[0, 1, 2], [2, -1, -1]]), np.array([8, 1, 1]), [""] * 3), 3).tolist()
    [2.0, 1.0]
    """
    tail, filled = tail_counts(given, cutoff)
    return np.where(filled > 0, tail, np.nan)


MEMBER = Metric(summary="how many long-tail items a list holds (ACLT)", lists=lists, needs_cutoff=True)
