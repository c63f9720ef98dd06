"""Judged: how much of what stands high has been judged by anyone, whatever the judgement.

    judged@k = judged items within the first k places / k

Where it is low, other scores count as wrong what nobody has looked at (Buckley and Voorhees, Retrieval evaluation
with incomplete information, 2004). Places beyond the candidates count as not judged. Its ranks are over all judged
items: `ranks_of` with a grade above 0 for each. A record with no judged candidate has no score.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Metric, Ranks

__all__ = ["MEMBER", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The judged share of the first places of each record, (R,).

    Of three candidates the first and the last are judged; five places, of which two do not exist:

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranks = ranks_of_pairs([0.9, 0.8, 0.7], [1, 0, 1])
    >>> ranking(ranks, 2).tolist(), ranking(ranks, 5).tolist()
    ([0.5], [0.4])
    """
    places = ranks.n_candidates if cutoff is None else np.full(len(ranks), cutoff)
    return ranks.ratio(ranks.sums(ranks.within(cutoff)), places)


MEMBER = Metric(
    summary="share of the first k places that have any judgement", ranking=ranking, of_judged=True, needs_cutoff=True
)
