"""Popularity: the same list for everyone, what was taken most often first.

    score(item) = sum over users who took it of exp(-age of their last event with it / decay)     of: users
    score(item) = sum over events that took it of exp(-age / decay)                               of: events

Ages count from the last known event; without a decay all count 1. For queries, which have no times, the score is how
many known queries have the item as a relevant one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import ages_of
from recft.baselines._pairs import Pairs

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Popularity", "counts"]


def counts(known: Known, of: Literal["users", "events"], decay_days: float | None = None) -> np.ndarray:
    """How many known users (or events) took each item, old ones counting less where there is a decay, (N,)."""
    n_items = len(known.store.item_ids)
    if known.log is None:
        # Graded 0 are no events: among them are items that nobody took.
        return np.bincount(known.records.items[known.records.grades > 0], minlength=n_items)
    weights = np.exp(-ages_of(known, known.log) / (decay_days or np.inf))
    if of == "events":
        return np.bincount(known.log.items, weights=weights, minlength=n_items)
    pairs = Pairs.of(known.log, n_items, weights)
    return np.bincount(pairs.items, weights=pairs.weights, minlength=n_items)


@dataclass(frozen=True)
class Popularity:
    """The baseline."""

    tables: tuple[Table, ...] = ("queries", "interactions")
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "what was taken most often, the same for everyone"
    grid: tuple[Mapping[str, Any], ...] = (
        {"of": "users", "decay_days": None},
        {"of": "events", "decay_days": None},
        {"of": "users", "decay_days": 60},
        {"of": "events", "decay_days": 60},
        {"of": "users", "decay_days": 14},
        {"of": "events", "decay_days": 14},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The counts of the items."""
        return {"counts": counts(known, settings["of"], settings["decay_days"]).astype(np.float32)}

    def scores(
        self,
        arrays: Arrays,
        store: Store,  # noqa: ARG002 (one list for everyone)
        records: Records,  # noqa: ARG002
        rows: np.ndarray,
    ) -> np.ndarray:
        """The counts, a row each."""
        return np.tile(arrays["counts"], (len(rows), 1))


MEMBER = Popularity()
