"""Popularity: the same list for everyone, what was taken most often in training first.

    score(item) = how many training events took it

For interactions an event is a row of the log that a training record holds, in its history or as its target, each
counted once however many histories hold it; for queries, a training query that has the item as a relevant one.
Rows after the training records' targets are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from recft.baselines._base import ScoreRows

if TYPE_CHECKING:
    from recft.data.store import Records, Store

__all__ = ["MEMBER", "Popularity", "counts"]


def counts(records: Records, n_items: int) -> np.ndarray:
    """How many events of the records took each item, (N,), int64.

    Targets graded 0 are no events: among them are items drawn as negatives, which nobody took.
    """
    taken = records.grades > 0  # (P,)
    if records.starts is None or records.cuts is None or records.users is None or records.log_items is None:
        return np.bincount(records.items[taken], minlength=n_items)
    # Histories of one user overlap: +1 at each start, -1 at each cut, and a row is held where the sum is positive.
    edges = np.zeros(len(records.log_items) + 1, dtype=np.int64)
    np.add.at(edges, records.starts, 1)
    np.add.at(edges, records.cuts, -1)
    held = np.cumsum(edges[:-1]) > 0
    # A target before the user's last training cut lies in a later history already.
    last_cut = np.full(int(records.users.max(initial=-1)) + 1, -1, dtype=np.int64)
    np.maximum.at(last_cut, records.users, records.cuts)
    is_last = records.cuts == last_cut[records.users]  # (R,)
    taken &= np.repeat(is_last, np.diff(records.offsets))
    in_histories = np.bincount(np.asarray(records.log_items)[held], minlength=n_items)
    return in_histories + np.bincount(records.items[taken], minlength=n_items)


@dataclass(frozen=True)
class Popularity:
    """The baseline."""

    tables: tuple[Literal["queries", "interactions"], ...] = ("queries", "interactions")
    summary: str = "what was taken most often in training, the same for everyone"

    def fit(self, store: Store) -> ScoreRows:
        """What gives each row the training counts."""
        scores = counts(store.records("train"), len(store.item_ids)).astype(np.float32)

        def score_rows(records: Records, rows: np.ndarray) -> np.ndarray:  # noqa: ARG001 (one list for everyone)
            return np.tile(scores, (len(rows), 1))

        return score_rows


MEMBER = Popularity()
