"""What the metrics of lists share: which places hold what, and which items are tail."""

from __future__ import annotations

import numpy as np

from recft.data.popularity import MIDDLE, share_above
from recft.metrics._tables import EMPTY, Lists

__all__ = ["shown", "tail_counts"]


def shown(lists: Lists, cutoff: int | None) -> np.ndarray:
    """How often each item of the catalogue stands among the first places, (N,), int64."""
    top = lists.first(cutoff)
    return np.bincount(top[top >= 0], minlength=len(lists.popularity))


def tail_counts(lists: Lists, cutoff: int | None) -> tuple[np.ndarray, np.ndarray]:
    """How many of the first places of each record hold a tail item, and how many are not empty, (R,) each."""
    top = lists.first(cutoff)
    is_tail = share_above(lists.popularity) >= MIDDLE
    # An invalid output is no item, hence no tail item either; the item that indexes for it is masked.
    held = (top >= 0) & is_tail[np.maximum(top, 0)] if len(is_tail) else np.zeros(top.shape, dtype=bool)
    return held.sum(axis=1), (top != EMPTY).sum(axis=1)
