"""Who took what: the known log as a sparse matrix, its rows by user and by item, and lists of neighbours of items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from recft.baselines._base import Arrays, spans
from recft.errors import DataError, problem

if TYPE_CHECKING:
    from recft.baselines._base import Known
    from recft.data.store import Log

__all__ = ["FEWEST_NEIGHBOURS", "Pairs", "log_of", "nearest", "parts_of", "spread"]

FEWEST_NEIGHBOURS = 300
_WEIGHTS = 1 << 24
"""Neighbours kept in all, where that is not fewer than 300 an item: 128 MiB."""
_FLAT = 1 << 22
"""Numbers held at once while neighbours are summed: 96 MiB."""


def log_of(known: Known, member: str) -> Log:
    """The known events.

    Raises:
        DataError: the prepared data has none.
    """
    if known.log is None:
        raise DataError(
            problem(
                "eval.baselines",
                f"{member} on {known.store.table}",
                f"{member} learns from interactions",
                f"remove {member}",
            )
        )
    return known.log


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, item) pairs, sorted by user, then item; users are numbered anew, without gaps.

    Attributes:
        users: (Q,) int64.
        items: (Q,) int64.
        weights: (Q,) float64: of the user's last event with the item; 1 where nothing decays.
        user_starts: (U + 1,); the pairs of user u are `user_starts[u]:user_starts[u + 1]`.
        by_item: (Q,) the pairs in order of item, then user.
        item_starts: (N + 1,) into `by_item`.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    user_starts: np.ndarray
    by_item: np.ndarray
    item_starts: np.ndarray

    @classmethod
    def of(cls, log: Log, n_items: int, weights: np.ndarray | None = None) -> Pairs:
        """The pairs of a log.

        weights: of each event, (E,), positive; of a pair's events the heaviest counts.
        """
        _, owners = np.unique(log.users, return_inverse=True)
        keys, place = np.unique(owners.astype(np.int64) * n_items + log.items, return_inverse=True)
        users, items = np.divmod(keys, max(n_items, 1))
        heaviest = np.ones(len(keys))
        if weights is not None:
            heaviest = np.zeros(len(keys))
            np.maximum.at(heaviest, place, weights)
        n_users = int(users[-1]) + 1 if len(users) else 0
        return cls(
            users,
            items,
            heaviest,
            np.searchsorted(users, np.arange(n_users + 1)),
            np.argsort(items, kind="stable"),
            np.concatenate([[0], np.cumsum(np.bincount(items, minlength=n_items))]),
        )

    @property
    def n_items(self) -> int:
        """N."""
        return len(self.item_starts) - 1

    @property
    def n_users(self) -> int:
        """U: users with a pair."""
        return len(self.user_starts) - 1

    @property
    def item_squares(self) -> np.ndarray:
        """The squared length of each item's column, (N,); without weights, how many users took it."""
        return np.bincount(self.items, weights=self.weights**2, minlength=self.n_items)

    def shared(self, item: int) -> np.ndarray:
        """The product of this item's column with each, (N,); without weights, how many users took both."""
        own = self.by_item[self.item_starts[item] : self.item_starts[item + 1]]
        users = self.users[own]
        total = np.zeros(self.n_items)
        # An item that all take reaches the whole matrix: its users are read in parts.
        for part in parts_of(np.diff(self.user_starts)[users]):
            owners, places = spans(self.user_starts[users[part]], self.user_starts[users[part] + 1])
            products = self.weights[places] * self.weights[own[part]][owners]
            total += np.bincount(self.items[places], weights=products, minlength=self.n_items)
        return total


def parts_of(sizes: np.ndarray, most: int = _FLAT) -> list[slice]:
    """Spans of consecutive places whose sizes sum to about `most`."""
    marks = np.cumsum(sizes) // most
    edges = np.flatnonzero(np.diff(marks, prepend=0))
    bounds = np.unique(np.concatenate([[0], edges + 1, [len(sizes)]]))
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def nearest(n_items: int, row: Callable[[int], np.ndarray], keep: int | None = None) -> dict[str, np.ndarray]:
    """The largest weights above 0 of each item's row, as arrays: item i leads to `starts[i]:starts[i + 1]`.

    Args:
        n_items: N.
        row: an item number -> its weight towards every item, (N,).
        keep: how many of each row; where absent, a small catalogue keeps them all, a large one 300.
    """
    keep = keep or max(FEWEST_NEIGHBOURS, _WEIGHTS // max(n_items, 1))
    found, weights, sizes = [np.empty(0, np.int32)], [np.empty(0, np.float32)], np.zeros(n_items, np.int64)
    for item in range(n_items):
        values = row(item)
        places = np.flatnonzero(values > 0)
        if len(places) > keep:
            places = np.sort(places[np.argpartition(-values[places], keep - 1)[:keep]])
        found.append(places.astype(np.int32))
        weights.append(values[places].astype(np.float32))
        sizes[item] = len(places)
    return {
        "starts": np.concatenate([[0], np.cumsum(sizes)]),
        "neighbours": np.concatenate(found),
        "weights": np.concatenate(weights),
    }


def spread(arrays: Arrays, profiles: np.ndarray) -> np.ndarray:
    """The weights of what each row holds, carried to the neighbours and summed, (B, N), float32.

    profiles: what each row holds of each item, (B, N).
    """
    starts, neighbours, weights = arrays["starts"], arrays["neighbours"], arrays["weights"]
    n_items = profiles.shape[1]
    out = np.zeros(profiles.shape, np.float32)
    if 4 * len(weights) > n_items**2 and n_items**2 <= _WEIGHTS:
        dense = np.zeros((n_items, n_items), np.float32)
        dense[np.repeat(np.arange(n_items), np.diff(starts)), neighbours] = weights
        return np.matmul(profiles, dense, out=out)
    owners, items = np.nonzero(profiles)
    amounts = profiles[owners, items]
    for part in parts_of(np.diff(starts)[items]):
        entries, places = spans(starts[items[part]], starts[items[part] + 1])
        first, last = int(owners[part][0]), int(owners[part][-1])
        keys = (owners[part][entries] - first) * n_items + neighbours[places]
        carried = amounts[part][entries] * weights[places]
        sums = np.bincount(keys, weights=carried, minlength=(last - first + 1) * n_items)
        out[first : last + 1] += sums.reshape(-1, n_items).astype(np.float32)
    return out
