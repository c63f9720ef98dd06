"""EASE: each item's presence as a linear function of all others, solved in one step.

    min over B with zero diagonal of |X - X B|^2 + lambda |B|^2
    P = (X'X + lambda I)^-1,  B(i, j) = -P(i, j) / P(j, j),  score(u) = x(u) B

X holds 1 where a user took an item. Steck, Embarrassingly shallow autoencoders for sparse data (2019). Nothing
departs from it; float64 up to 8,000 items, float32 above. The solution is a dense matrix of the catalogue's size
squared, hence the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import held
from recft.baselines._pairs import Pairs, log_of
from recft.errors import DataError, problem

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Ease"]

MOST_ITEMS = 40_000
_EXACT_ITEMS = 8_000


@dataclass(frozen=True)
class Ease:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "a linear model from all items to each (EASE)"
    grid: tuple[Mapping[str, Any], ...] = (
        {"regularisation": 200.0},
        {"regularisation": 50.0},
        {"regularisation": 500.0},
        {"regularisation": 1000.0},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = MOST_ITEMS

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The weights from item to item.

        Raises:
            DataError: the catalogue is too large for a dense matrix.
        """
        import torch

        n_items = len(known.store.item_ids)
        if n_items > MOST_ITEMS:
            raise DataError(
                problem(
                    "eval.baselines",
                    f"ease over {n_items:,} items",
                    f"at most {MOST_ITEMS:,} items: it inverts a matrix of items by items",
                    "take item-knn or als",
                )
            )
        pairs = Pairs.of(log_of(known, "ease"), n_items)
        gram = np.zeros((n_items, n_items), np.float64 if n_items <= _EXACT_ITEMS else np.float32)
        for item in range(n_items):
            gram[item] = pairs.shared(item)
        gram[np.diag_indices(n_items)] += settings["regularisation"]
        # In place where that is possible: four matrices of this size would not fit beside each other.
        factor = torch.from_numpy(gram)
        torch.linalg.cholesky(factor, out=factor)
        inverse = torch.cholesky_inverse(factor).numpy()
        inverse /= -inverse.diagonal()
        weights = inverse.astype(np.float32, copy=False)
        weights[np.diag_indices(n_items)] = 0.0
        return {"weights": weights}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The history times the weights."""
        out: np.ndarray = held(records, rows, len(store.item_ids)) @ arrays["weights"]
        return out


MEMBER = Ease()
