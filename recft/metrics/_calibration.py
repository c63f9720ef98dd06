"""Whether probabilities mean what they say: bins of equal width, for the figure and for the reliability plot.

Of classes the probability is the answer's (the highest), and what is counted is whether the answer is right; of yes
or no it is that of yes, and what is counted is yes. A bin holds probabilities above its lower edge up to its upper
one; the first holds 0 too.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from recft.errors import ModelError, problem
from recft.metrics._tables import Labels

__all__ = ["N_BINS", "Bin", "bins", "gaps", "refuse_improbable"]

N_BINS = 15

Bin = TypedDict("Bin", {"from": float, "to": float, "n": int, "confidence": float | None, "share": float | None})
"""One bin: its edges, how many pairs it holds, their mean probability, and the share that came true."""


def bins(labels: Labels, n: int = N_BINS) -> list[Bin]:
    """The reliability plot's bins from 0 to 1; an empty one has neither confidence nor share.

    Two answers of 0.1 and 0.3, one of them a yes, and one of 0.9 that is a yes:

    >>> labels = Labels(np.array([0.1, 0.3, 0.9]), np.array([0, 1, 1]), np.array([0, 0, 0]))
    >>> [(part["n"], part["confidence"], part["share"]) for part in bins(labels, 2)]
    [(2, 0.2, 0.5), (1, 0.9, 1.0)]

    Raises:
        ModelError: a score is no probability.
    """
    probability, came_true = labels.once(_answers)
    place = _places(probability, n)
    sizes = np.bincount(place, minlength=n)
    confidence = np.bincount(place, weights=probability, minlength=n)
    right = np.bincount(place, weights=came_true, minlength=n)
    edges = np.linspace(0, 1, n + 1).tolist()
    return [
        {
            "from": edges[i],
            "to": edges[i + 1],
            "n": size,
            "confidence": float(confidence[i] / size) if size else None,
            "share": float(right[i] / size) if size else None,
        }
        for i, size in enumerate(sizes.tolist())
    ]


def gaps(labels: Labels, weights: np.ndarray) -> np.ndarray:
    """Of each of the usual bins what came true less what was promised, as weighted sums, (N_BINS,)."""
    missed = weights * labels.once(_missed)
    return np.bincount(labels.once(_usual_places), weights=missed, minlength=N_BINS)


def refuse_improbable(scores: np.ndarray, what: str) -> None:
    """Nothing, where every score is a probability.

    Raises:
        ModelError: one is not.
    """
    if not ((scores >= 0) & (scores <= 1)).all():
        found = f"from {scores.min():g} to {scores.max():g}"
        raise ModelError(problem("scores", found, f"{what} reads probabilities from 0 to 1", "take auc"))


def _answers(labels: Labels) -> np.ndarray:
    """The probability of each pair's answer, and whether it came true, (2, P)."""
    refuse_improbable(labels.scores, "calibration")
    if labels.scores.ndim == 1:
        return np.stack([labels.scores, labels.labels == 1])
    return np.stack([labels.scores.max(axis=1, initial=0.0), labels.scores.argmax(axis=1) == labels.labels])


def _places(probability: np.ndarray, n: int) -> np.ndarray:
    """The bin of each probability."""
    return np.searchsorted(np.linspace(0, 1, n + 1)[1:-1], probability, side="left")


def _usual_places(labels: Labels) -> np.ndarray:
    return _places(labels.once(_answers)[0], N_BINS)


def _missed(labels: Labels) -> np.ndarray:
    probability, came_true = labels.once(_answers)
    missed: np.ndarray = came_true - probability
    return missed
