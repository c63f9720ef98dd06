"""Biases: a rating as the mean of all, what the item has beyond it, and what the user has beyond both.

    b(i) = sum over i's ratings of (r - mu) / (their number + item damping)
    b(u) = sum over u's ratings of (r - mu - b(i)) / (their number + user damping)
    score(u, i) = mu + b(u) + b(i), within the span of the known ratings

The baseline predictor of Koren, Factor in the neighbors: scalable and accurate collaborative filtering (2010), whose
dampings are 25 and 10. b(u) is of the history of each record, so unseen users are scored like others; their b(u) is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._ratings import Means, damped, of_histories, rated_log

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Biases"]


@dataclass(frozen=True)
class Biases:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("values",)
    summary: str = "the mean rating, the item's and the user's departure from it"
    grid: tuple[Mapping[str, Any], ...] = (
        {"item_damping": 5.0, "user_damping": 5.0},
        {"item_damping": 2.0, "user_damping": 2.0},
        {"item_damping": 10.0, "user_damping": 5.0},
        {"item_damping": 25.0, "user_damping": 10.0},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The mean and the items' departures."""
        log = rated_log(known, "biases")
        ratings = np.asarray(log.ratings, float)
        means = Means.of(ratings)
        items = damped(log.items, ratings - means.mean, len(known.store.item_ids), settings["item_damping"])
        return {"means": means.array, "items": items, "user_damping": np.array(settings["user_damping"])}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """The predicted rating of every item."""
        mean, low, high = arrays["means"]
        owners, items, ratings = of_histories(records, rows)
        left = ratings - mean - arrays["items"][items]
        users = damped(owners, left, len(rows), float(arrays["user_damping"]))
        return np.asarray(np.clip(mean + users[:, None] + arrays["items"], low, high), np.float32)


MEMBER = Biases()
