"""Where some columns stand in rows of scores, and the first places of each row.

A few rows are done with at a time, while they lie in the processor's cache, and several threads take rows of their own.
Nothing is sorted whole: what stands above a column is counted, and the first places are sought among the scores that
reach a bound which is surely not above the last of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from recft.metrics._tables import refuse_nan

__all__ = ["Standing", "hidden", "standing"]

GROUP_SCORES = 1 << 17
"""Scores that are done with at a time: 512 KiB of float32, which stay in a core's cache."""

MOST_COUNTED = 12
"""A row is passed over once or twice for each of so many columns; with more of them it is sorted."""

PARALLEL_SCORES = 1 << 20
"""From so many scores on, several threads are worth starting."""

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
    depth = min(depth, n_columns)
    found = Standing(
        np.zeros(len(rows), np.int64),
        np.zeros(len(rows), np.int64),
        np.full((n_rows, depth), -1, np.int64),
        np.full((n_rows, depth), -np.inf, np.float32),
    )
    size = max(1, GROUP_SCORES // max(n_columns, 1))
    starts = range(0, n_rows, size)
    bounds = np.searchsorted(rows, [*starts, n_rows])

    def work(groups: Sequence[int]) -> bool:
        return all(_fill(found, scores, rows, columns, starts[i], size, slice(*bounds[i : i + 2])) for i in groups)

    if threads > 1 and scores.size >= PARALLEL_SCORES:
        shares = [range(first, len(starts), threads) for first in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            whole = all(list(pool.map(work, shares)))
    else:
        whole = work(range(len(starts)))
    if not whole:
        refuse_nan(scores)
    return found


def _fill(
    found: Standing, scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, start: int, size: int, pairs: slice
) -> bool:
    """Writes what is found of a few rows; False where one of their scores is not a number."""
    part = scores[start : start + size]
    depth = found.top.shape[1]
    best, bound = _bounds(part, depth)
    if np.isnan(best).any():
        return False
    if depth:
        rest = slice(start, start + len(part))
        found.top[rest], found.top_scores[rest] = _first(part, bound, depth)
    if pairs.start < pairs.stop:
        found.greater[pairs], found.tied[pairs] = _counted(part, rows[pairs] - start, columns[pairs])
    return True


def _bounds(part: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's highest score, NaN where one is none, and a finite bound that `depth` of its scores reach, (g,).

    The bound is the depth-th highest of the maxima of columns that share one: as many scores reach it at least.
    """
    n_columns = part.shape[1]
    share = next((share for share in SHARES if n_columns // share >= 4 * depth), 1) if n_columns else 1
    width = n_columns // share
    maxima = part[:, : width * share].reshape(len(part), share, width).max(axis=1) if share > 1 else part
    if width * share < n_columns:
        maxima = np.concatenate([maxima, part[:, width * share :]], axis=1)
    best = maxima.max(axis=1, initial=-np.inf)
    if not depth:
        return best, best
    place = maxima.shape[1] - depth
    bound = np.partition(maxima, place, axis=1)[:, place]
    # What scores -inf is never among the first places.
    return best, np.maximum(bound, np.finfo(part.dtype).min)


def _first(part: np.ndarray, bound: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and scores of the first places of each row, (g, depth) each."""
    top = np.full((len(part), depth), -1, np.int64)
    values = np.full((len(part), depth), -np.inf, np.float32)
    rows, columns = _reaching(part, bound, depth)
    scores = part[rows, columns]
    # Columns ascend within a row, and the sort is stable: equal scores stand by number.
    order = np.lexsort((-scores, rows))
    rows = rows[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(part)))[rows]
    kept = place < depth
    top[rows[kept], place[kept]] = columns[order][kept]
    values[rows[kept], place[kept]] = scores[order][kept]
    return top, values


def _reaching(part: np.ndarray, bound: np.ndarray, depth: int) -> Places:
    """The places that reach their row's bound, row by row; of equal scores no more than are wanted."""
    reached = np.flatnonzero(part >= bound[:, None])
    if len(reached) <= 4 * depth * len(part):
        rows, columns = np.divmod(reached, part.shape[1]) if len(part) > 1 else (np.zeros_like(reached), reached)
        return rows, columns
    # Many equal scores, as counts of words or of purchases have.
    chosen = [_reaching_one(row, limit, depth) for row, limit in zip(part, bound, strict=True)]
    return np.repeat(np.arange(len(part)), [len(one) for one in chosen]), np.concatenate(chosen)


def _reaching_one(row: np.ndarray, bound: float, depth: int) -> np.ndarray:
    """The columns of one row's first places, ascending: above the last place's score, and the first that equal it."""
    above = np.flatnonzero(row > bound)
    if len(above) >= depth:
        bound = np.partition(row[above], len(above) - depth)[len(above) - depth]
        above = np.flatnonzero(row > bound)
    equal = np.flatnonzero(row == bound)[: depth - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _counted(part: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many scores of its row are above each column's, and how many equal it, (p,) each."""
    own = part[rows, columns]
    greater, tied = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    bounds = np.searchsorted(rows, np.arange(len(part) + 1))
    sizes = np.diff(bounds)
    for row in np.flatnonzero(sizes > MOST_COUNTED):
        pairs = slice(*bounds[row : row + 2])
        greater[pairs], tied[pairs] = _by_sorting(part[row], own[pairs])
    few = np.flatnonzero((sizes > 0) & (sizes <= MOST_COUNTED))
    limit, above = np.zeros((len(part), 1), part.dtype), np.empty(part.shape, bool)
    for number in range(int(sizes[few].max(initial=0))):
        asked = few[sizes[few] > number]
        pair = bounds[asked] + number
        limit[asked, 0] = own[pair]
        greater[pair] = _row_sums(np.greater(part, limit, out=above))[asked]
        tied[pair] = _row_sums(np.greater_equal(part, limit, out=above))[asked] - greater[pair]
    return greater, tied


def _row_sums(mask: np.ndarray) -> np.ndarray:
    """How many of each row are true, (g,)."""
    if len(mask) == 1:
        return np.array([np.count_nonzero(mask)])
    sums: np.ndarray = np.add.reduce(mask.view(np.int8), axis=1, dtype=np.int32)
    return sums


def _by_sorting(row: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ordered = np.sort(row)
    up_to = ordered.searchsorted(own, side="right")
    return len(row) - up_to, up_to - ordered.searchsorted(own, side="left")
