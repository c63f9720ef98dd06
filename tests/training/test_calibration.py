"""Calibration: against scikit-learn and slow references, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.training.calibration import calibrated, fit_calibration


def overconfident(n: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n) * 2
    truth = (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(int)
    return 1 / (1 + np.exp(-logits * temperature)), truth


def test_the_temperature_undoes_overconfidence() -> None:
    scores, truth = overconfident(20_000, 3.0)
    found = fit_calibration("temperature", scores, truth)
    assert found["temperature"] == pytest.approx(3.0, rel=0.05)
    better = calibrated(found, scores)
    assert np.array_equal(np.argsort(better, kind="stable"), np.argsort(scores, kind="stable"))
    assert abs(better.mean() - truth.mean()) < 0.01


def test_classes_keep_their_order_and_sum_to_one() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5_000, 4))
    sharp = np.exp(logits * 4)
    sharp /= sharp.sum(axis=1, keepdims=True)
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in soft])
    found = fit_calibration("temperature", sharp, truth)
    assert found["temperature"] == pytest.approx(4.0, rel=0.08)
    better = calibrated(found, sharp)
    assert better.sum(axis=1) == pytest.approx(np.ones(5_000))
    assert np.array_equal(better.argmax(axis=1), sharp.argmax(axis=1))


def test_isotonic_regression_is_scikit_learn_s() -> None:
    sklearn = pytest.importorskip("sklearn.isotonic")
    scores, truth = overconfident(500, 2.0, seed=2)
    scores = scores.round(2)  # ties
    expected = sklearn.IsotonicRegression(out_of_bounds="clip").fit(scores, truth).predict(scores)
    found = calibrated(fit_calibration("isotonic", scores, truth), scores)
    assert found == pytest.approx(np.clip(expected, 1e-6, 1 - 1e-6), abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_isotonic_probabilities_never_fall(pairs: list[tuple[float, int]]) -> None:
    scores, truth = np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])
    found = calibrated(fit_calibration("isotonic", scores, truth), np.sort(scores))
    assert (np.diff(found) >= -1e-12).all() and (found > 0).all() and (found < 1).all()


def test_without_a_calibration_nothing_changes() -> None:
    scores = np.array([0.0, 0.3, 1.0])
    assert calibrated(None, scores) is scores
