"""Invalid outputs: how much of what was generated is no item of the catalogue; lower is better.

    invalid@k = invalid outputs within the first k places / places within the first k that are not empty

Every other score counts an invalid output as a wrong one.
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Lists, Metric
from recft.metrics._tables import EMPTY, INVALID

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The invalid share of each record's list, (R,), NaN where it is empty.

    One of two outputs is invalid; the third place is empty:

    >>> lists(Lists(np.array([[7, -2, -1]]), np.zeros(9), [""] * 9), None).tolist()
    [0.5]
    """
    top = given.first(cutoff)
    filled = (top != EMPTY).sum(axis=1)
    out = np.full(len(top), np.nan)
    np.divide((top == INVALID).sum(axis=1), filled, out=out, where=filled > 0)
    return out


MEMBER = Metric(summary="share of outputs that are no item of the catalogue", lists=lists, higher_is_better=False)
