"""95% intervals and tests by clusters: a user's (or a query's) records come and go together.

The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993) over clusters drawn with
replacement. A difference of two systems is resampled as a difference, which is far narrower than two intervals
laid beside each other. All draws of one seed and number of clusters are the same, so figures can be repeated.

A test asks how often a difference as large comes about where it means nothing which system is which: the two systems
are exchanged cluster by cluster, each by the toss of a coin (Fisher's randomisation; of retrieval: Smucker, Allan and
Carterette, A comparison of statistical significance tests for information retrieval evaluation, 2007). Its p is
(1 + as large ones) / (1 + draws), which is never 0 and never too small (Phipson and Smyth, 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recft.metrics._base import Labels, PointwiseScore, mean

__all__ = [
    "Difference",
    "Interval",
    "holm",
    "interval",
    "p_value",
    "p_worse",
    "paired",
    "pointwise_interval",
    "pointwise_p_value",
    "pointwise_p_worse",
    "pointwise_paired",
]

Interval = tuple[float, float]

_PARTS = ("scores", "labels", "groups")

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


def p_value(
    ours: np.ndarray, theirs: np.ndarray, clusters: Sequence[object] | np.ndarray, n: int = 1000, seed: int = 0
) -> float | None:
    """The two-sided p of a difference of mean scores on the same records; None with fewer than two clusters.

    Args:
        ours: of each record, (R,); NaN where it has no score.
        theirs: the same.
        clusters: whose record it is, (R,).
        n: exchanges that are drawn.
        seed: of the draws.

    Every exchange of two equal systems is as large:

    >>> p_value(np.array([0.5, 1.0]), np.array([0.5, 1.0]), ["a", "b"])
    1.0
    """
    found = _exchanged(ours, theirs, clusters, n, seed)
    return None if found is None else _share(np.abs(found[1]), abs(found[0]))


def p_worse(
    ours: np.ndarray,
    theirs: np.ndarray,
    clusters: Sequence[object] | np.ndarray,
    n: int = 1000,
    seed: int = 0,
    higher_is_better: bool = True,
) -> float | None:
    """The one-sided p of our being worse: small where there is evidence of it; None with fewer than two clusters."""
    found = _exchanged(ours, theirs, clusters, n, seed)
    side = -1 if higher_is_better else 1
    return None if found is None else _share(side * found[1], side * found[0])


def pointwise_p_value(
    score: PointwiseScore, ours: Labels, theirs: Labels, n: int = 1000, seed: int = 0
) -> float | None:
    """The two-sided p of a difference of pointwise scores on the same pairs, in the same order.

    None with fewer than two groups, or where a system has no score.
    """
    found = _pointwise_exchanged(score, ours, theirs, n, seed)
    return None if found is None else _share(np.abs(found[1]), abs(found[0]))


def pointwise_p_worse(
    score: PointwiseScore,
    ours: Labels,
    theirs: Labels,
    n: int = 1000,
    seed: int = 0,
    higher_is_better: bool = True,
    margin: float = 0.0,
) -> float | None:
    """The one-sided p of our pointwise score's being worse by more than `margin`: small where there is evidence."""
    found = _pointwise_exchanged(score, ours, theirs, n, seed)
    side = -1 if higher_is_better else 1
    return None if found is None else _share(side * found[1], side * found[0] - margin)


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """The ps corrected for how many there are, in the same order (Holm, 1979).

    The smallest of three is multiplied by 3, the next by 2, and none falls below one before it:

    >>> holm({"ndcg@10": 0.01, "mrr": 0.04, "recall@20": 0.03})
    {'ndcg@10': 0.03, 'mrr': 0.06, 'recall@20': 0.06}
    """
    corrected: dict[str, float] = {}
    so_far = 0.0
    for place, name in enumerate(sorted(ps, key=lambda name: ps[name])):
        so_far = max(so_far, min(1.0, (len(ps) - place) * ps[name]))
        corrected[name] = so_far
    return {name: corrected[name] for name in ps}


def _exchanged(
    ours: np.ndarray, theirs: np.ndarray, clusters: Sequence[object] | np.ndarray, n: int, seed: int
) -> tuple[float, np.ndarray] | None:
    """The mean difference, and what it is when the systems are exchanged in some clusters, (n,)."""
    above = ours - theirs  # (R,), NaN where either is
    defined = ~np.isnan(above)
    _, codes = np.unique(np.asarray(clusters)[defined], return_inverse=True)
    n_clusters = int(codes.max(initial=-1)) + 1
    if n_clusters < 2:
        return None
    # The mean divides by the records whatever is exchanged, so that a cluster's sum is all that matters of it; a sum
    # of 0 stays what it is.
    totals = np.bincount(codes, weights=above[defined], minlength=n_clusters) / len(codes)
    totals = totals[totals != 0]
    if not len(totals):
        return 0.0, np.zeros(n)
    return float(totals.sum()), np.concatenate(
        [totals.sum() - 2 * (coins @ totals) for coins in _coins(len(totals), n, seed)]
    )


def _pointwise_exchanged(
    score: PointwiseScore, ours: Labels, theirs: Labels, n: int, seed: int
) -> tuple[float, np.ndarray] | None:
    """The difference of the scores, and what it is when the systems are exchanged in some groups, (n,)."""
    _, codes = np.unique(ours.groups, return_inverse=True)
    n_clusters = int(codes.max(initial=-1)) + 1
    if n_clusters < 2:
        return None
    # Both systems' pairs in one table, of which a system takes its half by weights of 1 and 0: it is sorted once.
    both = Labels(*(np.concatenate([getattr(ours, part), getattr(theirs, part)]) for part in _PARTS))

    def above(is_exchanged: np.ndarray) -> float:
        second = is_exchanged[codes]
        first = 1 - second
        return score(both, np.concatenate([first, second])) - score(both, np.concatenate([second, first]))

    observed = above(np.zeros(n_clusters))
    found = np.array([above(coins) for block in _coins(n_clusters, n, seed) for coins in block])
    found = found[~np.isnan(found)]
    return None if np.isnan(observed) else (observed, found)


def _coins(n_clusters: int, n: int, seed: int) -> Iterator[np.ndarray]:
    """1 for each cluster that is exchanged, else 0, (b, U) at a time, n rows in all."""
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK_DRAWS // n_clusters)
    for start in range(0, n, size):
        eights = rng.integers(256, size=(min(size, n - start), -(-n_clusters // 8)), dtype=np.uint8)
        yield np.unpackbits(eights, axis=1, count=n_clusters).astype(np.float64)


def _share(drawn: np.ndarray, observed: float) -> float:
    """How often chance gives a value at least as large, the observed one counted as a draw."""
    # The same sum in another order differs in its last bits.
    slack = 1e-9 * max(abs(observed), float(np.abs(drawn).max(initial=0)))
    return (1 + int((drawn >= observed - slack).sum())) / (1 + len(drawn))


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
