"""Recall: how much of what is relevant was found.

    ranking:   Recall@k = relevant items within the first k places / all relevant items
    pointwise: Recall   = pairs answered yes rightly / all pairs that are yes, with yes from 0.5 on

The ranking form divides by all relevant items, also where they are more than k.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Labels, Metric, Ranks

__all__ = ["MEMBER", "pointwise", "ranking"]


def ranking(ranks: Ranks, cutoff: int | None) -> np.ndarray:
    """The recall of each record, (R,).

    Relevant items at places 1 and 3; a tie of two around the cutoff holds one of them half the time.

    >>> from recft.metrics._ranks import ranks_of_pairs
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.7], [1, 0, 1]), 2).tolist()
    [0.5]
    >>> ranking(ranks_of_pairs([0.9, 0.8, 0.8], [1, 0, 1]), 2).tolist()
    [0.75]
    """
    return ranks.ratio(ranks.sums(ranks.within(cutoff)), ranks.n_relevant)


def pointwise(labels: Labels, weights: np.ndarray) -> float:
    """The recall over all pairs; NaN where none is yes.

    >>> labels = Labels(np.array([0.9, 0.5, 0.4]), np.array([1, 0, 1]), np.array([0, 0, 1]))
    >>> pointwise(labels, np.ones(3))
    0.5
    """
    positive = weights * (labels.labels == 1)
    total = positive.sum()
    return float(positive[labels.scores >= 0.5].sum() / total) if total > 0 else float("nan")


MEMBER = Metric(
    summary="share of what is relevant that was found",
    ranking=ranking,
    pointwise=pointwise,
    needs_probabilities=True,
    needs_cutoff=True,
)
