"""Training for the long tail: weights and the correction of scores, against what they should be by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recft.data.store import Records
from recft.tasks._base import Batch
from recft.tasks._towers import contrastive_loss
from recft.tasks.next_item import MEMBER, NextItemSettings

ITEMS = ["lamp", "桌子", "chair", "🎒 bag"]


def records() -> Records:
    """Item 0 is taken 6 times, item 1 twice, item 2 once, item 3 never."""
    targets = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2], np.int32)
    n = len(targets)
    return Records(
        keys=[f"u{row}" for row in range(n)],
        queries=None,
        users=np.arange(n, dtype=np.int32),
        starts=np.arange(n, dtype=np.int64),
        cuts=np.arange(1, n + 1, dtype=np.int64),
        times=np.zeros(n, np.int64),
        offsets=np.arange(n + 1, dtype=np.int64),
        items=targets,
        grades=np.ones(n, np.float32),
        log_items=np.full(n, 3, np.int32),
    )


def batch_of(**settings: float) -> Batch:
    config = NextItemSettings(**settings)
    return MEMBER.batch(config, records(), np.array([0, 6, 8]), ITEMS, np.random.default_rng(0))


def test_the_correction_is_the_log_of_popularity_as_far_as_it_is_not_adjusted() -> None:
    whole = batch_of().arrays["correction"]
    assert np.exp(whole) == pytest.approx([6 / 9, 2 / 9, 1 / 9])
    assert batch_of(logit_adjustment=0.25).arrays["correction"] == pytest.approx(0.75 * whole)
    assert "correction" not in batch_of(logit_adjustment=1).arrays


def test_rare_targets_weigh_more_and_the_mean_is_one() -> None:
    assert "weight" not in batch_of().arrays
    weights = batch_of(inverse_propensity=1).arrays["weight"]
    assert weights.mean() == pytest.approx(1)
    assert weights / weights[0] == pytest.approx([1, 3, 6])
    half = batch_of(inverse_propensity=0.5).arrays["weight"]
    assert half / half[0] == pytest.approx([1, 3**0.5, 6**0.5])


def test_no_example_is_the_whole_batch() -> None:
    from recft.tasks.next_item import MOST_WEIGHT, _propensity_weights

    counts = np.array([10_000_000, 1])
    weights = _propensity_weights(counts, np.array([0] * 999 + [1]), 1.0)
    assert weights.max() / np.median(weights) <= MOST_WEIGHT * 1.0001
    assert np.isfinite(weights).all() and weights.mean() == pytest.approx(1, rel=1e-4)


def test_a_weighted_loss_is_the_weighted_mean_of_single_losses() -> None:
    batch = batch_of(inverse_propensity=1)
    outputs = torch.nn.functional.normalize(torch.randn(len(batch.texts), 8, generator=torch.manual_seed(0)), dim=-1)
    config = NextItemSettings()
    weights = batch.arrays["weight"]
    singles = []
    for row in range(3):
        alone = np.zeros(3, np.float32)
        alone[row] = 3.0  # the mean over three examples of one of them alone
        arrays = {**batch.arrays, "weight": alone}
        singles.append(float(contrastive_loss(outputs, Batch(batch.texts, arrays, 3), config, None)))
    expected = float((weights * np.array(singles)).sum() / 3)
    assert float(contrastive_loss(outputs, batch, config, None)) == pytest.approx(expected, rel=1e-5)
