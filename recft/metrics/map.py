"""Mean average precision: the precision at every relevant item's place, averaged.

    AP@k = sum over relevant places i <= k of (relevant items within the first i places / i) / min(k, relevant)

Dividing by min(k, relevant), as NDCG's ideal does, lets a perfect ranking score 1; some tools divide by all
relevant items. A grade above 0 is relevant. In a tie of t candidates with m relevant, g above it and b of those
relevant, an item's place g + j is uniform in j, and given it (m - 1)(j - 1) / (t - 1) of the tie's other relevant
items are expected before it. With a = (m - 1) / (t - 1) and harmonic numbers H, up to place J of the tie,

    expected precision at an item = ((b + 1 - a (g + 1)) (H(g + J) - H(g)) + a J) / t
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Metric, Ranks

__all__ = ["MEMBER", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The average precision of each record, (R,).

    Relevant items at places 1 and 3: (1/1 + 2/3) / 2.

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.7], [1, 0, 1]), None).round(4).tolist()
    [0.8333]

    Two tied, one relevant: place 1 or 2, (1 + 1/2) / 2.

    >>> ranking(ranks_of_pairs([0.5, 0.5], [1, 0]), None).tolist()
    [0.75]
    """
    ties = ranks.ties
    places = ties.tied if cutoff is None else np.clip(cutoff - ties.greater, 0, ties.tied)  # J, (G,)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int((ties.greater + places).max(initial=0)) + 1))])
    a = (ties.relevant - 1) / np.maximum(ties.tied - 1, 1)
    reciprocals = harmonic[ties.greater + places] - harmonic[np.where(places > 0, ties.greater, 0)]
    reciprocals[places == 0] = 0.0
    at_one_item = ((ties.before + 1 - a * (ties.greater + 1)) * reciprocals + a * places) / ties.tied
    total = np.bincount(ties.records, weights=ties.relevant * at_one_item, minlength=len(ranks))
    most = ranks.n_relevant if cutoff is None else np.minimum(ranks.n_relevant, cutoff)
    return ranks.ratio(total, most)


MEMBER = Metric(summary="precision at every relevant item's place, averaged", ranking=ranking)
