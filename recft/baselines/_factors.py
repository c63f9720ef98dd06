"""Alternating least squares: one side's factors where the other side's are fixed, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Sparse", "solve", "start"]

_BLOCK_NUMBERS = 1 << 24
"""Numbers of the systems that are solved at once: 64 MiB."""


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix by rows: row r holds `values[starts[r]:starts[r + 1]]` at `columns`."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, n_rows: int) -> Sparse:
        """The matrix of entries in any order; of entries at one place each stands for itself."""
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
        return cls(starts, columns[order], values[order])

    def __len__(self) -> int:
        return len(self.starts) - 1


def start(n_rows: int, n_factors: int, seed: int = 0) -> np.ndarray:
    """Small random factors to begin with, the same each time, (n_rows, F), float32."""
    return np.random.default_rng(seed).normal(0, 0.1, (n_rows, n_factors)).astype(np.float32)


def solve(
    entries: Sparse,
    fixed: np.ndarray,
    regularisation: float,
    weight: float = 1.0,
    everywhere: np.ndarray | None = None,
    by_count: bool = False,
) -> np.ndarray:
    """The factors of each row that fit its values best, (R, F), float32; zeros for a row without entries.

    Minimises over x: weight * sum over entries of (value - x f)^2 + x' everywhere x + regularisation * |x|^2.

    Args:
        entries: the values of each row.
        fixed: the other side's factors, (C, F).
        regularisation: how dear a long vector is.
        weight: of each entry.
        everywhere: (F, F), what holds for every row, such as the zeros of implicit feedback.
        by_count: whether regularisation is taken times the row's number of entries.
    """
    n_factors = fixed.shape[1]
    out = np.zeros((len(entries), n_factors), np.float32)
    eye = np.eye(n_factors, dtype=np.float32)
    sizes = np.diff(entries.starts)
    filled = np.flatnonzero(sizes)
    n_rows = max(1, _BLOCK_NUMBERS // n_factors**2)
    for block in range(0, len(filled), n_rows):
        rows = filled[block : block + n_rows]
        left = np.empty((len(rows), n_factors, n_factors), np.float32)
        right = np.empty((len(rows), n_factors, 1), np.float32)
        for i, row in enumerate(rows.tolist()):
            span = slice(entries.starts[row], entries.starts[row + 1])
            own = fixed[entries.columns[span]]
            left[i] = weight * (own.T @ own)
            right[i, :, 0] = weight * (entries.values[span] @ own)
        scale = sizes[rows] if by_count else np.ones(len(rows))
        left += (regularisation * scale).astype(np.float32)[:, None, None] * eye
        if everywhere is not None:
            left += everywhere
        out[rows] = np.linalg.solve(left, right)[:, :, 0]
    return out
