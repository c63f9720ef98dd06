"""Intervals: clusters are resampled whole, differences as differences."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from recft.metrics import _intervals, auc, gauc, rmse
from recft.metrics._base import Labels, PointwiseScore
from recft.metrics._intervals import (
    holm,
    interval,
    p_value,
    p_worse,
    paired,
    pointwise_interval,
    pointwise_p_value,
    pointwise_p_worse,
    pointwise_paired,
)


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


def every_exchange(ours: np.ndarray, theirs: np.ndarray, codes: np.ndarray) -> tuple[float, list[float]]:
    """The mean difference, and what it is under each of the 2^U ways to exchange the systems in clusters."""
    exchanges = itertools.product([1, -1], repeat=int(codes.max()) + 1)
    found = [float(np.mean((ours - theirs) * np.array(sides)[codes])) for sides in exchanges]
    return found[0], found


def test_p_is_the_share_of_exchanges() -> None:
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(9), rng.integers(0, 9, 21)])
    for shift in (0.0, 0.1, 0.3):
        theirs = rng.random(30)
        ours = theirs + rng.normal(shift, 0.3, 30)
        observed, found = every_exchange(ours, theirs, codes)
        both = np.mean([abs(value) >= abs(observed) - 1e-12 for value in found])
        above = np.mean([value >= observed - 1e-12 for value in found])
        below = np.mean([value <= observed + 1e-12 for value in found])
        names = np.array([f"用户 {code}" for code in codes])
        assert p_value(ours, theirs, names, 20_000) == pytest.approx(both, abs=0.012)
        assert p_worse(ours, theirs, names, 20_000) == pytest.approx(below, abs=0.012)
        assert p_worse(ours, theirs, names, 20_000, higher_is_better=False) == pytest.approx(above, abs=0.012)
        # A record without a score in either system is no evidence.
        padded = p_value(np.append(ours, [np.nan, 9.0]), np.append(theirs, [0.0, np.nan]), [*names, "x", "y"], 20_000)
        assert padded == p_value(ours, theirs, names, 20_000)


def test_p_under_no_difference_is_rarely_small() -> None:
    rng = np.random.default_rng(0)
    small = 0
    for seed in range(400):
        found = p_value(rng.random(40), rng.random(40), np.arange(40), 200, seed)
        assert found is not None
        small += found <= 0.05
    assert 0.02 <= small / 400 <= 0.09


def test_p_of_a_clear_difference_is_the_smallest_there_is() -> None:
    theirs = np.random.default_rng(0).random(60)
    assert p_value(theirs + 0.1, theirs, np.arange(60), 999) == pytest.approx(1 / 1000)
    assert p_worse(theirs - 0.1, theirs, np.arange(60), 999) == pytest.approx(1 / 1000)
    assert p_worse(theirs + 0.1, theirs, np.arange(60), 999) == 1
    assert p_worse(theirs + 0.1, theirs, np.arange(60), 999, higher_is_better=False) == pytest.approx(1 / 1000)
    # Of one user's hundred records it is one toss of the coin.
    assert p_value(theirs + 0.1, theirs, np.arange(60) % 2, 999) == pytest.approx(0.5, abs=0.1)


def test_p_in_blocks_is_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(9), rng.random(9)
    monkeypatch.setattr(_intervals, "BLOCK_DRAWS", 30)
    found = p_value(ours, theirs, np.arange(9), 4001)
    assert found == pytest.approx(
        np.mean(np.abs(every_exchange(ours, theirs, np.arange(9))[1]) >= abs((ours - theirs).mean()) - 1e-12), abs=0.03
    )
    assert found is not None and (found * 4002) == pytest.approx(round(found * 4002))


def test_equal_systems_and_too_few_clusters() -> None:
    values = np.array([0.1, 0.5, 1.0])
    assert p_value(values, values, [1, 2, 3]) == p_worse(values, values, [1, 2, 3]) == 1
    assert p_value(values, values + 1, ["a", "a", "a"]) is None
    assert p_value(np.array([0.1, np.nan, 1]), np.array([np.nan, 1, 1]), ["a", "b", "c"]) is None
    assert p_value(np.zeros(0), np.zeros(0), []) is None
    assert p_worse(np.zeros(0), np.zeros(0), []) is None


@pytest.mark.parametrize("score", [auc.pointwise, gauc.pointwise, rmse.pointwise])
def test_pointwise_p_equals_exchanging_one_by_one(score: PointwiseScore) -> None:
    ours = labels(60)
    theirs = Labels(np.round(np.random.default_rng(4).random(60), 2), ours.labels, ours.groups)
    _, codes = np.unique(ours.groups, return_inverse=True)
    whole = np.ones(60)
    observed = score(ours, whole) - score(theirs, whole)
    drawn = []
    for coins in _intervals._coins(int(codes.max()) + 1, 100, 5):
        for row in coins:
            is_exchanged = row[codes] > 0
            first = Labels(np.where(is_exchanged, theirs.scores, ours.scores), ours.labels, ours.groups)
            second = Labels(np.where(is_exchanged, ours.scores, theirs.scores), ours.labels, ours.groups)
            drawn.append(score(first, whole) - score(second, whole))
    assert len(drawn) == 100 and len(set(drawn)) > 50
    both = (1 + sum(abs(value) >= abs(observed) - 1e-12 for value in drawn)) / 101
    below = (1 + sum(value <= observed + 1e-12 for value in drawn)) / 101
    above = (1 + sum(value >= observed - 1e-12 for value in drawn)) / 101
    assert pointwise_p_value(score, ours, theirs, 100, 5) == pytest.approx(both)
    assert pointwise_p_worse(score, ours, theirs, 100, 5) == pytest.approx(below)
    assert pointwise_p_worse(score, ours, theirs, 100, 5, higher_is_better=False) == pytest.approx(above)


def test_pointwise_p_of_classes() -> None:
    from recft.metrics import macro_f1

    rng = np.random.default_rng(0)
    truth, groups = rng.integers(0, 3, 90), np.arange(90) // 2
    good = Labels(rng.dirichlet(np.ones(3), 90) + np.eye(3)[truth], truth, groups)
    bad = Labels(rng.dirichlet(np.ones(3), 90), truth, groups)
    assert pointwise_p_value(macro_f1.pointwise, good, bad, 199) == pytest.approx(1 / 200)
    assert pointwise_p_worse(macro_f1.pointwise, bad, good, 199) == pytest.approx(1 / 200)
    assert pointwise_p_value(macro_f1.pointwise, good, good, 199) == 1


def test_pointwise_p_without_a_score() -> None:
    lone = Labels(np.array([0.1, 0.2]), np.array([1, 1]), np.array([0, 1]))
    assert pointwise_p_value(auc.pointwise, lone, lone, 100) is None
    one_user = Labels(np.array([0.1, 0.2]), np.array([1, 0]), np.array([0, 0]))
    assert pointwise_p_value(auc.pointwise, one_user, one_user, 100) is None


def test_holm_rejects_what_its_steps_reject() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ps = {f"m{i}": float(p) for i, p in enumerate(rng.random(int(rng.integers(1, 7))) ** 3)}
        corrected = holm(ps)
        assert list(corrected) == list(ps)
        for level in (0.01, 0.05, 0.2, 0.6):
            rejected = set()
            for step, name in enumerate(sorted(ps, key=lambda name: ps[name])):
                if ps[name] > level / (len(ps) - step):
                    break
                rejected.add(name)
            assert {name for name, p in corrected.items() if p <= level} == rejected
    assert holm({}) == {}
    assert holm({"ndcg@10": 0.7, "mrr": 0.8}) == {"ndcg@10": 1, "mrr": 1}
