"""Ratings: the known ones of a log, those of records' histories, and damped means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recft.baselines._base import Known
from recft.baselines._history import events_of
from recft.baselines._pairs import log_of
from recft.errors import DataError, problem

if TYPE_CHECKING:
    from recft.data.store import Log, Records

__all__ = ["Means", "damped", "of_histories", "rated_log"]


def rated_log(known: Known, member: str) -> Log:
    """The known events, with ratings.

    Raises:
        DataError: the log has none.
    """
    log = log_of(known, member)
    if log.ratings is None:
        raise DataError(
            problem(
                "eval.baselines",
                f"{member} on a log without ratings",
                f"{member} learns from ratings",
                f"map data.interactions.rating, or remove {member}",
            )
        )
    return log


def of_histories(records: Records, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the rows' histories rated: the place in `rows`, the item and the rating of each event, (H,)."""
    owners, places = events_of(records, rows)
    if records.log_items is None or records.log_ratings is None:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    return owners, records.log_items[places].astype(np.int64), records.log_ratings[places].astype(float)


def damped(owners: np.ndarray, values: np.ndarray, n: int, damping: float) -> np.ndarray:
    """The sum of each owner's values over (their number + damping), (n,); 0 where there is none.

    >>> damped(np.array([0, 0]), np.array([1.0, 2.0]), 2, 1.0).tolist()
    [1.0, 0.0]
    """
    count = np.bincount(owners, minlength=n)
    return np.asarray(np.bincount(owners, weights=values, minlength=n) / np.maximum(count + damping, 1e-12))


@dataclass(frozen=True)
class Means:
    """The mean of all ratings, and what they span; 0 where there are none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ratings: np.ndarray) -> Means:
        """Of known ratings."""
        if not len(ratings):
            return cls(0.0, 0.0, 0.0)
        return cls(float(ratings.astype(float).mean()), float(ratings.min()), float(ratings.max()))

    @property
    def array(self) -> np.ndarray:
        """The three numbers."""
        return np.array([self.mean, self.low, self.high])
