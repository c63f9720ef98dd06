"""From scores to `Ranks`: of a dense block of scores, or of candidates listed record by record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recft.errors import DataError, problem
from recft.metrics._places import Places, hidden, standing
from recft.metrics._tables import Ranks, refuse_nan

__all__ = ["Ranked", "concat", "gains", "ranked", "ranks_of", "ranks_of_pairs", "restrict"]


@dataclass(frozen=True)
class Ranked:
    """A block of records, ranked.

    Attributes:
        ranks: of the relevant items.
        judged: of all items that have a grade, whatever it is.
        top: the columns of each row's first places, (B, depth), -1 where there are no more.
        top_scores: their scores.
    """

    ranks: Ranks
    judged: Ranks
    top: np.ndarray
    top_scores: np.ndarray


def ranks_of(
    scores: np.ndarray,
    offsets: np.ndarray,
    items: np.ndarray,
    grades: np.ndarray,
    excluded: Places | None = None,
) -> Ranks:
    """The ranks of each row's relevant items among all C columns: `ranked` of a slice of a longer table.

    >>> ranks = ranks_of(np.array([[3.0, 1.0, 2.0, 1.0]]), np.array([0, 2]), np.array([1, 2]), np.array([1, 2]))
    >>> ranks.greater.tolist(), ranks.tied.tolist()
    ([2, 1], [2, 1])

    Raises:
        ModelError: a score is not a number.
        DataError: a row has one item twice among its pairs.
    """
    span = slice(int(offsets[0]), int(offsets[-1]))
    return ranked(scores, offsets, items[span], grades[span], excluded).ranks


def ranked(
    scores: np.ndarray,
    offsets: np.ndarray,
    items: np.ndarray,
    grades: np.ndarray,
    excluded: Places | None = None,
    depth: int = 0,
    of_judged: bool = False,
    threads: int = 1,
) -> Ranked:
    """Where each row's items stand among all C columns, and its first places.

    Args:
        scores: (B, C), float32; -inf is a score like any other and stands last, but is never among the first places.
        offsets: row b owns `offsets[b]:offsets[b + 1]` of the pairs, (B + 1,); a slice of a longer table may
            start above 0.
        items: the column of each pair of these rows, (P,).
        grades: of each of them, (P,); those not above 0 are candidates and no targets.
        excluded: rows and columns that are no candidates, each place once; a pair there is no target either.
        depth: how many first places are wanted.
        of_judged: whether the ranks of every pair are wanted, whatever its grade.
        threads: that share the rows.

    Raises:
        ModelError: a score is not a number.
        DataError: a row has one item twice among its pairs.
    """
    n_rows, n_columns = scores.shape
    rows = np.repeat(np.arange(n_rows), np.diff(offsets))  # (P,)
    items, grades = np.asarray(items, dtype=np.int64), np.asarray(grades, dtype=np.float64)
    places = rows * n_columns + items
    if len(np.unique(places)) < len(items):
        raise DataError(
            problem("records", "one item stands twice in a record", "an item has one grade a record", "prepare again")
        )
    gone = np.zeros(n_rows, np.int64)
    keep = np.full(len(items), True) if of_judged else grades > 0
    if excluded is not None:
        gone = np.bincount(excluded[0], minlength=n_rows)
        keep &= ~np.isin(places, excluded[0] * n_columns + excluded[1])
    rows, items, grades = rows[keep], items[keep], grades[keep]
    with hidden(scores, excluded) as shown:
        own = shown[rows, items]
        found = standing(shown, rows, items, depth, threads)
    # Excluded columns were put at -inf, where they count as tied with candidates that score it.
    tied = found.tied - np.where(np.isneginf(own), gone[rows], 0)
    pairs, n_candidates = np.flatnonzero(keep) + int(offsets[0]), n_columns - gone

    def those(mask: np.ndarray, worth: np.ndarray) -> Ranks:
        of = _offsets(rows[mask], n_rows)
        return Ranks(of, worth[mask], found.greater[mask], tied[mask], n_candidates, pairs[mask])

    judged = those(np.full(len(rows), of_judged), np.ones(len(rows)))
    return Ranked(those(grades > 0, grades), judged, found.top, found.top_scores)


def ranks_of_pairs(
    scores: Sequence[float] | np.ndarray,
    grades: Sequence[float] | np.ndarray,
    offsets: Sequence[int] | np.ndarray | None = None,
) -> Ranks:
    """The ranks where each record has candidates of its own, such as its judged items.

    Args:
        scores: of each candidate pair, (P,).
        grades: of each candidate pair, (P,); above 0 is relevant.
        offsets: record r owns the pairs `offsets[r]:offsets[r + 1]`; one record where absent.

    >>> ranks = ranks_of_pairs([0.9, 0.5, 0.5], [0, 1, 0])
    >>> ranks.greater.tolist(), ranks.tied.tolist(), ranks.n_candidates.tolist()
    ([1], [2], [3])

    Raises:
        ModelError: a score is not a number.
    """
    scores, grades = np.asarray(scores), np.asarray(grades, dtype=np.float64)
    offsets = np.array([0, len(scores)]) if offsets is None else np.asarray(offsets)
    refuse_nan(scores)
    n_candidates = np.diff(offsets).astype(np.int64)
    records = np.repeat(np.arange(len(n_candidates)), n_candidates)  # (P,)
    order = np.lexsort((-scores, records))
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = np.diff(records[order]) != 0
    is_first[1:] |= scores[order][1:] != scores[order][:-1]
    first = np.flatnonzero(is_first)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(is_first) - 1
    keep = np.flatnonzero(grades > 0)
    return Ranks(
        offsets=_offsets(records[keep], len(n_candidates)),
        grades=grades[keep],
        greater=first[group[keep]] - offsets[records[keep]],
        tied=np.diff(first, append=len(order))[group[keep]],
        n_candidates=n_candidates,
        pairs=keep,
    )


def concat(parts: Sequence[Ranks]) -> Ranks:
    """The ranks of several blocks of records as one; each block keeps the numbers of its own pairs."""
    counts = np.concatenate([np.zeros(1, dtype=np.int64), *(part.n_relevant for part in parts)])
    return Ranks(
        offsets=np.cumsum(counts),
        grades=np.concatenate([np.zeros(0), *(part.grades for part in parts)]),
        greater=np.concatenate([np.zeros(0, dtype=np.int64), *(part.greater for part in parts)]),
        tied=np.concatenate([np.zeros(0, dtype=np.int64), *(part.tied for part in parts)]),
        n_candidates=np.concatenate([np.zeros(0, dtype=np.int64), *(part.n_candidates for part in parts)]),
        pairs=np.concatenate([np.zeros(0, dtype=np.int64), *(part.pairs for part in parts)]),
    )


def gains(grades: np.ndarray, kind: Literal["linear", "exponential"]) -> np.ndarray:
    """What each grade is worth, (P,): itself, or 2^grade - 1 (Burges et al., Learning to rank using gradient descent).

    Made before ranks are: NDCG takes a grade for its gain. A grade above 0 is worth more than 0 either way.

    >>> gains(np.array([0, 1, 2, 3]), "exponential").tolist()
    [0.0, 1.0, 3.0, 7.0]
    """
    grades = np.asarray(grades, dtype=np.float64)
    return np.exp2(grades) - 1 if kind == "exponential" else grades


def restrict(ranks: Ranks, keep: np.ndarray) -> Ranks:
    """The ranks of some of the relevant items; the record's other relevant items are no candidates any more.

    Args:
        ranks: of all relevant items.
        keep: of every pair of the records, (P,), whether it stays; `ranks.pairs` says which of them are relevant.

    The best item is not of the slice: it goes, and the other one moves up to the first place of two.

    >>> part = restrict(ranks_of_pairs([0.9, 0.5, 0.1], [1, 1, 0]), np.array([False, True, True]))
    >>> part.greater.tolist(), part.n_candidates.tolist()
    ([0], [2])
    """
    stays = np.asarray(keep, dtype=bool)[ranks.pairs]  # (relevant items,)
    ties = ranks.ties
    gone = np.bincount(ties.of[~stays], minlength=len(ties.records))  # (G,)
    by_record = np.bincount(ties.records, weights=gone, minlength=len(ranks)).astype(np.int64)
    # Groups lie by record and from the best score down: what is gone above a group is the sum so far in its record.
    above = np.cumsum(gone) - gone - (np.cumsum(by_record) - by_record)[ties.records]
    of = ties.of[stays]
    return Ranks(
        offsets=_offsets(ranks.records[stays], len(ranks)),
        grades=ranks.grades[stays],
        greater=ranks.greater[stays] - above[of],
        tied=ranks.tied[stays] - gone[of],
        n_candidates=ranks.n_candidates - by_record,
        pairs=ranks.pairs[stays],
    )


def _offsets(rows: np.ndarray, n_rows: int) -> np.ndarray:
    """Where each row's pairs start, (n_rows + 1,), of sorted row numbers."""
    return np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.int64)
