"""NDCG: the gain of what stands high, against the best order there could be.

    DCG@k  = sum over the first k places i of grade(i) / log2(i + 1)
    NDCG@k = DCG@k / DCG@k of the same items by falling grade

Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques (2002), with the grade itself as the
gain. The ideal is cut at the same k, so a record with more than k relevant items can still score 1.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Metric, Ranks

__all__ = ["MEMBER", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """NDCG of each record, (R,).

    Two relevant items at places 1 and 3: (1 / log2 2 + 1 / log2 4) / (1 / log2 2 + 1 / log2 3) = 1.5 / 1.6309.

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.7], [1, 0, 1]), 10).round(4).tolist()
    [0.9197]

    One of two tied candidates is relevant: place 1 or 2, (1 + 0.6309) / 2.

    >>> ranking(ranks_of_pairs([0.9, 0.9], [1, 0]), 10).round(4).tolist()
    [0.8155]
    """
    last = int((ranks.greater + ranks.tied).max(initial=0))
    last = last if cutoff is None else min(last, cutoff)
    # Discounts of the first i places: a tie takes the mean of the places that it covers.
    covered = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, last + 2)))])
    upper = np.minimum(ranks.greater + ranks.tied, last)
    discounts = (covered[upper] - covered[np.minimum(ranks.greater, last)]) / ranks.tied  # (P,)

    best = np.lexsort((-ranks.grades, ranks.records))
    place = np.arange(len(best)) - ranks.offsets[ranks.records]  # (P,), from 0 in each record
    ideal = ranks.grades[best] / np.log2(place + 2)
    if cutoff is not None:
        ideal[place >= cutoff] = 0.0
    return ranks.ratio(ranks.sums(ranks.grades * discounts), ranks.sums(ideal))


MEMBER = Metric(summary="gain of what stands high, against the best order", ranking=ranking)
