"""Hit rate: whether any relevant item stands among the first k.

    HR@k = 1 if a relevant item stands within the first k places, else 0

Where a tie of t candidates with m relevant ones straddles the cutoff and s of its places lie above it, the
chance of a hit is hypergeometric: 1 - C(t - m, s) / C(t, s).
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Metric, Ranks

__all__ = ["MEMBER", "chance_of_none", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The hit rate of each record, (R,).

    The only relevant item stands at place 2:

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranks = ranks_of_pairs([0.9, 0.8, 0.7], [0, 1, 0])
    >>> ranking(ranks, 1).tolist(), ranking(ranks, 2).tolist()
    ([0.0], [1.0])

    Four tied candidates, two relevant, cutoff 2: none is hit with the chance 2/4 x 1/3 = 1/6.

    >>> ranking(ranks_of_pairs([0.5] * 4, [1, 1, 0, 0]), 2).round(4).tolist()
    [0.8333]
    """
    ties = ranks.ties
    slots = ties.tied if cutoff is None else np.clip(cutoff - ties.greater, 0, ties.tied)  # (G,)
    missed = np.ones(len(ranks))
    # At most one group of a record straddles the cutoff; the others are certain hits or certain misses.
    np.multiply.at(missed, ties.records, chance_of_none(ties.tied, ties.relevant, slots))
    return ranks.ratio(1.0 - missed, np.ones(len(ranks)))


def chance_of_none(tied: np.ndarray, relevant: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The chance that `slots` places drawn from a tie hold none of its relevant items: C(t-m, s) / C(t, s).

    The same ratio is C(t - s, m) / C(t, m): the product has as many factors as the smaller of m and s.
    """
    fewer, more = np.minimum(relevant, slots), np.maximum(relevant, slots)
    chance = np.ones(len(tied))
    for i in range(int(fewer.max(initial=0))):
        active = fewer > i
        chance[active] *= np.maximum(tied[active] - more[active] - i, 0) / (tied[active] - i)
    return chance


MEMBER = Metric(summary="whether any relevant item is among the first k", ranking=ranking, needs_cutoff=True)
