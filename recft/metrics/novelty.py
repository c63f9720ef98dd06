"""Novelty: how little known what is shown is, in bits.

    novelty@k = mean over the items within the first k places of - log2 p(item)
    p(item) = (training events that took it + 1) / (all training events + N)

Mean self-information: Zhou et al., Solving the apparent diversity-accuracy dilemma of recommender systems (2010). One
event is added to each item (Laplace), so that an item nobody took is rare and not infinitely so. Places without an
item of the catalogue are passed over.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Lists, Metric
from recft.metrics._lists import blocks

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The novelty of each record's list in bits, (R,), NaN where it shows no item.

    Of 4 events and 4 items, p is (3 + 1) / 8 of item 0 and (0 + 1) / 8 of item 2: (1 + 3) / 2 bits.

    >>> lists(Lists(np.array([[0, 2]]), np.array([3, 1, 0, 0]), [""] * 4), 2).tolist()
    [2.0]
    """
    events = given.popularity.astype(np.float64) + 1
    bits = np.append(np.log2(max(events.sum(), 1.0)) - np.log2(events), 0.0)  # the last one for places without an item
    return np.concatenate([_mean_bits(top, bits) for top in blocks(given.first(cutoff))])


def _mean_bits(top: np.ndarray, bits: np.ndarray) -> np.ndarray:
    is_item = top >= 0
    n = is_item.sum(axis=1)
    out = np.full(len(top), np.nan)
    np.divide(bits[np.where(is_item, top, -1)].sum(axis=1), n, out=out, where=n > 0)
    return out


MEMBER = Metric(summary="how little known what is shown is, in bits", lists=lists, needs_cutoff=True)
