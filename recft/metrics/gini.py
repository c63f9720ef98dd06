"""Gini: how unevenly items are shown; lower is better, 0 is even, towards 1 a few items take all places.

    Gini@k = sum over items i = 1 .. N by rising x(i) of (2 i - N - 1) x(i) / (N * sum of x)

x(i) is how often item i stands within the first k places of a list, 0 for those that never do. Gini, Variabilità e
mutabilità (1912); of recommendations: Fleder and Hosanagar, Blockbuster culture's next rise or fall (2009).
"""

from __future__ import annotations

import numpy as np

from recft.metrics._base import Lists, Metric
from recft.metrics._lists import shown

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> float:
    """The Gini index of all lists together; NaN where no item is shown.

    Items are shown 0, 1 and 3 times: ((2 - 4) x 0 + (4 - 4) x 1 + (6 - 4) x 3) / (3 x 4).

    >>> lists(Lists(np.array([[2, 1], [2, -1], [2, -1]]), np.zeros(3), [""] * 3), 2)
    0.5
    """
    times = np.sort(shown(given, cutoff))
    n = len(times)
    total = n * times.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ times / total) if total > 0 else float("nan")


MEMBER = Metric(
    summary="how unevenly items are shown, 0 is even", lists=lists, needs_cutoff=True, higher_is_better=False
)
