"""How often training took each item, and which items are the few that it took most.

For interactions an event is a row of the log that a record holds, in its history or as its target, each counted once
however many histories hold it; for the other tables, a record that has the item as a relevant one. Rows of the log
after the records' targets are never read, so that what is counted of training records knows nothing of later events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["HEAD", "MIDDLE", "counts", "share_above"]

HEAD = 0.5
"""The most popular items that together take this share of training events are the head."""

MIDDLE = 0.8
"""Those that together with the head take this share are the middle; all others are the tail."""


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


def share_above(popularity: np.ndarray) -> np.ndarray:
    """The share of all events that items more popular than each item took, (N,); 1 for an item without events.

    Items of one popularity have one share, so that an order of the catalogue never decides which of them is tail.

    >>> share_above(np.array([5, 1, 3, 1, 0])).tolist()
    [0.0, 0.8, 0.5, 0.8, 1.0]
    """
    values, of, sizes = np.unique(-popularity, return_inverse=True, return_counts=True)
    events = -values * sizes  # of each popularity, from the highest down
    share = (np.cumsum(events) - events) / max(int(events.sum()), 1)
    share[values == 0] = 1.0
    shares: np.ndarray = share[of.reshape(-1)]
    return shares
