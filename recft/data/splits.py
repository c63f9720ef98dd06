"""Dividing events into train, valid and test; `query_splits` divides queries.

Events are grouped into baskets: what one user did at one moment. A record's input is what the user did strictly
before its basket, so a basket never sees itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recft.data.order import CACHED_ROWS, Rows, kth, row_type, threads
from recft.data.store import SPLITS, Log, Split
from recft.errors import DataError, RecipeError, problem
from recft.schema import SplitSettings

__all__ = [
    "Drafts",
    "Spans",
    "check_not_empty",
    "check_shares",
    "part_sizes",
    "split_events",
    "time_cuts",
]

Ints = NDArray[np.int64]
Edges = list[Rows]
"""starts, cuts, ends and rows of records whose targets are all rows from the cut to the end; see `Spans`."""


@dataclass(frozen=True)
class Spans:
    """Records over the log. Targets of record r are the log's rows `rows[offsets[r]:offsets[r + 1]]`.

    Attributes:
        starts: (R,) first row of the history.
        cuts: (R,) first row after the history.
        ends: (R,) first row after the targets; what the user did by then is known to be no negative.
        offsets: (R + 1,) into rows.
        rows: (P,) rows of the log.
    """

    starts: Rows
    cuts: Rows
    ends: Rows
    offsets: Ints
    rows: Rows

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def first(self) -> Rows:
        """(R,) the row of each record's first target."""
        return self.rows[self.offsets[:-1]]


@dataclass(frozen=True)
class Drafts:
    """All splits of a log.

    Attributes:
        splits: the records of each.
        trained: (E,) events that training may know: negatives are drawn by their popularity.
        kept: (E,) events that histories may hold; only cold items are missing from it.
        card: the cuts, for the card.
    """

    splits: Mapping[Split, Spans]
    trained: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Baskets:
    """Baskets of some users of a sorted log: its rows `bounds[k]:bounds[k + 1]` are one user's at one time."""

    bounds: Rows  # (K + 1,)
    users: NDArray[np.int32]  # (K,)
    times: Ints  # (K,)
    starts: Rows  # (K,) the first row of the basket's user

    @property
    def has_past(self) -> NDArray[np.bool_]:
        return self.bounds[:-1] > self.starts

    def first_of_user(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the baskets in `mask`, each user's first."""
        places = np.flatnonzero(mask)
        chosen = np.zeros(len(mask), bool)
        if len(places):
            users = self.users[places]
            chosen[places[np.r_[True, users[1:] != users[:-1]]]] = True
        return chosen

    @property
    def place_from_last(self) -> Ints:
        """0 for each user's last basket, 1 for the one before, and so on."""
        last = np.r_[self.users[1:] != self.users[:-1], True]
        ends = np.flatnonzero(last)
        owner = np.cumsum(np.r_[0, last[:-1]])
        place: Ints = ends[owner] - np.arange(len(self.users))
        return place

    def edges(self, mask: NDArray[np.bool_]) -> Edges:
        """The records of the baskets in `mask` that have a past."""
        chosen = np.flatnonzero(mask & self.has_past)
        return _contiguous(self.starts[chosen], self.bounds[chosen], self.bounds[chosen + 1])


def _baskets(log: Log, part: slice) -> _Baskets:
    users, times = log.users[part], log.times[part]
    fresh = np.ones(len(users), bool)
    fresh[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(fresh)
    users, times = users[first], times[first]
    newcomer = np.r_[True, users[1:] != users[:-1]] if len(users) else np.empty(0, bool)
    own = np.flatnonzero(newcomer)
    bounds = (np.r_[first, part.stop - part.start] + part.start).astype(row_type(len(log)))
    starts = np.repeat(bounds[own], np.diff(np.r_[own, len(first)]))
    return _Baskets(bounds, users, times, starts)


def _contiguous(starts: Rows, cuts: Rows, ends: Rows) -> Edges:
    """Records whose targets are all rows from the cut to the end."""
    sizes = ends - cuts
    before = np.cumsum(sizes) - sizes
    rows = np.repeat(cuts - before, sizes) + np.arange(sizes.sum())
    return [starts, cuts, ends, rows.astype(cuts.dtype)]


def _spans(parts: list[Edges], pool: Executor, kind: type[np.integer[Any]]) -> Spans:
    """The parts' records end to end; a part is let go once it is copied."""
    ends = np.cumsum([(len(cuts), len(rows)) for _, cuts, _, rows in parts], axis=0) if parts else np.zeros((1, 2), int)
    n_records, n_rows = ends[-1].tolist()
    starts, cuts, until = (np.empty(n_records, kind) for _ in range(3))
    found = Spans(starts, cuts, until, np.zeros(n_records + 1, np.int64), np.empty(n_rows, kind))

    def put(number: int) -> None:
        *edges, rows = parts[number]
        parts[number] = []
        record, row = ends[number] - (len(edges[0]), len(rows))
        here = slice(record, record + len(edges[0]))
        for whole, edge in zip((starts, cuts, until), edges, strict=True):
            whole[here] = edge
        np.cumsum(edges[2] - edges[1], out=found.offsets[1:][here])
        found.offsets[1:][here] += row
        found.rows[row : row + len(rows)] = rows

    list(pool.map(put, range(len(parts))))
    return found


def split_events(log: Log, settings: SplitSettings, graded: bool) -> Drafts:
    """The records of every split of a log that is sorted by user, time, then file order.

    graded: whether ratings say yes and no; then by time a record holds all that a user did between two cuts.

    Raises:
        RecipeError: this split needs queries.
        DataError: a split that was asked for has no record.
    """
    by = settings.by or "time"
    if by in ("query", "file"):
        reason = "interactions have no queries" if by == "query" else "files of their own are for data.texts"
        raise RecipeError(problem("data.split.by", f"'{by}'", reason, "time, leave_one_out, user or cold_items"))
    if settings.folds is not None:
        raise RecipeError(problem("data.split.folds", str(settings.folds), "folds are of queries", "remove it"))
    check_shares(settings)
    if by == "time":
        drafts = _by_time(log, settings, graded)
    elif by == "leave_one_out":
        drafts = _leave_one_out(log, settings)
    elif by == "user":
        drafts = _by_user(log, settings)
    else:
        drafts = _cold_items(log, settings)
    check_not_empty({split: len(spans) for split, spans in drafts.splits.items()}, settings)
    return drafts


def check_shares(settings: SplitSettings) -> None:
    """Passes where the shares leave something to train on.

    Raises:
        RecipeError: they do not.
    """
    if settings.valid + settings.test >= 1 and settings.folds is None:
        raise RecipeError(
            problem(
                "data.split",
                f"valid {settings.valid:g} and test {settings.test:g}",
                "their sum is below 1: something is left to train on",
                "take smaller shares",
            )
        )


def check_not_empty(sizes: Mapping[Split, int], settings: SplitSettings) -> None:
    """Passes where every split that was asked for has a record.

    Raises:
        DataError: one has none.
    """
    wanted = {"train": True, "valid": settings.valid > 0, "test": settings.test > 0 or settings.folds is not None}
    empty = [split for split in SPLITS if wanted[split] and not sizes[split]]
    if empty:
        counts = ", ".join(f"{split} {sizes[split]}" for split in SPLITS)
        raise DataError(
            problem(
                "data.split",
                f"no record in {', '.join(empty)} ({counts})",
                "every split that is asked for has records, and a record of events has a past",
                "bring more data, or change data.split",
            )
        )


Masks = Mapping[Split, NDArray[np.bool_]]


def _divided(
    log: Log, masks_of: Callable[[_Baskets], Masks], edges_of: Callable[[_Baskets, Split, NDArray[np.bool_]], Edges]
) -> Drafts:
    """The splits of a log whose histories may hold all events.

    It is divided some users at a time: what is needed on the way stays in the cache, and memory holds the result only.

    Args:
        log: sorted.
        masks_of: which baskets are in each split.
        edges_of: the records of those of one split.
    """

    def of(part: slice) -> tuple[dict[Split, Edges], NDArray[np.bool_]]:
        baskets = _baskets(log, part)
        masks = masks_of(baskets)
        edges = {split: edges_of(baskets, split, mask) for split, mask in masks.items()}
        return edges, np.repeat(masks["train"], np.diff(baskets.bounds))

    with threads() as pool:
        parts = list(pool.map(of, log.chunks(CACHED_ROWS)))
        trained = np.concatenate([mask for _, mask in parts] or [np.empty(0, bool)])
        splits = {split: _spans([edges.pop(split) for edges, _ in parts], pool, row_type(len(log))) for split in SPLITS}
    return Drafts(splits, trained, np.ones(len(log), bool))


def _all_of_them(baskets: _Baskets, split: Split, mask: NDArray[np.bool_]) -> Edges:  # noqa: ARG001 (of any split)
    return baskets.edges(mask)


def time_cuts(log: Log, settings: SplitSettings) -> tuple[int, int]:
    """The last moment of training and the last of validation: two quantiles of time over rows."""
    # A time that some row has, so that no cut depends on how numbers are rounded.
    last = len(log) - 1
    cuts = kth(log.times, [int(last * share) for share in (1 - settings.valid - settings.test, 1 - settings.test)])
    return cuts[0], cuts[1]


def _by_time(log: Log, settings: SplitSettings, graded: bool) -> Drafts:
    """Cut at two quantiles of time over rows: a record's input ends at the cut before its targets."""
    valid_cut, test_cut = time_cuts(log, settings)

    def masks(baskets: _Baskets) -> Masks:
        train = baskets.times <= valid_cut
        test = (baskets.times > test_cut) if settings.test else np.zeros(len(train), bool)
        return {"train": train, "valid": (baskets.times > valid_cut) & (baskets.times <= test_cut), "test": test}

    def edges(baskets: _Baskets, split: Split, mask: NDArray[np.bool_]) -> Edges:
        if split == "train":
            return baskets.edges(mask)
        # The past must lie before the cut; the first basket after it has no other.
        found = baskets.edges(baskets.first_of_user(mask))
        return _until_next_cut(found, baskets, mask) if graded else found

    drafts = _divided(log, masks, edges)
    return replace(drafts, card={"valid_cut": valid_cut, "test_cut": test_cut})


def _until_next_cut(edges: Edges, baskets: _Baskets, mask: NDArray[np.bool_]) -> Edges:
    """The same records with all baskets of the user in `mask`, not the first alone."""
    places = np.flatnonzero(mask)
    first_user = int(baskets.users.min(initial=0))
    ends = np.zeros(int(baskets.users.max(initial=0)) + 1 - first_user, np.int64)
    # The last write is the user's last basket.
    ends[baskets.users[places] - first_user] = baskets.bounds[places + 1]
    starts, cuts, *_ = edges
    owner = np.searchsorted(baskets.bounds[:-1], cuts)
    return _contiguous(starts, cuts, ends[baskets.users[owner] - first_user])


def _leave_one_out(log: Log, settings: SplitSettings) -> Drafts:
    """Each user's last basket is test, the one before it valid, all earlier ones train."""
    test_place = 0 if settings.test else -1
    valid_place = test_place + 1 if settings.valid else -1
    last_held_out = max(test_place, valid_place)

    def masks(baskets: _Baskets) -> Masks:
        place = baskets.place_from_last
        return {"train": place > last_held_out, "valid": place == valid_place, "test": place == test_place}

    return _divided(log, masks, _all_of_them)


def _by_user(log: Log, settings: SplitSettings) -> Drafts:
    """Users are divided; of a held-out user the last basket is the target."""
    later = [baskets.users[baskets.has_past] for baskets in (_baskets(log, part) for part in log.chunks())]
    users = np.unique(np.concatenate(later or [np.empty(0, np.int32)]))
    np.random.default_rng(settings.seed).shuffle(users)
    n_test, n_valid = part_sizes(len(users), settings)
    where = np.zeros(int(log.users.max(initial=0)) + 1, np.int8)  # 1 test, 2 valid
    where[users[:n_test]], where[users[n_test : n_test + n_valid]] = 1, 2

    def masks(baskets: _Baskets) -> Masks:
        last, held_out = baskets.place_from_last == 0, where[baskets.users]
        return {"train": held_out == 0, "valid": (held_out == 2) & last, "test": (held_out == 1) & last}

    return _divided(log, masks, _all_of_them)


def _cold_items(log: Log, settings: SplitSettings) -> Drafts:
    """Some items are targets of test or valid alone: no history, and nothing in training, holds them."""
    baskets = _baskets(log, slice(0, len(log)))
    items = np.unique(log.items)
    np.random.default_rng(settings.seed).shuffle(items)
    n_test, n_valid = part_sizes(len(items), settings)
    test, valid = (np.isin(log.items, part) for part in (items[:n_test], items[n_test : n_test + n_valid]))
    warm = ~test & ~valid
    # Histories are spans of the log without cold items: this maps a row to its place there.
    place = np.r_[0, np.cumsum(warm)]
    basket_of = np.repeat(np.arange(len(baskets.users)), np.diff(baskets.bounds))
    splits: dict[Split, Spans] = {}
    for name, mask in (("train", warm), ("valid", valid), ("test", test)):
        starts, cuts = place[baskets.starts], place[baskets.bounds[:-1]]
        rows = np.flatnonzero(mask & (cuts > starts)[basket_of])
        chosen, counts = np.unique(basket_of[rows], return_counts=True)
        offsets = np.r_[0, np.cumsum(counts)].astype(np.int64)
        splits[name] = Spans(starts[chosen], cuts[chosen], baskets.bounds[chosen + 1], offsets, rows)  # type: ignore[index]
    card = {"cold_items": {"valid": n_valid, "test": n_test}}
    return Drafts(splits, warm, warm, card)


def part_sizes(n: int, settings: SplitSettings) -> tuple[int, int]:
    """How many of n go to test and to valid: the shares, rounded, and at least one where a share was asked for."""
    return tuple(max(1, round(n * share)) if share and n else 0 for share in (settings.test, settings.valid))  # type: ignore[return-value]
