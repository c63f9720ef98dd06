"""Recency: the same list for everyone, what is taken at present.

    score(item) = users who took it within the last `window_days`, then 1 / (2 + days since it was last taken)

The second part is below 1, so it only orders items whose counts are equal: with a window of 0 it is the whole score,
and the item that was taken last stands first. Items that nobody took score 0. A simple row that is hard to beat where
assortments turn over (Ji, Sun, Zhang and Li: A re-visit of the popularity baseline in recommender systems, 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import ages_of
from recft.baselines._pairs import Pairs, log_of

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Recency"]


@dataclass(frozen=True)
class Recency:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "what is taken at present, the same for everyone"
    grid: tuple[Mapping[str, Any], ...] = ({"window_days": 7}, {"window_days": 0}, {"window_days": 28})
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The scores of the items."""
        log, n_items = log_of(known, "recency"), len(known.store.item_ids)
        ages = ages_of(known, log)
        recent = log.kept(ages < settings["window_days"])
        scores = np.bincount(Pairs.of(recent, n_items).items, minlength=n_items).astype(float)
        last = np.full(n_items, np.inf)
        np.minimum.at(last, log.items, ages)
        return {"counts": (scores + 1 / (2 + last)).astype(np.float32)}

    def scores(
        self,
        arrays: Arrays,
        store: Store,  # noqa: ARG002 (one list for everyone)
        records: Records,  # noqa: ARG002
        rows: np.ndarray,
    ) -> np.ndarray:
        """The same scores for each row."""
        return np.tile(arrays["counts"], (len(rows), 1))


MEMBER = Recency()
