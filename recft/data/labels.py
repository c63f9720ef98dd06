"""Grades for records: from ratings, judgements or right answers, or from what was bought beside what was not.

Sampled negatives are drawn by popularity among the events that training may know, from the items that the user has
not bought up to and including the target's basket. The draw depends on the split's seed alone, so every model sees
the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recft.data.interactions import Kept
from recft.data.judgements import Judgements
from recft.data.order import CACHED_ROWS, taken
from recft.data.query_splits import QueryDraft
from recft.data.splits import Drafts, Spans
from recft.data.store import SPLITS, Log, Named, Records, Split, kept_columns
from recft.data.texts import Texts
from recft.errors import RecipeError, problem
from recft.schema import LabelSettings

__all__ = ["event_records", "query_records", "text_records"]

_ROUNDS = 50


def query_records(judgements: Judgements, draft: QueryDraft, seed: int, split: Split) -> Records:
    """The records of one split of queries; their pairs stand in an order that tells nothing."""
    items, grades = judgements.items[draft.rows], judgements.grades[draft.rows]
    _shuffle(draft.offsets, _generator(seed, split, 0), items, grades)
    keys = [judgements.keys[query] for query in draft.queries.tolist()]
    queries = [judgements.queries[query] for query in draft.queries.tolist()]
    columns = {name: [kept[query] for query in draft.queries.tolist()] for name, kept in judgements.columns.items()}
    return Records(keys, queries, None, None, None, None, draft.offsets, items, grades, columns=columns)


def text_records(texts: Texts, rows: NDArray[np.int64]) -> Records:
    """The records of one split of texts, in the files' order."""
    frame = texts.frame[rows]
    sizes = np.diff(texts.offsets)[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    pairs = np.arange(offsets[-1]) + np.repeat(texts.offsets[rows] - offsets[:-1], sizes)
    items, grades = texts.items[pairs], texts.grades[pairs]
    keys, queries = frame["key"].to_list(), frame["text"].to_list()
    return Records(keys, queries, None, None, None, None, offsets, items, grades, columns=kept_columns(frame))


def event_records(
    log: Log,
    drafts: Drafts,
    labels: LabelSettings,
    seed: int,
    user_ids: list[str],
    n_items: int,
    kept: Mapping[str, Kept] = MappingProxyType({}),
) -> dict[Split, Records]:
    """The records of every split of a log, with their labels.

    Raises:
        RecipeError: labels from ratings that are not mapped, or from two sources.
    """
    given = {"at_least": labels.at_least is not None, "stars": labels.stars, "negatives": labels.negatives is not None}
    named = [name for name, there in given.items() if there]
    if len(named) > 1:
        raise RecipeError(
            problem("data.labels", " and ".join(named), "grades come from one source", "remove all but one")
        )
    if named and named != ["negatives"] and log.ratings is None:
        raise RecipeError(problem(f"data.labels.{named[0]}", "given", "needs ratings", "map data.interactions.rating"))
    shared = log.kept(drafts.kept) if not drafts.kept.all() else log
    records: dict[Split, Records] = {}
    for split in SPLITS:
        spans = drafts.splits[split]
        offsets, items, grades = _pairs(log, spans, labels)
        if labels.negatives is not None:
            sample = _Sample(log, drafts.trained, n_items, labels.negatives, _generator(seed, split, 1))
            offsets, items, grades = sample.beside(spans, offsets, items)
        _shuffle(offsets, _generator(seed, split, 0), items, grades)
        first = spans.first
        users = taken(log.users, first)
        records[split] = Records(
            Named(user_ids, users),
            None,
            users,
            spans.starts,
            spans.cuts,
            taken(log.times, first),
            offsets,
            items,
            grades,
            shared.items,
            shared.times,
            shared.ratings,
            {name: [column.values[code] for code in column.codes[first].tolist()] for name, column in kept.items()},
        )
    return records


def _generator(seed: int, split: Split, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), purpose])


def _shuffle(offsets: NDArray[np.int64], rng: np.random.Generator, *columns: NDArray[Any]) -> None:
    """Puts the pairs' columns in an order that is random within each record and keeps the records."""
    # A record of one pair has one order; most records of a large log are such.
    several = _several(offsets)
    if not len(several):
        return
    sizes = offsets[several + 1] - offsets[several]
    owner = np.repeat(several, sizes)
    moved = np.arange(len(owner)) + np.repeat(offsets[several] - np.cumsum(sizes) + sizes, sizes)
    order = moved[np.lexsort((rng.random(len(moved)), owner))]
    for column in columns:
        column[moved] = column[order]


def _several(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The records of more than one pair, ascending."""
    starts = range(0, len(offsets) - 1, CACHED_ROWS)
    parts = (np.flatnonzero(np.diff(offsets[start : start + CACHED_ROWS + 1]) > 1) + start for start in starts)
    return np.concatenate([np.zeros(0, np.int64), *parts])


Pairs = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


def _pairs(log: Log, spans: Spans, labels: LabelSettings) -> Pairs:
    """offsets, items and grades of the targets; an item that a record meets twice counts as it was met first."""
    items = taken(log.items, spans.rows)
    least = labels.at_least
    if log.ratings is None or (least is None and not labels.stars):
        return spans.offsets, items, np.ones(len(items), np.float32)
    ratings = log.ratings[spans.rows]
    grades = (ratings if least is None else ratings >= least).astype(np.float32)
    owner = np.repeat(np.arange(len(spans)), np.diff(spans.offsets))
    # Rows are in order of time, so the first of each (record, item) is the earliest.
    _, first = np.unique(owner * (int(items.max(initial=0)) + 1) + items, return_index=True)
    first.sort()
    offsets = np.zeros(len(spans) + 1, np.int64)
    np.cumsum(np.bincount(owner[first], minlength=len(spans)), out=offsets[1:])
    return offsets, items[first], grades[first]


class _Sample:
    """Draws items by popularity that a user had not bought by the end of a record's targets."""

    def __init__(self, log: Log, trained: NDArray[np.bool_], n_items: int, n: int, rng: np.random.Generator) -> None:
        self._log, self._n_items, self._n, self._rng = log, n_items, n, rng
        counts = np.bincount(log.items[trained], minlength=n_items)
        self._known = np.flatnonzero(counts)
        self._steps = np.cumsum(counts[self._known])
        # First purchase of each (user, item), as a row of the log: rows of a user are in order of time.
        keys = log.users.astype(np.int64) * n_items + log.items
        self._keys, self._first_row = np.unique(keys, return_index=True)

    def beside(self, spans: Spans, offsets: NDArray[np.int64], items: NDArray[np.int32]) -> Pairs:
        """The targets with their negatives; within a record no item stands twice."""
        sizes = np.diff(offsets)
        owner = np.repeat(np.arange(len(spans)), sizes * self._n)
        drawn = self._draw(owner, spans)
        keep = drawn >= 0
        owner, drawn = owner[keep], drawn[keep]
        owners = np.r_[np.repeat(np.arange(len(spans)), sizes), owner]
        order = np.argsort(owners, kind="stable")
        grades = np.r_[np.ones(len(items), np.float32), np.zeros(len(drawn), np.float32)]
        total = np.zeros(len(spans) + 1, np.int64)
        np.cumsum(np.bincount(owners, minlength=len(spans)), out=total[1:])
        return total, np.r_[items, drawn.astype(np.int32)][order], grades[order]

    def _draw(self, owner: NDArray[np.int64], spans: Spans) -> NDArray[np.int64]:
        """An item for each place of `owner`; -1 where the user has bought all there is."""
        drawn = np.full(len(owner), -1, np.int64)
        open_ = np.arange(len(owner))
        for _ in range(_ROUNDS):
            if not len(open_) or not len(self._known):
                return drawn
            ticks = self._rng.integers(0, self._steps[-1], len(open_))
            drawn[open_] = self._known[np.searchsorted(self._steps, ticks, side="right")]
            drawn[open_[self._bought(owner[open_], drawn[open_], spans)]] = -1
            # A repeat can only be in a record that has just drawn.
            active = np.flatnonzero(np.isin(owner, owner[open_]))
            drawn[active[_repeated(owner[active], drawn[active], self._n_items)]] = -1
            open_ = active[drawn[active] < 0]
        for record in np.unique(owner[open_]).tolist():
            self._fill(record, owner, drawn, spans)
        return drawn

    def _bought(self, owner: NDArray[np.int64], items: NDArray[np.int64], spans: Spans) -> NDArray[np.bool_]:
        """Whether each item was bought by the record's user up to the end of the record's targets."""
        user = self._log.users[spans.first[owner]].astype(np.int64)
        keys = user * self._n_items + items
        place = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        bought: NDArray[np.bool_] = (self._keys[place] == keys) & (self._first_row[place] < spans.ends[owner])
        return bought

    def _fill(self, record: int, owner: NDArray[np.int64], drawn: NDArray[np.int64], spans: Spans) -> None:
        """Fills one record's open places from all that is left, for users who bought nearly everything."""
        places = np.flatnonzero(owner == record)
        taken = drawn[places]
        left = np.setdiff1d(self._known, taken)
        left = left[~self._bought(np.full(len(left), record), left, spans)]
        open_ = places[taken < 0]
        self._rng.shuffle(left)
        drawn[open_[: len(left)]] = left[: len(open_)]


def _repeated(owner: NDArray[np.int64], drawn: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """The places that repeat an earlier draw of the same record."""
    there = np.flatnonzero(drawn >= 0)
    _, first = np.unique(owner[there] * n_items + drawn[there], return_index=True)
    again = np.ones(len(there), bool)
    again[first] = False
    return there[again]
