"""Histories of records as blocks of vectors over the catalogue, old events counting less.

An event weighs exp(-age / decay), both in days: after `decay_days` it weighs 0.37. `inf` is no decay: all weigh 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recft.baselines._base import spans

if TYPE_CHECKING:
    from recft.baselines._base import Known
    from recft.data.store import Log, Records

__all__ = ["DAY_SECONDS", "ages_of", "decayed", "events_of", "held", "last_weights", "summed_weights"]

DAY_SECONDS = 86_400.0


def ages_of(known: Known, log: Log) -> np.ndarray:
    """Days from each known event to the last one, (E,), float64."""
    return ((known.now or 0) - log.times) / DAY_SECONDS


def events_of(records: Records, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The events before the targets of those rows: the place in `rows` of each, and its place in the whole log."""
    if records.starts is None or records.cuts is None or records.log_items is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return spans(records.starts[rows], records.cuts[rows])


def decayed(
    records: Records, rows: np.ndarray, decay_days: float = np.inf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events of the rows' histories with weights, oldest first: owners, items, weights, each (H,).

    Ages count from the last event of the same history, so that an old history weighs as much as a fresh one.
    """
    owners, places = events_of(records, rows)
    if records.log_items is None or records.log_times is None or records.cuts is None or not len(places):
        return owners, np.empty(0, np.int64), np.empty(0)
    items = records.log_items[places].astype(np.int64)
    last = records.log_times[np.maximum(records.cuts[rows] - 1, 0)]
    ages = (last[owners] - records.log_times[places]) / DAY_SECONDS
    return owners, items, np.exp(-ages / decay_days)


def summed_weights(records: Records, rows: np.ndarray, n_items: int, decay_days: float = np.inf) -> np.ndarray:
    """The sum of the weights of each row's events with each item, (B, N), float32; without decay their count."""
    owners, items, weights = decayed(records, rows, decay_days)
    sums = np.bincount(owners * n_items + items, weights=weights, minlength=len(rows) * n_items)
    return sums.astype(np.float32).reshape(len(rows), n_items)


def last_weights(records: Records, rows: np.ndarray, n_items: int, decay_days: float = np.inf) -> np.ndarray:
    """The weight of each row's last event with each item, (B, N), float32; without decay 1 where there is one."""
    owners, items, weights = decayed(records, rows, decay_days)
    block = np.zeros((len(rows), n_items), np.float32)
    np.maximum.at(block, (owners, items), weights.astype(np.float32))
    return block


def held(records: Records, rows: np.ndarray, n_items: int) -> np.ndarray:
    """1 where a row's history holds an item, else 0, (B, N), float32."""
    return last_weights(records, rows, n_items)
