"""95% intervals by resampling clusters: a user's (or a query's) records come and go together.

The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993) over clusters drawn with
replacement. A difference of two systems is resampled as a difference, which is far narrower than two intervals
laid beside each other. All draws of one seed and number of clusters are the same, so figures can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recft.metrics._base import Labels, PointwiseScore, mean

__all__ = ["Difference", "Interval", "interval", "paired", "pointwise_interval", "pointwise_paired"]

Interval = tuple[float, float]

BLOCK_DRAWS = 1 << 22
"""Drawn cluster numbers that are held at once: 32 MiB."""


@dataclass(frozen=True)
class Difference:
    """How far one system is above another.

    Attributes:
        mean: ours minus theirs, over what both have a score for.
        interval: None where there are fewer than two clusters.
        n: records compared; of pointwise scores, pairs.
    """

    mean: float
    interval: Interval | None
    n: int


def interval(
    values: np.ndarray, clusters: Sequence[object] | np.ndarray, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """The interval of the mean of a score over records; None where fewer than two clusters have a score.

    Args:
        values: of each record, (R,); NaN where it has no score.
        clusters: whose record it is, (R,): user ids, normalised queries.
        n: resamples.
        seed: of the draws.
        level: how much of the resampled means lies within.

    >>> interval(np.array([0.5, 0.5, 0.5]), ["a", "b", "c"])
    (0.5, 0.5)
    """
    defined = ~np.isnan(values)
    _, codes = np.unique(np.asarray(clusters)[defined], return_inverse=True)
    n_clusters = int(codes.max(initial=-1)) + 1
    if n_clusters < 2:
        return None
    totals = np.bincount(codes, weights=values[defined], minlength=n_clusters)  # (U,)
    sizes = np.bincount(codes, minlength=n_clusters)  # (U,)
    means = np.concatenate(
        [totals[drawn].sum(axis=1) / sizes[drawn].sum(axis=1) for drawn in _draws(n_clusters, n, seed)]
    )
    return _percentiles(means, level)


def paired(
    ours: np.ndarray, theirs: np.ndarray, clusters: Sequence[object] | np.ndarray, n: int = 1000, seed: int = 0
) -> Difference:
    """How far our scores are above theirs on the same records.

    >>> paired(np.array([1.0, 0.5]), np.array([0.5, 0.0]), ["a", "b"])
    Difference(mean=0.5, interval=(0.5, 0.5), n=2)
    """
    above = ours - theirs  # (R,), NaN where either is
    middle, n_compared = mean(above)
    return Difference(middle, interval(above, clusters, n, seed), n_compared)


def pointwise_interval(score: PointwiseScore, labels: Labels, n: int = 1000, seed: int = 0) -> Interval | None:
    """The interval of a pointwise score; None with fewer than two groups, or where no resample has a score."""
    return _resampled(lambda weights: score(labels, weights), labels.groups, n, seed)


def pointwise_paired(score: PointwiseScore, ours: Labels, theirs: Labels, n: int = 1000, seed: int = 0) -> Difference:
    """How far our pointwise score is above theirs on the same pairs, in the same order."""

    def above(weights: np.ndarray) -> float:
        return score(ours, weights) - score(theirs, weights)

    everything = np.ones(len(ours.labels))
    return Difference(above(everything), _resampled(above, ours.groups, n, seed), len(ours.labels))


def _resampled(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, n: int, seed: int, level: float = 0.95
) -> Interval | None:
    """The interval of a statistic of pair weights: a cluster drawn twice is a cluster of weight two."""
    _, codes = np.unique(groups, return_inverse=True)
    n_clusters = int(codes.max(initial=-1)) + 1
    if n_clusters < 2:
        return None
    found = np.array(
        [
            statistic(np.bincount(row, minlength=n_clusters).astype(np.float64)[codes])
            for drawn in _draws(n_clusters, n, seed)
            for row in drawn
        ]
    )
    # A resample may lack one of the two labels; it says nothing about the score.
    found = found[~np.isnan(found)]
    return _percentiles(found, level) if len(found) else None


def _draws(n_clusters: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """Numbers of the drawn clusters, (b, U) at a time, n rows in all."""
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK_DRAWS // n_clusters)
    for start in range(0, n, size):
        yield rng.integers(n_clusters, size=(min(size, n - start), n_clusters))


def _percentiles(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
