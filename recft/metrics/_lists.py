"""What the metrics of lists share: which places hold what, and which items are tail."""

from __future__ import annotations

import numpy as np

from recft.data.popularity import MIDDLE, share_above
from recft.metrics._tables import EMPTY, Lists

__all__ = ["blocks", "shown", "tail_counts"]

BLOCK_PLACES = 1 << 19
"""Places of lists that are looked at together: 4 MiB for each number that is found of one."""


def blocks(top: np.ndarray) -> list[np.ndarray]:
    """The lists in parts, one at least, so that what is found on the way does not grow with the records."""
    size = max(1, BLOCK_PLACES // max(top.shape[1], 1))
    return [top[start : start + size] for start in range(0, max(len(top), 1), size)]


def shown(lists: Lists, cutoff: int | None) -> np.ndarray:
    """How often each item of the catalogue stands among the first places, (N,), int64."""
    times = np.zeros(len(lists.popularity), np.int64)
    for top in blocks(lists.first(cutoff)):
        times += np.bincount(top[top >= 0], minlength=len(times))
    return times


def tail_counts(lists: Lists, cutoff: int | None) -> tuple[np.ndarray, np.ndarray]:
    """How many of the first places of each record hold a tail item, and how many are not empty, (R,) each."""
    is_tail = share_above(lists.popularity) >= MIDDLE
    tail, filled = [], []
    for top in blocks(lists.first(cutoff)):
        # An invalid output is no item, hence no tail item either; the item that indexes for it is masked.
        held = (top >= 0) & is_tail[np.maximum(top, 0)] if len(is_tail) else np.zeros(top.shape, dtype=bool)
        tail.append(held.sum(axis=1))
        filled.append((top != EMPTY).sum(axis=1))
    return np.concatenate(tail), np.concatenate(filled)
