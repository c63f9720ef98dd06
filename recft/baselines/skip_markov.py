"""Skip-Markov: what follows what, also with others in between.

    w(i, j)     = sum over events of i and later baskets of the same user with j, d baskets on, of decay ** (d - 1)
    P(i, j)     = w(i, j) / (how much all baskets after i weigh) ** 0.5 / (how much all baskets before j weigh) ** 0.5
    score(u, j) = sum over baskets of u's history, d back from its end, of items i of decay ** d * P(i, j)

d is at most the window. A basket is what one user did at one moment: what stands in it does not follow itself. A
Markov chain of mixed orders, as the skip model of Shani, Heckerman and Brafman, An MDP-based recommender system
(2005). We depart from it in that rows are scaled by the square roots of what leads to and from them and not to sum to
1, so that items which follow everything do not fill every list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known, spans
from recft.baselines._history import events_of
from recft.baselines._pairs import log_of, nearest, parts_of, spread

if TYPE_CHECKING:
    from recft.data.store import Log, Records, Store, Table

__all__ = ["MEMBER", "SkipMarkov"]


@dataclass(frozen=True)
class _Following:
    """The baskets of a log, and of each item the events.

    Attributes:
        items: (E,) int64.
        bounds: (K + 1,) where baskets start.
        last: (K,) the number of the last basket of the basket's user.
        basket: (E,) the basket of each event.
        by_item: (E,) events in order of their item.
        item_starts: (N + 1,) into `by_item`.
    """

    items: np.ndarray
    bounds: np.ndarray
    last: np.ndarray
    basket: np.ndarray
    by_item: np.ndarray
    item_starts: np.ndarray

    @classmethod
    def of(cls, log: Log, n_items: int) -> _Following:
        fresh = np.ones(len(log), bool)
        fresh[1:] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
        first = np.flatnonzero(fresh)
        users = log.users[first]
        items = log.items.astype(np.int64)
        return cls(
            items,
            np.append(first, len(log)),
            np.searchsorted(users, users, side="right") - 1,
            np.cumsum(fresh) - 1,
            np.argsort(items, kind="stable"),
            np.concatenate([[0], np.cumsum(np.bincount(items, minlength=n_items))]),
        )

    def row(self, item: int, window: int, decay: float) -> np.ndarray:
        """w(item, j) for every j, (N,)."""
        n_items = len(self.item_starts) - 1
        total = np.zeros(n_items)
        baskets = self.basket[self.by_item[self.item_starts[item] : self.item_starts[item + 1]]]
        for distance in range(1, window + 1):
            after = baskets[baskets + distance <= self.last[baskets]] + distance
            for part in parts_of(self.bounds[after + 1] - self.bounds[after]):
                _, places = spans(self.bounds[after[part]], self.bounds[after[part] + 1])
                total += decay ** (distance - 1) * np.bincount(self.items[places], minlength=n_items)
        return total


@dataclass(frozen=True)
class SkipMarkov:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "what follows what, also with others in between"
    grid: tuple[Mapping[str, Any], ...] = (
        {"window": 5, "decay": 0.7},
        {"window": 1, "decay": 0.7},
        {"window": 10, "decay": 0.9},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The transitions of each item."""
        n_items, window, decay = len(known.store.item_ids), settings["window"], settings["decay"]
        following = _Following.of(log_of(known, "skip-markov"), n_items)
        leads_to = np.zeros(n_items)
        for item in range(n_items):
            leads_to += following.row(item, window, decay)
        scale = 1 / np.sqrt(np.maximum(leads_to, 1e-12))

        def row(item: int) -> np.ndarray:
            weights = following.row(item, window, decay)
            scaled: np.ndarray = weights * scale / np.sqrt(max(weights.sum(), 1e-12))
            return scaled

        steps = {"window": np.array(window), "decay": np.array(decay)}
        return nearest(n_items, row) | steps

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The transitions from the last baskets, summed."""
        profiles = _recent(records, rows, len(store.item_ids), int(arrays["window"]), float(arrays["decay"]))
        return spread(arrays, profiles)


def _recent(records: Records, rows: np.ndarray, n_items: int, window: int, decay: float) -> np.ndarray:
    """The items of each row's last baskets, weighing decay ** d at d baskets from the end, (B, N), float32."""
    owners, places = events_of(records, rows)
    if records.log_items is None or records.log_times is None or not len(places):
        return np.zeros((len(rows), n_items), np.float32)
    times = records.log_times[places]
    fresh = np.ones(len(places), bool)
    fresh[1:] = (owners[1:] != owners[:-1]) | (times[1:] != times[:-1])
    basket = np.cumsum(fresh)
    last = basket[np.searchsorted(owners, owners, side="right") - 1]
    back = last - basket
    kept = back < window
    keys = owners[kept] * n_items + records.log_items[places[kept]]
    sums = np.bincount(keys, weights=decay ** back[kept], minlength=len(rows) * n_items)
    return sums.astype(np.float32).reshape(len(rows), n_items)


MEMBER = SkipMarkov()
