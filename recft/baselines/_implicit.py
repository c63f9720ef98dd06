"""Factors of implicit feedback: what `als` is, and `mf` where nobody gave ratings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recft.baselines._base import Arrays
from recft.baselines._factors import Sparse, solve, start
from recft.baselines._history import held
from recft.baselines._pairs import Pairs

if TYPE_CHECKING:
    from recft.data.store import Log, Records

__all__ = ["fit", "scores"]

ROUNDS = 10


def fit(log: Log, n_items: int, factors: int, alpha: float, regularisation: float) -> dict[str, np.ndarray]:
    """The items' factors, and what is needed to solve for a user's."""
    pairs = Pairs.of(log, n_items)
    ones = np.ones(len(pairs.items), np.float32)
    by_user = Sparse.of(pairs.users, pairs.items, ones, pairs.n_users)
    by_item = Sparse.of(pairs.items, pairs.users, ones, n_items)
    items = start(n_items, factors)
    for _ in range(ROUNDS):
        users = _side(by_user, items, alpha, regularisation)
        items = _side(by_item, users, alpha, regularisation)
    return {"items": items, "alpha": np.array(alpha), "regularisation": np.array(regularisation)}


def _side(entries: Sparse, fixed: np.ndarray, alpha: float, regularisation: float) -> np.ndarray:
    """One side's factors. The entries' weight 1 + alpha is split: 1 is in `fixed' fixed`, which holds everywhere.

    The right side is (1 + alpha) times the sum of the factors, hence values of (1 + alpha) / alpha at weight alpha.
    """
    values = np.full(len(entries.values), (1 + alpha) / alpha, np.float32)
    raised = Sparse(entries.starts, entries.columns, values)
    return solve(raised, fixed, regularisation, weight=alpha, everywhere=fixed.T @ fixed)


def scores(arrays: Arrays, records: Records, rows: np.ndarray, n_items: int) -> np.ndarray:
    """The products of the factors of each row's history with every item's, (B, N), float32."""
    owners, items = np.nonzero(held(records, rows, n_items))
    entries = Sparse.of(owners, items, np.ones(len(items), np.float32), len(rows))
    users = _side(entries, arrays["items"], float(arrays["alpha"]), float(arrays["regularisation"]))
    out: np.ndarray = users @ arrays["items"].T
    return out
