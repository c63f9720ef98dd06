"""Item-KNN: what is taken by the same people as what you took.

    sim(i, j)   = <x(i), x(j)> / (|x(i)| |x(j)| + shrinkage)
    score(u, j) = sum over events of u's history with items i of exp(-age / decay) * sim(i, j)

x(i) holds 1 for each user who took i; with `recent_pairs` exp(-age of the user's last event with i / decay), so that
old company counts less. Without a decay an item counts once, however often it was taken.

Deshpande and Karypis, Item-based top-N recommendation algorithms (2004). We depart from it in that sim(i, i) is 0 (own
repeats are `repeat`'s), and neighbours are kept for each item of the history, not for each candidate: all of them in
a small catalogue, 300 in a large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import ages_of, last_weights, summed_weights
from recft.baselines._pairs import Pairs, log_of, nearest, spread

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "ItemKnn"]


@dataclass(frozen=True)
class ItemKnn:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "items taken by the same people as those of the history (cosine)"
    grid: tuple[Mapping[str, Any], ...] = (
        {"decay_days": 60, "shrinkage": 0.0, "recent_pairs": False},
        {"decay_days": None, "shrinkage": 0.0, "recent_pairs": False},
        {"decay_days": None, "shrinkage": 10.0, "recent_pairs": False},
        {"decay_days": 60, "shrinkage": 0.0, "recent_pairs": True},
        {"decay_days": 120, "shrinkage": 0.0, "recent_pairs": True},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Each item's nearest."""
        log, decay = log_of(known, "item-knn"), settings["decay_days"] or np.inf
        weights = np.exp(-ages_of(known, log) / decay) if settings["recent_pairs"] else None
        pairs = Pairs.of(log, len(known.store.item_ids), weights)
        lengths = np.sqrt(pairs.item_squares)

        def row(item: int) -> np.ndarray:
            sims: np.ndarray = pairs.shared(item) / np.maximum(lengths * lengths[item] + settings["shrinkage"], 1e-12)
            sims[item] = 0.0
            return sims

        return nearest(pairs.n_items, row) | {"decay_days": np.array(decay, np.float64)}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The similarity to the history, for every item."""
        decay = float(arrays["decay_days"])
        held = last_weights if np.isinf(decay) else summed_weights
        return spread(arrays, held(records, rows, len(store.item_ids), decay))


MEMBER = ItemKnn()
