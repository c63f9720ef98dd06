"""Coordinate ascent: it finds the system that is right, mixes two that complete each other, and repeats itself."""

from __future__ import annotations

import numpy as np
import pytest

from recft.metrics._ranks import ranks_of_pairs
from recft.metrics.ndcg import ranking
from recft.training.ascent import ascend


def lists(seed: int, n: int = 40, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and grades of n judged lists."""
    draw = np.random.default_rng(seed)
    return np.arange(n + 1) * size, draw.choice([0, 0, 0, 1, 2, 3], n * size).astype(float)


def values_of(features: np.ndarray, offsets: np.ndarray, grades: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda weights: ranking(ranks_of_pairs(features @ weights, grades, offsets), 10)


def test_a_right_system_has_nearly_all_of_the_weight() -> None:
    offsets, grades = lists(0)
    draw = np.random.default_rng(1)
    features = np.stack([draw.normal(size=len(grades)), grades + 0.1 * draw.normal(size=len(grades))], axis=1)
    weights = ascend(values_of(features, offsets, grades), 2)
    assert weights.sum() == pytest.approx(1) and weights[1] > 0.9 and (weights >= 0).all()


def test_two_systems_that_complete_each_other_are_mixed_and_beat_both() -> None:
    offsets, grades = lists(2)
    draw = np.random.default_rng(3)
    features = np.stack([grades + 2 * draw.normal(size=len(grades)) for _ in range(2)], axis=1)
    values = values_of(features, offsets, grades)
    weights = ascend(values, 2)
    assert 0.2 < weights[0] < 0.8
    alone = max(np.nanmean(values(np.eye(2)[system])) for system in range(2))
    assert np.nanmean(values(weights)) > alone


def test_it_repeats_itself_and_takes_what_is_undefined() -> None:
    offsets, grades = lists(4, n=5)
    grades[:12] = 0  # a list without anything relevant
    features = np.random.default_rng(5).normal(size=(len(grades), 3))
    values = values_of(features, offsets, grades)
    assert np.array_equal(ascend(values, 3), ascend(values, 3))
    assert ascend(lambda _weights: np.full(4, np.nan), 2).sum() == pytest.approx(1)
    assert ascend(values_of(features[:, :1], offsets, grades), 1).tolist() == [1.0]
