"""Scores of a whole catalogue that are dear to compute: kept until every row of a report has read them."""

from __future__ import annotations

import tempfile
import weakref
from typing import IO

import numpy as np

from recft.errors import RecftError, problem
from recft.run import cache_folder

__all__ = ["KeptScores"]

IN_MEMORY_BYTES = 1 << 28


class KeptScores:
    """The score of every item for R records, (R, N) float32, added by blocks and read by rows.

    What is larger than `IN_MEMORY_BYTES` lies in a file of the cache folder that has no name and is gone with this
    object: memory then does not grow with records x items, and the model may change as soon as all is added.
    """

    def __init__(self, n_records: int, n_items: int) -> None:
        self.n_items, self._added = n_items, 0
        self._table: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        if 4 * n_records * n_items <= IN_MEMORY_BYTES:
            self._table = np.empty((n_records, n_items), np.float32)
        else:
            self._file = _nameless()
            weakref.finalize(self, self._file.close)

    def add(self, scores: np.ndarray) -> None:
        """Keeps the scores of the next records, (B, N).

        Raises:
            RecftError: the disk is full.
        """
        if self._table is not None:
            self._table[self._added : self._added + len(scores)] = scores
        elif self._file is not None:
            try:
                self._file.seek(4 * self._added * self.n_items)
                self._file.write(np.ascontiguousarray(scores, np.float32).data)
            except OSError as error:
                raise _no_room(str(error)) from error
        self._added += len(scores)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The scores of those records, (B, N)."""
        if self._table is not None:
            return np.asarray(self._table[rows])
        assert self._file is not None  # noqa: S101  # one of the two is there
        found = np.empty((len(rows), self.n_items), np.float32)
        for place, row in enumerate(rows.tolist()):
            self._file.seek(4 * row * self.n_items)
            self._file.readinto(found[place])  # type: ignore[attr-defined]
        return found


def _nameless() -> IO[bytes]:
    try:
        folder = cache_folder("scores")
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise _no_room(str(error)) from error


def _no_room(reason: str) -> RecftError:
    return RecftError(
        problem(
            str(cache_folder("scores")),
            f"cannot be written ({reason})",
            "scores of all items are kept there while a report is made: records x items x 4 bytes",
            "free the disk, set XDG_CACHE_HOME to a larger one, or set eval.records",
        )
    )
