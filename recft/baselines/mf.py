"""MF: a rating as biases and the product of two short vectors.

    min over b, p, q of sum over ratings of (r - mu - b(u) - b(i) - p(u) q(i))^2
                        + lambda (sum over u of n(u) |p(u), b(u)|^2 + sum over i of n(i) |q(i), b(i)|^2)
    score(u, i) = mu + b(u) + b(i) + p(u) q(i), within the span of the known ratings

n counts ratings. Koren, Bell and Volinsky, Matrix factorization techniques for recommender systems (2009), with the
regularisation of Zhou, Wilkinson, Schreiber and Pan, Large-scale parallel collaborative filtering for the Netflix
prize (2008): 15 rounds of alternating least squares from the same random start. p(u) and b(u) are solved anew from
the history of each record. Where nobody gave ratings, or where what was not taken is sampled as `no`, the score is
that of `als` with as many factors: it orders, and is no rating.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines import _implicit
from recft.baselines._base import Arrays, Known
from recft.baselines._factors import Sparse, solve, start
from recft.baselines._pairs import log_of
from recft.baselines._ratings import Means, of_histories

if TYPE_CHECKING:
    from recft.data.store import Log, Records, Store, Table

__all__ = ["MEMBER", "Mf"]

ROUNDS = 15


def _with(factors: np.ndarray) -> np.ndarray:
    """The factors with a 1 beside them, which the other side's bias multiplies, (R, F + 1)."""
    return np.concatenate([factors[:, :-1], np.ones((len(factors), 1), np.float32)], axis=1)


def _side(entries: Sparse, other: np.ndarray, regularisation: float) -> np.ndarray:
    """One side's factors and, last, its bias, (R, F + 1), of ratings less their mean."""
    left = entries.values - other[entries.columns, -1]
    return solve(Sparse(entries.starts, entries.columns, left), _with(other), regularisation, by_count=True)


def _fit_ratings(log: Log, n_items: int, factors: int, regularisation: float) -> dict[str, np.ndarray]:
    """The items' factors and biases."""
    ratings = np.asarray(log.ratings, float)
    means = Means.of(ratings)
    _, users = np.unique(log.users, return_inverse=True)
    left = (ratings - means.mean).astype(np.float32)
    by_user = Sparse.of(users, log.items, left, int(users.max(initial=-1)) + 1)
    by_item = Sparse.of(log.items, users, left, n_items)
    items = start(n_items, factors + 1)
    items[:, -1] = 0.0
    for _ in range(ROUNDS):
        items = _side(by_item, _side(by_user, items, regularisation), regularisation)
    return {"items": items, "means": means.array, "regularisation": np.array(regularisation)}


@dataclass(frozen=True)
class Mf:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("values", "labels")
    summary: str = "biases and short vectors of users and items (matrix factorisation)"
    grid: tuple[Mapping[str, Any], ...] = (
        {"factors": 16, "regularisation": 0.15},
        {"factors": 8, "regularisation": 0.15},
        {"factors": 8, "regularisation": 0.2},
        {"factors": 32, "regularisation": 0.15},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The items' factors, with biases where there are ratings."""
        log, n_items = log_of(known, "mf"), len(known.store.item_ids)
        sampled = (known.store.card.get("labels") or {}).get("source") == "sampled"
        if log.ratings is not None and not sampled:
            return _fit_ratings(log, n_items, settings["factors"], settings["regularisation"])
        return _implicit.fit(log, n_items, factors=settings["factors"], alpha=4.0, regularisation=50.0)

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The predicted rating of every item."""
        if "means" not in arrays:
            return _implicit.scores(arrays, records, rows, len(store.item_ids))
        mean, low, high = arrays["means"]
        owners, items, ratings = of_histories(records, rows)
        entries = Sparse.of(owners, items, (ratings - mean).astype(np.float32), len(rows))
        users = _side(entries, arrays["items"], float(arrays["regularisation"]))
        found = mean + users[:, -1:] + arrays["items"][:, -1] + users[:, :-1] @ arrays["items"][:, :-1].T
        return np.asarray(np.clip(found, low, high), np.float32)


MEMBER = Mf()
