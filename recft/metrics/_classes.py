"""Answers that are classes: the confusion matrix, and what is counted from it.

The answer is the class of the highest probability, the one of the lowest number where several are highest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recft.metrics._tables import Labels

__all__ = ["confusion", "f1_by_class", "report"]


def confusion(labels: Labels, weights: np.ndarray | None = None) -> np.ndarray:
    """How often class i (row) was answered as class j (column), (C, C); int64 where pairs have no weights.

    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> confusion(Labels(scores, np.array([0, 1, 1]), np.array([0, 0, 0]))).tolist()
    [[1, 0], [1, 1]]
    """
    n_classes = labels.scores.shape[1]
    counts = np.bincount(labels.once(_cells), weights=weights, minlength=n_classes * n_classes)
    return counts.reshape(n_classes, n_classes)


def report(labels: Labels, names: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Precision, recall, F1 and the number of true pairs of each class; None where a quotient has no divisor.

    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> report(Labels(scores, np.array([0, 1, 1]), np.array([0, 0, 0])), ["bad", "good"])["good"]
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'n': 2}
    """
    matrix = confusion(labels)
    right, true, answered = np.diag(matrix).tolist(), matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    return {
        name: {
            "precision": right[i] / answered[i] if answered[i] else None,
            "recall": right[i] / true[i] if true[i] else None,
            "f1": 2 * right[i] / (true[i] + answered[i]) if true[i] + answered[i] else None,
            "n": true[i],
        }
        for i, name in enumerate(names)
    }


def f1_by_class(labels: Labels, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The F1 of each class, NaN where it neither is true nor was answered, and the weight of its true pairs, (C,)."""
    matrix = confusion(labels, weights)
    true = matrix.sum(axis=1)
    both = true + matrix.sum(axis=0)  # 2 TP + FP + FN
    f1 = np.full(len(both), np.nan)
    np.divide(2 * np.diag(matrix), both, out=f1, where=both > 0)
    return f1, true


def _cells(labels: Labels) -> np.ndarray:
    """The cell of the matrix that each pair falls in, (P,)."""
    cells: np.ndarray = labels.labels.astype(np.int64) * labels.scores.shape[1] + labels.scores.argmax(axis=1)
    return cells
