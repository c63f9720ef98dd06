"""ALS: users and items as short vectors whose product says whether one takes the other.

    min over p, q of sum over all (u, i) of c(u, i) (x(u, i) - p(u) q(i))^2 + lambda (sum |p|^2 + sum |q|^2)
    c = 1 + alpha and x = 1 where u took i, c = 1 and x = 0 elsewhere;  score(u, i) = p(u) q(i)

Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets (2008), by alternating least squares,
10 rounds from the same random start. We depart from it in that how often u took i does not matter, and p(u) is solved
anew from the history of each record, so that unseen users are scored like others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._implicit import fit, scores
from recft.baselines._pairs import log_of

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Als"]


@dataclass(frozen=True)
class Als:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("ranking", "labels")
    summary: str = "matrix factorisation of who took what (ALS)"
    grid: tuple[Mapping[str, Any], ...] = (
        {"factors": 128, "alpha": 4.0, "regularisation": 50.0},
        {"factors": 64, "alpha": 4.0, "regularisation": 50.0},
        {"factors": 64, "alpha": 10.0, "regularisation": 100.0},
        {"factors": 32, "alpha": 4.0, "regularisation": 20.0},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The items' factors."""
        return fit(log_of(known, "als"), len(known.store.item_ids), **settings)

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The products of the history's factors with every item's."""
        return scores(arrays, records, rows, len(store.item_ids))


MEMBER = Als()
