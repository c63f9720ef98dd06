"""Repeat: what this customer took before, lately and often.

    score(u, i) = sum over u's events with i of exp(-age / decay)

The age counts from the last event of u's history; without a decay the score is the count. Items that u never
took score 0 and tie: this row knows nothing of novel items. The repeated consumption of Anderson, Kumar, Tomkins and
Vassilvitskii, The dynamics of repeat consumption (2014), with an exponential for their power of recency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import summed_weights

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Repeat"]


@dataclass(frozen=True)
class Repeat:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "what this user took before, lately and often"
    grid: tuple[Mapping[str, Any], ...] = (
        {"decay_days": 60},
        {"decay_days": 30},
        {"decay_days": 120},
        {"decay_days": None},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:  # noqa: ARG002 (nothing is learned)
        """The decay alone."""
        return {"decay_days": np.array(settings["decay_days"] or np.inf, np.float64)}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The weights of the history, for every item."""
        return summed_weights(records, rows, len(store.item_ids), float(arrays["decay_days"]))


MEMBER = Repeat()
