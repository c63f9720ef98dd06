"""What every classic recommender or ranker meets: fit on training records, score items."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from recft.data.store import Records, Store

__all__ = ["Baseline", "ScoreRows"]

ScoreRows = Callable[["Records", "np.ndarray"], "np.ndarray"]
"""(records, rows) -> scores of every item for those rows, (len(rows), N), float32."""


class Baseline(Protocol):
    """A classic row of the table."""

    tables: tuple[Literal["queries", "interactions"], ...]
    summary: str

    def fit(self, store: Store) -> ScoreRows:
        """Fitted on the training split alone; what comes back scores records of any split."""
