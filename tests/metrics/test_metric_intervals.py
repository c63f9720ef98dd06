"""Intervals: clusters are resampled whole, differences as differences."""

from __future__ import annotations

import time

import numpy as np
import pytest

from recft.metrics import _intervals, auc, gauc
from recft.metrics._base import Labels, PointwiseScore
from recft.metrics._intervals import interval, paired, pointwise_interval, pointwise_paired


def slow_means(values: np.ndarray, codes: np.ndarray, n: int, seed: int) -> list[float]:
    """The resampled means, cluster by cluster, from the same draws."""
    rng = np.random.default_rng(seed)
    n_clusters = codes.max() + 1
    return [
        float(np.concatenate([values[codes == cluster] for cluster in drawn]).mean())
        for drawn in rng.integers(n_clusters, size=(n, n_clusters))
    ]


def test_equals_resampling_cluster_by_cluster() -> None:
    rng = np.random.default_rng(0)
    values, codes = rng.random(30), np.concatenate([np.arange(8), rng.integers(0, 8, 22)])
    expected = np.quantile(slow_means(values, codes, 200, 3), [0.025, 0.975])
    names = np.array([f"user {code}" for code in codes])
    assert interval(values, names, 200, 3) == pytest.approx(tuple(expected), rel=1e-12)
    padded = np.append(values, np.nan)
    assert interval(padded, [*names, "user without a score"], 200, 3) == pytest.approx(tuple(expected), rel=1e-12)


def test_blocks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(9)
    whole = interval(values, list(range(9)), 101, 1)
    monkeypatch.setattr(_intervals, "BLOCK_DRAWS", 30)
    assert interval(values, list(range(9)), 101, 1) == whole
    assert interval(values, list(range(9)), 101, 2) != whole


def test_repeated_records_of_one_user_add_no_certainty() -> None:
    values = np.random.default_rng(0).random(50)
    once = interval(values, list(range(50)))
    repeated = interval(np.repeat(values, 20), np.repeat(np.arange(50), 20))
    as_if_new = interval(np.repeat(values, 20), np.arange(1000))
    assert once is not None
    assert repeated == pytest.approx(once)
    assert as_if_new is not None
    assert as_if_new[1] - as_if_new[0] < (once[1] - once[0]) / 3


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = interval(rng.normal(size=80), np.arange(80), 300, seed)
        assert found is not None
        hits += found[0] <= 0 <= found[1]
    assert 0.90 <= hits / 200 <= 0.98


def test_a_pair_is_narrower_than_its_parts() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(100)
    ours = theirs + 0.01 + rng.normal(0, 0.005, 100)
    found = paired(ours, theirs, np.arange(100))
    assert found.interval is not None
    low, high = found.interval
    assert 0 < low < found.mean < high
    alone = interval(ours, np.arange(100))
    assert alone is not None
    assert high - low < (alone[1] - alone[0]) / 10


def test_pairs_need_both_scores() -> None:
    found = paired(np.array([1.0, np.nan, 0.5]), np.array([0.5, 0.5, 0.5]), ["a", "b", "c"])
    assert (found.mean, found.n) == (0.25, 2)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [0.5, np.nan]])
def test_fewer_than_two_clusters_have_no_interval(values: list[float]) -> None:
    assert interval(np.array(values, dtype=float), list(range(len(values)))) is None


def labels(n: int, seed: int = 0) -> Labels:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    return Labels(np.round(rng.random(n) * 0.6 + truth * 0.3, 2), truth, rng.integers(0, max(2, n // 5), n))


@pytest.mark.parametrize("score", [auc.pointwise, gauc.pointwise])
def test_pointwise_equals_copying_clusters(score: PointwiseScore) -> None:
    ours = labels(60)
    _, codes = np.unique(ours.groups, return_inverse=True)
    n_clusters = codes.max() + 1
    expected = []
    for drawn in np.random.default_rng(5).integers(n_clusters, size=(100, n_clusters)):
        rows = np.concatenate([np.flatnonzero(codes == cluster) for cluster in drawn])
        copy = Labels(ours.scores[rows], ours.labels[rows], ours.groups[rows])
        expected.append(score(copy, np.ones(len(rows))))
    low, high = np.quantile(expected, [0.025, 0.975])
    assert pointwise_interval(score, ours, 100, 5) == pytest.approx((low, high), rel=1e-9)


def test_pointwise_differences() -> None:
    ours, same = labels(200), labels(200)
    found = pointwise_paired(auc.pointwise, ours, same, 200)
    assert (found.mean, found.interval, found.n) == (0, (0, 0), 200)
    worse = Labels(np.random.default_rng(9).random(200), ours.labels, ours.groups)
    found = pointwise_paired(auc.pointwise, ours, worse, 200)
    assert found.interval is not None
    assert 0 < found.interval[0] < found.mean < found.interval[1]


def test_pointwise_without_a_score() -> None:
    lone = Labels(np.array([0.1, 0.2]), np.array([1, 1]), np.array([0, 1]))
    assert pointwise_interval(auc.pointwise, lone, 100) is None
    one_user = Labels(np.array([0.1, 0.2]), np.array([1, 0]), np.array([0, 0]))
    assert pointwise_interval(auc.pointwise, one_user, 100) is None


def test_a_bootstrap_sorts_once() -> None:
    ours = labels(20_000)
    started = time.perf_counter()
    pointwise_interval(auc.pointwise, ours, 200)
    # About 0.15 s on an idle core.
    assert time.perf_counter() - started < 5
