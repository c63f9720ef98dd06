"""What every classic row meets: fitted to arrays on what was known before a split, and scores of every item.

A member is two pure functions over arrays. `fit` learns from `Known` alone, so the same rule can be chosen on
validation and refitted for test; what it gives is plain arrays, so it can be cached by the data's hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recft.errors import DataError, problem

if TYPE_CHECKING:
    from recft.data.store import Log, Records, Split, Store, Table

__all__ = ["Arrays", "Baseline", "Known", "known", "spans"]

Arrays = Mapping[str, np.ndarray]
"""What a fit gives; no array holds objects."""


@dataclass(frozen=True)
class Known:
    """What a classic row may know: everything before the split that is scored.

    Attributes:
        store: the prepared data; of it a fit reads the catalogue and the card, never a split.
        split: the split that will be scored.
        log: the known events, sorted by user, then time; None where the table has no events.
        records: labelled records to learn from: train, and for test those of valid after them. Their histories
            are places in the whole log that they carry, not in `log`.
        now: time of the last known event, unix seconds.
    """

    store: Store
    split: Split
    log: Log | None
    records: Records
    now: int | None


class Baseline(Protocol):
    """A classic row of the table.

    Attributes:
        summary: one line for people.
        tables: the prepared tables it reads.
        outputs: task outputs it makes sense for.
        grid: settings to try on validation, the default first.
        by_default: whether it stands in a table that names no classic rows; slow ones do not.
        most_items: the largest catalogue that it can be fitted on; any where None.
        probabilities: whether its scores are probabilities (of yes; or of the classes, a row summing to 1).
    """

    summary: str
    tables: tuple[Table, ...]
    outputs: tuple[str, ...]
    grid: tuple[Mapping[str, Any], ...]
    probabilities: bool
    by_default: bool
    most_items: int | None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What was learned, as arrays without objects."""

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The score of every item for those rows of any split, (B, N), float32."""


def known(store: Store, split: Split) -> Known:
    """What may be known when `split` is scored; never a target of it.

    By time: all events up to the split's cut. Otherwise a held-out event may lie before one that training holds, so
    only events count that a record holds: histories and targets of train (and for test of valid), and the histories
    that the scored records bring along.

    Raises:
        DataError: `split` is train: nothing lies before it.
    """
    if split == "train":
        raise DataError(
            problem("split", "'train'", "classic rows are fitted before valid or test", "score one of them")
        )
    learned = [store.records("train")] + ([store.records("valid")] if split == "test" else [])
    records = learned[0] if len(learned) == 1 else _joined(*learned)
    log = store.log
    if log is None:
        return Known(store, split, None, records, None)
    division = store.card["split"]
    if division["by"] == "time":
        held = log.times <= division[f"{split}_cut"]
    else:
        held = _in_histories(store.records(split), len(log))
        for part in learned:
            held |= _in_histories(part, len(log)) | _in_targets(part, log)
    before = log.kept(held)
    return Known(store, split, before, records, int(before.times.max()) if len(before) else None)


def _in_histories(records: Records, n_events: int) -> np.ndarray:
    """Which events of the whole log some record's history holds, (E,), bool."""
    if records.starts is None or records.cuts is None:
        return np.zeros(n_events, bool)
    # Histories of one user overlap: +1 at each start, -1 at each cut, and an event is held where the sum is positive.
    edges = np.bincount(records.starts, minlength=n_events + 1) - np.bincount(records.cuts, minlength=n_events + 1)
    held: np.ndarray = np.cumsum(edges[:n_events]) > 0
    return held


def _in_targets(records: Records, log: Log) -> np.ndarray:
    """Which events are targets of some record, (E,), bool.

    A record's targets are events of its user at its time whose item is among its candidates. Items that were drawn
    as negatives were not taken by then, and cold items are in no log.
    """
    found = np.zeros(len(log), bool)
    if records.users is None or records.times is None or records.cuts is None or not len(records):
        return found
    fresh = np.ones(len(log) + 1, bool)
    fresh[1:-1] = (log.users[1:] != log.users[:-1]) | (log.times[1:] != log.times[:-1])
    bounds = np.flatnonzero(fresh)
    first = np.minimum(records.cuts, max(len(log) - 1, 0))
    own = (records.cuts < len(log)) & (log.users[first] == records.users) & (log.times[first] == records.times)
    ends = np.where(own, bounds[np.searchsorted(bounds, first, side="right")], records.cuts)
    owners, places = spans(records.cuts, ends)
    n_items = int(max(log.items.max(initial=0), records.items.max(initial=0))) + 1
    pair_owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    pairs = pair_owners * n_items + records.items
    found[places[np.isin(owners * n_items + log.items[places], pairs)]] = True
    return found


def spans(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All places of the spans `starts[i]:stops[i]`, and beside each the i it belongs to: owners, places.

    >>> [part.tolist() for part in spans(np.array([5, 0]), np.array([7, 1]))]
    [[0, 0, 1], [5, 6, 0]]
    """
    sizes = np.asarray(stops, np.int64) - np.asarray(starts, np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    before = np.cumsum(sizes) - sizes
    return owners, np.arange(len(owners)) + np.repeat(np.asarray(starts, np.int64) - before, sizes)


def _joined(first: Records, second: Records) -> Records:
    """The records of both, in that order; they share one log."""

    def both(one: np.ndarray | None, other: np.ndarray | None) -> Any:
        return None if one is None or other is None else np.concatenate([one, other])

    return replace(
        first,
        keys=[*first.keys, *second.keys],
        queries=None if first.queries is None or second.queries is None else [*first.queries, *second.queries],
        users=both(first.users, second.users),
        starts=both(first.starts, second.starts),
        cuts=both(first.cuts, second.cuts),
        times=both(first.times, second.times),
        offsets=np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        items=np.concatenate([first.items, second.items]),
        grades=np.concatenate([first.grades, second.grades]),
        columns={name: [*first.columns[name], *second.columns[name]] for name in first.columns},
    )
