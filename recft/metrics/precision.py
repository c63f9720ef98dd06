"""Precision: how much of what was answered is right.

    ranking:   Precision@k = relevant items within the first k places / k
    pointwise: Precision   = pairs answered yes rightly / pairs answered yes, with yes from 0.5 on

The ranking form divides by k, also where there are fewer candidates.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric, Ranks

__all__ = ["MEMBER", "pointwise", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The precision of each record, (R,).

    Relevant items at places 1 and 3; a tie of two around the cutoff holds one of them half the time.

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.7], [1, 0, 1]), 2).tolist()
    [0.5]
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.8], [1, 0, 1]), 2).tolist()
    [0.75]
    """
    places = ranks.n_candidates if cutoff is None else np.full(len(ranks), cutoff)
    return ranks.ratio(ranks.sums(ranks.within(cutoff)), places)


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The precision over all pairs; NaN where none is answered yes.

    >>> labels = Labels(np.array([0.9, 0.5, 0.4]), np.array([1, 0, 1]), np.array([0, 0, 1]))
    >>> pointwise(labels, np.ones(3))
    0.5
    """
    yes = weights * (labels.scores >= 0.5)
    total = yes.sum()
    return float(yes[labels.labels == 1].sum() / total) if total > 0 else float("nan")


MEMBER = Metric(
    summary="share of what was answered that is right",
    ranking=ranking,
    pointwise=pointwise,
    needs_probabilities=True,
    needs_cutoff=True,
)
