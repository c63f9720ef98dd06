"""Where some columns stand in rows of scores, and the first places of each row.

A few rows are done with at a time, while they lie in the processor's cache; of wide rows several threads take some
each. Nothing is sorted whole: the first places are sought among the scores that reach a bound which is surely not above
the last of them, and what stands above a column is counted, in the whole row only where it does not reach the bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from recft.metrics._tables import refuse_nan

__all__ = ["Standing", "hidden", "standing"]

GROUP_SCORES = 1 << 17
"""Scores that are done with at a time: 512 KiB of float32, which stay in a core's cache."""

MOST_COUNTED = 16
"""A row is passed over twice for each of so many columns; with more of them it is sorted."""

PARALLEL_COLUMNS = 1 << 19
"""From so many columns on a pass over a row takes longer than a thread waits for the interpreter's lock."""

SHARES = (64, 32, 16, 8, 4)
"""How many columns may share one maximum where a bound for the first places is sought."""

Places = tuple[np.ndarray, ...]
"""Rows and columns of single places in a block, as `np.nonzero` gives them."""


@dataclass(frozen=True)
class Standing:
    """Where columns stand in their rows, and what stands first.

    Attributes:
        greater: scores of the row strictly above each column's, (P,), int64.
        tied: scores of the row equal to each column's, itself counted, (P,), int64.
        top: the columns of each row's first places, (B, depth), equal scores by number; -1 where there are no more.
        top_scores: their scores, (B, depth), float32; -inf where there are no more.
    """

    greater: np.ndarray
    tied: np.ndarray
    top: np.ndarray
    top_scores: np.ndarray


@contextlib.contextmanager
def hidden(scores: np.ndarray, places: Places | None) -> Iterator[np.ndarray]:
    """The block with -inf at some places, for as long as it is looked at: what was there is put back after.

    A copy is made only of a block that may not be written to.
    """
    if places is None or not len(places[0]):
        yield scores
        return
    shown = scores if scores.flags.writeable else scores.copy()
    kept = shown[places]
    shown[places] = -np.inf
    try:
        yield shown
    finally:
        shown[places] = kept


def standing(scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, depth: int = 0, threads: int = 1) -> Standing:
    """Where single columns stand in their rows, and each row's first places.

    Args:
        scores: (B, C); -inf is a score like any other, but never among the first places.
        rows: of each column asked about, (P,), ascending.
        columns: (P,).
        depth: how many first places are wanted; all there are where these are fewer.
        threads: that share the rows.

    >>> found = standing(np.array([[3.0, 1.0, 2.0, 1.0]]), np.array([0, 0]), np.array([1, 2]), 2)
    >>> found.greater.tolist(), found.tied.tolist(), found.top.tolist()
    ([2, 1], [2, 1], [[0, 2]])

    Raises:
        ModelError: a score is not a number.
    """
    scores = np.ascontiguousarray(scores)
    n_rows, n_columns = scores.shape
    size = max(1, GROUP_SCORES // max(n_columns, 1))
    starts = range(0, n_rows, size)
    ends = np.searchsorted(rows, [*starts, n_rows])
    own = scores[rows, columns]
    found = Standing(
        np.zeros(len(rows), np.int64),
        np.zeros(len(rows), np.int64),
        np.full((n_rows, min(depth, n_columns)), -1, np.int64),
        np.full((n_rows, min(depth, n_columns)), -np.inf, np.float32),
    )

    def work(group: int) -> _Reached | None:
        start, pairs = starts[group], slice(*ends[group : group + 2])
        part = scores[start : start + size]
        reached = _reaching(part, found.top.shape[1], start)
        if reached is not None:
            counted = pairs.start + np.flatnonzero(~(own[pairs] >= reached.sure[rows[pairs] - start]))
            _count(found, part, counted, rows[counted] - start, own[counted])
        return reached

    if threads > 1 and n_columns >= PARALLEL_COLUMNS:
        with ThreadPoolExecutor(threads) as pool:
            groups = list(pool.map(work, range(len(starts))))
    else:
        groups = list(map(work, range(len(starts))))
    whole = [group for group in groups if group is not None]
    if len(whole) < len(groups):
        refuse_nan(scores)
    if whole:
        _order(found, _Reached(*map(np.concatenate, zip(*whole, strict=True))), n_columns, rows, columns, own)
    return found


class _Reached(NamedTuple):
    """What reaches a bound in some rows.

    Attributes:
        rows: of each score that does, ascending, (n,).
        columns: ascending within a row, (n,).
        values: the scores, (n,).
        sure: of each row: all its scores that are not below this are among these; NaN where that is not known.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    sure: np.ndarray


def _reaching(part: np.ndarray, depth: int, start: int) -> _Reached | None:
    """The first `depth` places of a few rows, of which the first is `start`, and those that reach a bound besides.

    The bound is the depth-th highest of the maxima of columns that share one: as many scores reach it at least. None
    where a score is not a number.
    """
    n_rows, n_columns = part.shape
    share = next((share for share in SHARES if n_columns // share >= 4 * depth), 1) if n_columns else 1
    width = n_columns // share
    maxima = part[:, : width * share].reshape(n_rows, share, width).max(axis=1) if share > 1 else part
    if width * share < n_columns:
        maxima = np.concatenate([maxima, part[:, width * share :]], axis=1)
    if np.isnan(maxima).any():
        return None
    unknown = np.full(n_rows, np.nan, part.dtype)
    if not depth:
        none = np.zeros(0, np.int64)
        return _Reached(none, none, part[:0, :0].ravel(), unknown)
    place = maxima.shape[1] - depth
    # What scores -inf is never among the first places.
    bound = np.maximum(np.partition(maxima, place, axis=1)[:, place], np.finfo(part.dtype).min)
    places = np.flatnonzero(part >= bound[:, None])
    if len(places) <= 4 * depth * n_rows:
        rows, columns = np.divmod(places, n_columns) if n_rows > 1 else (np.zeros_like(places), places)
        return _Reached(rows + start, columns, part.ravel()[places], bound)
    # Many equal scores, as counts of words or of purchases have: of these no more than are wanted.
    chosen = [_first_of_row(row, limit, depth) for row, limit in zip(part, bound, strict=True)]
    rows, columns = np.repeat(np.arange(n_rows), [len(one) for one in chosen]), np.concatenate(chosen)
    return _Reached(rows + start, columns, part[rows, columns], unknown)


def _first_of_row(row: np.ndarray, bound: float, depth: int) -> np.ndarray:
    """The columns of one row's first places, ascending: above the last place's score, and the first that equal it."""
    above = np.flatnonzero(row > bound)
    if len(above) >= depth:
        bound = np.partition(row[above], len(above) - depth)[len(above) - depth]
        above = np.flatnonzero(row > bound)
    equal = np.flatnonzero(row == bound)[: depth - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _order(
    found: Standing, reached: _Reached, n_columns: int, rows: np.ndarray, columns: np.ndarray, own: np.ndarray
) -> None:
    """Writes the first places, and where those columns stand that are surely among what is reached."""
    n_rows, depth = found.top.shape
    order = _descending(reached.rows, reached.values)
    row, value = reached.rows[order], reached.values[order]
    number = np.arange(len(order))
    starts = np.searchsorted(row, np.arange(n_rows))
    place = number - starts[row]
    shown = np.flatnonzero(place < depth)
    found.top[row[shown], place[shown]] = reached.columns[order[shown]]
    found.top_scores[row[shown], place[shown]] = value[shown]

    sure = np.flatnonzero(own >= reached.sure[rows])
    at = np.empty(len(order), np.int64)
    at[order] = number
    at = at[np.searchsorted(reached.rows * n_columns + reached.columns, rows[sure] * n_columns + columns[sure])]
    fresh = np.flatnonzero(np.append(True, (row[1:] != row[:-1]) | (value[1:] != value[:-1]))[: len(row)])
    equals = np.searchsorted(fresh, at, side="right") - 1  # the equal scores that each of them belongs to
    found.greater[sure] = place[fresh[equals]]
    found.tied[sure] = np.diff(fresh, append=len(row))[equals]


def _descending(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The order by row, highest value first, equal ones as they stand."""
    order = np.argsort(-values, kind="stable")
    # Few different numbers, sorted by their digits.
    narrow = rows.astype(np.uint16) if len(rows) and rows[-1] < 1 << 16 else rows
    return order[np.argsort(narrow[order], kind="stable")]


def _count(found: Standing, part: np.ndarray, pairs: np.ndarray, rows: np.ndarray, own: np.ndarray) -> None:
    """Writes how many scores of its row are above each pair's own, and how many equal it.

    Args:
        found: where it is written.
        part: some rows of scores.
        pairs: their numbers, (p,).
        rows: of each, ascending.
        own: the score of each.
    """
    above = np.empty(part.shape[1], bool)
    for first, after in pairwise([0, *(np.flatnonzero(rows[1:] != rows[:-1]) + 1).tolist(), len(rows)]):
        if after - first > MOST_COUNTED:
            some = pairs[first:after]
            found.greater[some], found.tied[some] = _by_sorting(part[rows[first]], own[first:after])
            continue
        for pair in range(first, after):
            row, score = part[rows[pair]], own[pair]
            found.greater[pairs[pair]] = np.count_nonzero(np.greater(row, score, out=above))
            found.tied[pairs[pair]] = np.count_nonzero(np.equal(row, score, out=above))


def _by_sorting(row: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ordered = np.sort(row)
    up_to = ordered.searchsorted(own, side="right")
    return len(row) - up_to, up_to - ordered.searchsorted(own, side="left")
