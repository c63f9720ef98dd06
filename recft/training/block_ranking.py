"""A system's ranking of the catalogue for every record of an exam, a block of records at a time.

Of a block only the places of the records' own items and the first places are kept, so that memory does not grow with
records x items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recft.metrics._ranks import Ranked, concat, gains, ranked
from recft.metrics._tables import Ranks

if TYPE_CHECKING:
    from recft.metrics._places import Places
    from recft.training.exam import Exam, System

__all__ = ["BlockRanking", "Candidates", "candidates_of"]


@dataclass(frozen=True)
class Candidates:
    """What a block of records is ranked among: the same for every system.

    Attributes:
        columns: of a sample the item numbers that are candidates, ascending, (B, W), filled up with N; None of all.
        excluded: rows and places of what is no candidate all the same: places are item numbers, or of a sample those
            of its columns.
        items: the place of each of the records' pairs, (P,).
    """

    columns: np.ndarray | None
    excluded: Places | None
    items: np.ndarray


def candidates_of(exam: Exam, part: np.ndarray) -> Candidates:
    """The candidates of some records, whose numbers follow one another."""
    records, n_items = exam.records, len(exam.items)
    items = records.items[records.offsets[part[0]] : records.offsets[part[-1] + 1]].astype(np.int64)
    masked = _histories(exam, part) if exam.settings.mask_history else None
    if not exam.candidates.startswith("sampled"):
        return Candidates(None, masked, items)
    columns = _drawn(exam, part)
    places = _Finder(columns, n_items)
    filled = np.nonzero(columns == n_items)
    if masked is not None:
        rows, found = masked[0], places(*masked)
        filled = np.concatenate([filled[0], rows[found >= 0]]), np.concatenate([filled[1], found[found >= 0]])
    owners = np.repeat(np.arange(len(part)), np.diff(records.offsets)[part])
    return Candidates(columns, filled, places(owners, items))


def _histories(exam: Exam, part: np.ndarray) -> Places:
    """Rows and items of what the records' histories hold, each once."""
    n_items = len(exam.items)
    held = [exam.records.history(int(record)) for record in part]
    owners = np.repeat(np.arange(len(part)), [len(one) for one in held])
    keys = np.unique(owners * n_items + np.concatenate([np.zeros(0, np.int64), *held]).astype(np.int64))
    return np.divmod(keys, max(n_items, 1))


def _drawn(exam: Exam, part: np.ndarray) -> np.ndarray:
    """The sampled candidates of each record and its own items, ascending, (B, W), filled up with N."""
    records, n_items = exam.records, len(exam.items)
    wanted = min(int(exam.candidates.split()[1]), n_items)
    chosen = []
    for record in part:
        # By the record alone, so that every system meets the same candidates.
        drawn = np.random.default_rng([int(record), 3]).permutation(n_items)[:wanted]
        chosen.append(np.union1d(drawn, records.items[records.offsets[record] : records.offsets[record + 1]]))
    columns = np.full((len(part), max(map(len, chosen), default=0)), n_items, np.int64)
    for row, one in zip(columns, chosen, strict=True):
        row[: len(one)] = one
    return columns


class _Finder:
    """Finds items among the sampled columns of their rows: their places, -1 where they are none."""

    def __init__(self, columns: np.ndarray, n_items: int) -> None:
        self._width, self._step = columns.shape[1], n_items + 1
        self._keys = (columns + self._step * np.arange(len(columns))[:, None]).ravel()

    def __call__(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        keys = rows * self._step + items
        at = np.minimum(np.searchsorted(self._keys, keys), max(len(self._keys) - 1, 0))
        return np.where(self._keys[at] == keys, at - rows * self._width, -1) if len(keys) else at


class BlockRanking:
    """The ranking of one system, block by block.

    Attributes:
        top: item numbers of each record's first places, (R, depth), int32; -1 where there are no more candidates, -2
            for an output that is no item.
        top_scores: their scores, -inf where there are no more.
    """

    def __init__(self, exam: Exam, system: System, depth: int, of_judged: bool) -> None:
        self._exam, self._system, self._of_judged = exam, system, of_judged
        depth = min(depth, len(exam.items))
        self.top = np.full((len(exam.records), depth), -1, np.int32)
        self.top_scores = np.full((len(exam.records), depth), -np.inf, np.float32)
        self._worth = gains(exam.records.grades, exam.settings.gain)
        self._parts: list[Ranked] = []

    @property
    def ranks(self) -> Ranks:
        """Where the relevant items stand, of all records added."""
        return concat([part.ranks for part in self._parts])

    @property
    def judged(self) -> Ranks:
        """Where all judged items stand."""
        return concat([part.judged for part in self._parts])

    def add(self, part: np.ndarray, scores: np.ndarray, candidates: Candidates, threads: int) -> None:
        """Ranks the next records, whose numbers follow one another, by the score of every item, (B, N).

        Raises:
            ModelError: a score is not a number.
        """
        scores = np.asarray(scores, np.float32)
        columns = candidates.columns
        if columns is not None:
            scores = np.take_along_axis(scores, np.minimum(columns, scores.shape[1] - 1), axis=1)
        n_items = scores.shape[1]
        scores, excluded = self._beside_invalid(scores, candidates.excluded, part)
        offsets = self._exam.records.offsets[part[0] : part[-1] + 2]
        worth = self._worth[offsets[0] : offsets[-1]]
        depth = self.top.shape[1]
        found = ranked(scores, offsets, candidates.items, worth, excluded, depth, self._of_judged, threads)
        top = found.top
        if columns is not None and columns.size:
            items = np.take_along_axis(columns, np.clip(top, 0, columns.shape[1] - 1), axis=1)
            top = np.where((top >= 0) & (top < n_items), items, top)
        self.top[part, : top.shape[1]] = np.where(found.top < n_items, top, -2)
        self.top_scores[part, : top.shape[1]] = found.top_scores
        self._parts.append(found)

    def _beside_invalid(
        self, scores: np.ndarray, excluded: Places | None, part: np.ndarray
    ) -> tuple[np.ndarray, Places | None]:
        """The scores with a column more for every output that was no item: who is below it is a place lower."""
        if self._system.invalid is None:
            return scores, excluded
        invalid = np.asarray(self._system.invalid[part], np.float32)  # (B, O)
        rows, columns = np.nonzero(np.isneginf(invalid))
        columns = columns + scores.shape[1]
        if excluded is not None:
            rows, columns = np.concatenate([excluded[0], rows]), np.concatenate([excluded[1], columns])
        return np.concatenate([scores, invalid], axis=1), (rows, columns)
