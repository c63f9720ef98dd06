"""Coverage: how much of the catalogue is shown to anyone.

    coverage@k = distinct items within the first k places of all lists / items of the catalogue

Catalogue coverage: Ge, Delgado-Battenfeld and Jannach, Beyond accuracy: evaluating recommender systems by coverage
and serendipity (2010). It grows with the number of lists, so only lists of the same records can be compared.
"""

from __future__ import annotations

from recft.metrics._base import Lists, Metric
from recft.metrics._lists import shown

__all__ = ["MEMBER", "lists"]


def lists(given: Lists, cutoff: int | None) -> float:
    """The coverage of all lists together; NaN where there is no list.

    Two lists show the items 0, 1 and 1, 2 of a catalogue of four:

    >>> import numpy as np
    >>> lists(Lists(np.array([[0, 1], [1, 2]]), np.zeros(4), [""] * 4), 2)
    0.75
    """
    times = shown(given, cutoff)
    return float((times > 0).mean()) if len(given) and len(times) else float("nan")


MEMBER = Metric(summary="share of the catalogue that is shown to anyone", lists=lists, needs_cutoff=True)
