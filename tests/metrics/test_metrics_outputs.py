"""What every metric of classes, numbers and likelihoods promises, for every file that says it scores them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from recft import registry
from recft.errors import ModelError
from recft.metrics import ece
from recft.metrics._base import PACKAGE, Labels, Metric
from recft.metrics._calibration import bins
from recft.metrics._classes import confusion, report

MEMBERS: dict[str, Metric] = {name: registry.load(PACKAGE, name) for name in registry.names(PACKAGE)}
CASES = [
    (output, name)
    for output in ("classes", "values", "likelihood")
    for name, metric in MEMBERS.items()
    if metric.pointwise and output in metric.outputs
]
MONOTONE = [case for case in CASES if case[1] != "ece"]  # a better answer may be worse calibrated
BEST = {"perplexity": 1.0}
N_CLASSES = 3


def score(name: str, labels: Labels, weights: np.ndarray | None = None) -> float:
    found = MEMBERS[name].pointwise
    assert found is not None
    return found(labels, np.ones(len(labels)) if weights is None else weights)


def drawn(output: str, seed: int, n: int = 12) -> Labels:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 4, n)
    if output == "classes":
        return Labels(rng.dirichlet(np.ones(N_CLASSES), n), rng.integers(0, N_CLASSES, n), groups)
    if output == "values":
        return Labels(rng.normal(3, 1, n), rng.integers(1, 6, n).astype(float), groups)
    tokens = rng.integers(1, 9, n)
    return Labels(-tokens * rng.exponential(1, n), tokens, groups)


def perfect(output: str) -> Labels:
    scores = {"classes": np.eye(N_CLASSES), "values": np.array([1.0, 3.0, 5.0]), "likelihood": np.zeros(3)}[output]
    return Labels(scores, {"classes": np.arange(3), "values": scores, "likelihood": np.ones(3)}[output], np.arange(3))


def improved(output: str, labels: Labels, which: int, share: float) -> Labels:
    """The labels with one answer that share nearer to the truth."""
    scores = labels.scores.copy()
    if output == "classes":
        truth = np.eye(N_CLASSES)[labels.labels[which]]
        scores[which] = (1 - share) * scores[which] + share * truth
    elif output == "values":
        scores[which] += share * (labels.labels[which] - scores[which])
    else:
        scores[which] *= 1 - share
    return dataclasses.replace(labels, scores=scores)


@pytest.mark.parametrize("output", ["classes", "values", "likelihood"])
def test_every_output_has_a_metric(output: str) -> None:
    assert [name for of, name in CASES if of == output]


@pytest.mark.parametrize(("output", "name"), CASES)
@given(seed=st.integers(0, 10_000))
def test_range(output: str, name: str, seed: int) -> None:
    value = score(name, drawn(output, seed))
    assert value >= BEST.get(name, 0)
    assert value <= 1 or not MEMBERS[name].higher_is_better


@pytest.mark.parametrize(("output", "name"), CASES)
def test_perfect_answers(output: str, name: str) -> None:
    best = BEST.get(name, 1.0 if MEMBERS[name].higher_is_better else 0.0)
    assert score(name, perfect(output)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("output", "name"), MONOTONE)
@given(seed=st.integers(0, 10_000), which=st.integers(0, 11), share=st.sampled_from([0.1, 0.5, 1.0]))
def test_a_better_answer_never_hurts(output: str, name: str, seed: int, which: int, share: float) -> None:
    labels = drawn(output, seed)
    gain = score(name, improved(output, labels, which, share)) - score(name, labels)
    assert gain >= -1e-12 if MEMBERS[name].higher_is_better else gain <= 1e-12


@pytest.mark.parametrize(("output", "name"), CASES)
@given(seed=st.integers(0, 10_000), copies=st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_weight_is_a_number_of_copies(output: str, name: str, seed: int, copies: list[int]) -> None:
    labels = drawn(output, seed)
    rows = np.repeat(np.arange(12), copies)
    repeated = Labels(labels.scores[rows], labels.labels[rows], labels.groups[rows])
    weighted = score(name, labels, np.array(copies, dtype=float))
    np.testing.assert_allclose(weighted, score(name, repeated), rtol=1e-9)


@pytest.mark.parametrize(("output", "name"), CASES)
def test_order_does_not_matter_and_a_mask_selects(output: str, name: str) -> None:
    labels = drawn(output, 5)
    rows = np.arange(12)[::-1]
    turned = Labels(labels.scores[rows], labels.labels[rows], labels.groups[rows])
    assert score(name, turned) == pytest.approx(score(name, labels), rel=1e-12)
    mask = labels.groups < 2
    assert score(name, labels.where(mask)) == pytest.approx(score(name, labels, mask.astype(float)), rel=1e-12)


@pytest.mark.parametrize(("output", "name"), CASES)
def test_nothing_to_score(output: str, name: str) -> None:
    assert np.isnan(score(name, drawn(output, 0).where(np.zeros(12, dtype=bool))))


@pytest.mark.parametrize("name", [name for output, name in CASES if output == "classes"])
@pytest.mark.parametrize("labels", [drawn("classes", 7, 400), drawn("classes", 8, 9)])
def test_classes_equal_scikit_learn(name: str, labels: Labels) -> None:
    answers = labels.scores.argmax(axis=1)
    weights = np.random.default_rng(3).integers(1, 4, len(labels)).astype(float)
    expected: dict[str, Callable[[], float]] = {
        "accuracy": lambda: sklearn.metrics.accuracy_score(labels.labels, answers, sample_weight=weights),
        "log-loss": lambda: sklearn.metrics.log_loss(
            labels.labels, labels.scores, sample_weight=weights, labels=range(N_CLASSES)
        ),
        "brier": lambda: sklearn.metrics.brier_score_loss(
            labels.labels, labels.scores, sample_weight=weights, labels=range(N_CLASSES), scale_by_half=True
        ),
        "macro-f1": lambda: sklearn.metrics.f1_score(labels.labels, answers, sample_weight=weights, average="macro"),
        "weighted-f1": lambda: sklearn.metrics.f1_score(
            labels.labels, answers, sample_weight=weights, average="weighted"
        ),
        "ece": lambda: slow_ece(labels.scores.max(axis=1), answers == labels.labels, weights),
    }
    assert score(name, labels, weights) == pytest.approx(expected[name](), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "function"),
    [("rmse", "root_mean_squared_error"), ("mae", "mean_absolute_error"), ("mse", "mean_squared_error")],
)
def test_values_equal_scikit_learn(name: str, function: str) -> None:
    labels = drawn("values", 1, 300)
    weights = np.random.default_rng(3).integers(0, 4, 300).astype(float)
    expected = getattr(sklearn.metrics, function)(labels.labels, labels.scores, sample_weight=weights)
    found = score("rmse", labels, weights) ** 2 if name == "mse" else score(name, labels, weights)
    assert found == pytest.approx(expected, rel=1e-12)


def test_likelihoods_count_tokens_one_by_one() -> None:
    labels = drawn("likelihood", 2, 50)
    by_token = np.repeat(-labels.scores / labels.labels, labels.labels.astype(int))
    assert score("nll", labels) == pytest.approx(by_token.mean(), rel=1e-12)
    assert score("perplexity", labels) == pytest.approx(np.exp(by_token.mean()), rel=1e-12)
    assert score("perplexity", Labels(np.array([-1e6]), np.array([1]), np.array([0]))) == np.inf


def slow_ece(probability: np.ndarray, came_true: np.ndarray, weights: np.ndarray, n: int = 15) -> float:
    total = 0.0
    for i in range(n):
        inside = [k for k, p in enumerate(probability) if i / n < p <= (i + 1) / n or (i == 0 and p == 0)]
        size = sum(weights[k] for k in inside)
        if size:
            share = sum(weights[k] * came_true[k] for k in inside) / size
            total += size * abs(share - sum(weights[k] * probability[k] for k in inside) / size)
    return float(total / weights.sum())


def test_bins_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = Labels(np.append(rng.random(300) ** 3, [0.0, 1.0]), rng.integers(0, 2, 302), np.zeros(302))
    share, confidence = calibration_curve(labels.labels, labels.scores, n_bins=15)
    found = [part for part in bins(labels) if part["n"]]
    assert [part["share"] for part in found] == pytest.approx(share, rel=1e-12)
    assert [part["confidence"] for part in found] == pytest.approx(confidence, rel=1e-12)
    assert (found[0]["from"], found[-1]["to"], sum(part["n"] for part in found)) == (0, 1, 302)
    gaps = [part["n"] * abs((part["share"] or 0) - (part["confidence"] or 0)) for part in found]
    assert ece.pointwise(labels, np.ones(302)) == pytest.approx(sum(gaps) / 302, rel=1e-12)


def test_yes_or_no_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    labels = Labels(rng.uniform(0.05, 0.95, 300), rng.integers(0, 2, 300), np.zeros(300))
    weights = rng.integers(0, 4, 300).astype(float)
    expected = sklearn.metrics.brier_score_loss(labels.labels, labels.scores, sample_weight=weights)
    assert score("brier", labels, weights) == pytest.approx(expected, rel=1e-12)
    expected = slow_ece(labels.scores, labels.labels == 1, weights)
    assert score("ece", labels, weights) == pytest.approx(expected, rel=1e-9)


def test_two_classes_are_yes_or_no() -> None:
    rng = np.random.default_rng(1)
    p, truth = rng.random(50), rng.integers(0, 2, 50)
    yes_or_no, classes = Labels(p, truth, truth), Labels(np.stack([1 - p, p], axis=1), truth, truth)
    for name in ("brier", "log-loss", "accuracy"):
        assert score(name, classes) == pytest.approx(score(name, yes_or_no), rel=1e-9), name


def test_a_bin_without_a_pair() -> None:
    empty = bins(Labels(np.zeros(0), np.zeros(0), np.zeros(0)), 2)
    assert empty == [
        {"from": 0.0, "to": 0.5, "n": 0, "confidence": None, "share": None},
        {"from": 0.5, "to": 1.0, "n": 0, "confidence": None, "share": None},
    ]


@pytest.mark.parametrize("name", ["brier", "ece", "log-loss"])
@pytest.mark.parametrize("scores", [[1.5, 0.5], [-0.1, 0.5]])
def test_what_is_no_probability_is_refused(name: str, scores: list[float]) -> None:
    with pytest.raises(ModelError, match=r"scores: from .* probabilities from 0 to 1; fix: take auc\)"):
        score(name, Labels(np.array(scores), np.array([1, 0]), np.array([0, 1])))


def test_the_matrix_and_the_report_equal_scikit_learn() -> None:
    labels = drawn("classes", 4, 200)
    answers = labels.scores.argmax(axis=1)
    assert confusion(labels).tolist() == sklearn.metrics.confusion_matrix(labels.labels, answers).tolist()
    weights = np.random.default_rng(0).random(200)
    expected = sklearn.metrics.confusion_matrix(labels.labels, answers, sample_weight=weights)
    np.testing.assert_allclose(confusion(labels, weights), expected)
    parts = sklearn.metrics.precision_recall_fscore_support(labels.labels, answers)
    for i, row in enumerate(report(labels, ["好评", "差评", "😐"]).values()):
        assert list(row.values()) == pytest.approx([part[i] for part in parts])


def test_a_class_that_never_occurs() -> None:
    labels = Labels(np.array([[0.9, 0.1, 0.0]] * 2), np.array([0, 0]), np.array([0, 1]))
    found = report(labels, ["a", "b", "c"])
    assert found["a"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "n": 2}
    assert found["c"] == {"precision": None, "recall": None, "f1": None, "n": 0}
    assert score("macro-f1", labels) == score("weighted-f1", labels) == 1


def test_what_is_computed_once_is_not_computed_again() -> None:
    labels = drawn("values", 0)
    calls = []

    def twice(given: Labels) -> np.ndarray:
        calls.append(given)
        return given.scores * 2

    first = labels.once(twice)
    assert labels.once(twice) is first
    assert len(calls) == 1
    other = dataclasses.replace(labels, scores=labels.scores + 1)
    assert other.once(twice).tolist() == (2 * other.scores).tolist()
