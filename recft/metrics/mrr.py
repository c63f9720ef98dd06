"""Mean reciprocal rank: how far down the first relevant item stands.

    RR@k = 1 / place of the first relevant item, or 0 where that is below place k

The first relevant item stands in the best tie that holds one. Of its t candidates m are relevant, and g stand
above it; with S(j) = C(t - j, m) / C(t, m), the chance that none is among the first j places of the tie,

    expected RR@k = sum over j = 1 .. t of (S(j - 1) - S(j)) / (g + j), for g + j <= k
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Metric, Ranks

__all__ = ["MEMBER", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The reciprocal rank of each record, (R,).

    The first relevant item stands at place 2:

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.7], [0, 1, 1]), None).tolist()
    [0.5]

    Three tied, one relevant: (1 + 1/2 + 1/3) / 3; cut at 2: (1 + 1/2) / 3.

    >>> ranks = ranks_of_pairs([0.5] * 3, [1, 0, 0])
    >>> ranking(ranks, None).round(4).tolist(), ranking(ranks, 2).round(4).tolist()
    ([0.6111], [0.5])
    """
    ties = ranks.ties
    best = ties.before == 0  # one group of each record that has any
    shapes, of = np.unique(
        np.stack([ties.greater[best], ties.tied[best], ties.relevant[best]], axis=1), axis=0, return_inverse=True
    )
    # Few shapes differ: without ties they are the distinct places, in one tie of all the distinct counts.
    alone = shapes[:, 1] == 1
    expected = np.zeros(len(shapes))
    expected[alone] = np.where(cutoff is None or shapes[alone, 0] < cutoff, 1 / (shapes[alone, 0] + 1), 0)
    for i in np.flatnonzero(~alone):
        greater, tied, relevant = shapes[i].tolist()
        expected[i] = _expected(greater, tied, relevant, cutoff)
    out = np.zeros(len(ranks))
    out[ties.records[best]] = expected[of.reshape(-1)]
    return ranks.ratio(out, np.ones(len(ranks)))


def _expected(greater: int, tied: int, relevant: int, cutoff: int | None) -> float:
    """The expected reciprocal rank of the first of the relevant items of one tie."""
    last = tied - relevant + 1 if cutoff is None else min(tied - relevant + 1, cutoff - greater)
    if last <= 0:
        return 0.0
    j = np.arange(last)  # places passed without a relevant item
    passed = np.concatenate([[1.0], np.cumprod((tied - relevant - j[:-1]) / (tied - j[:-1]))])
    first_here = passed * relevant / (tied - j)
    return float((first_here / (greater + 1 + j)).sum())


MEMBER = Metric(summary="one over the place of the first relevant item", ranking=ranking)
