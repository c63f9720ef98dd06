"""Diversity: how unlike each other the items of one list are.

    diversity@k = mean over pairs of items within the first k places of 1 - |A and B| / |A or B|

A and B are the sets of words (`recft.data.text.words`) of the two items' texts, hence Jaccard's distance. The mean of
pairs is the intra-list distance (Ziegler et al., Improving recommendation lists through topic diversification, 2005;
Smyth and McClave, Similarity vs. diversity, 2001). Two texts without words count as alike.
"""

from __future__ import annotations

import numpy as np

from recft.data.text import words
from recft.metrics._base import Lists, Metric

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The diversity of each record's list, (R,), NaN where it shows fewer than two items.

    Of three words in all, the two items share one:

    >>> texts = ["red chair", "red desk", "红色椅子"]
    >>> lists(Lists(np.array([[0, 1], [0, 2]]), np.zeros(3), texts), 2).round(4).tolist()
    [0.6667, 1.0]
    """
    top = given.first(cutoff)
    n_items = len(given.texts)
    first, second = np.triu_indices(top.shape[1], 1)
    left, right = np.minimum(top[:, first], top[:, second]), np.maximum(top[:, first], top[:, second])
    both = left >= 0  # (R, pairs of places)
    # Lists share many pairs of items: each is compared once.
    pairs, of = np.unique(left[both].astype(np.int64) * n_items + right[both], return_inverse=True)
    distances = np.zeros(both.shape)
    distances[both] = _distances(given, *np.divmod(pairs, max(n_items, 1)))[of.reshape(-1)]
    n = both.sum(axis=1)
    out = np.full(len(top), np.nan)
    np.divide(distances.sum(axis=1), n, out=out, where=n > 0)
    return out


def _distances(given: Lists, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Jaccard's distance of each pair of items."""
    sets = {item: frozenset(words(given.texts[item])) for item in np.union1d(left, right).tolist()}
    found = np.zeros(len(left))
    for i, (a, b) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        shared = len(sets[a] & sets[b])
        either = len(sets[a]) + len(sets[b]) - shared
        found[i] = 1 - shared / either if either else 0.0
    return found


MEMBER = Metric(summary="how unlike each other the items of a list are", lists=lists, needs_cutoff=True)
