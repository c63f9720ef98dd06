"""Without ties, every metric equals a well-known library; pointwise ones with ties and weights too."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
import sklearn.metrics

from recft import registry
from recft.metrics import gauc
from recft.metrics._base import Labels
from recft.metrics._ranks import gains, ranks_of, ranks_of_pairs

R, C = 40, 30


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(C) / C, (R, 1)), axis=1)
    grades = rng.choice([0, 0, 0, 1, 2, 3], size=(R, C))
    grades[:, 0] = 1  # every record has a relevant item
    return scores, grades


def trec(table: tuple[np.ndarray, np.ndarray], measure: str) -> np.ndarray:
    scores, grades = table
    qrels = {f"{r:03}": {f"{c:03}": int(grade) for c, grade in enumerate(row)} for r, row in enumerate(grades)}
    run = {f"{r:03}": {f"{c:03}": float(score) for c, score in enumerate(row)} for r, row in enumerate(scores)}
    found = pytrec_eval.RelevanceEvaluator(qrels, {measure}).evaluate(run)
    return np.array([found[key][measure.replace(".", "_")] for key in sorted(found)])


@pytest.mark.parametrize(
    ("name", "cutoff", "measure"),
    [
        ("ndcg", None, "ndcg"),
        ("ndcg", 5, "ndcg_cut.5"),
        ("ndcg", 10, "ndcg_cut.10"),
        ("hr", 1, "success.1"),
        ("hr", 5, "success.5"),
        ("recall", 5, "recall.5"),
        ("recall", 20, "recall.20"),
        ("precision", 5, "P.5"),
        ("precision", 100, "P.100"),
        ("mrr", None, "recip_rank"),
        ("map", None, "map"),
    ],
)
def test_equals_trec_eval(table: tuple[np.ndarray, np.ndarray], name: str, cutoff: int | None, measure: str) -> None:
    scores, grades = table
    ranks = ranks_of_pairs(scores.ravel(), grades.ravel(), np.arange(R + 1) * C)
    found = registry.load("recft.metrics", name).ranking(ranks, cutoff)
    np.testing.assert_allclose(found, trec(table, measure), rtol=1e-6)


def test_map_at_a_cutoff_is_trec_eval_but_for_the_divisor(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, grades = table
    ranks = ranks_of_pairs(scores.ravel(), grades.ravel(), np.arange(R + 1) * C)
    found = registry.load("recft.metrics", "map").ranking(ranks, 10)
    n_relevant = (grades > 0).sum(axis=1)
    np.testing.assert_allclose(found * np.minimum(n_relevant, 10) / n_relevant, trec(table, "map_cut.10"), rtol=1e-6)


def test_mrr_at_a_cutoff(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, grades = table
    ranks = ranks_of_pairs(scores.ravel(), grades.ravel(), np.arange(R + 1) * C)
    whole = trec(table, "recip_rank")
    found = registry.load("recft.metrics", "mrr").ranking(ranks, 2)
    np.testing.assert_allclose(found, np.where(whole >= 0.5, whole, 0), rtol=1e-6)


def test_exponential_gain_equals_scikit_learn(table: tuple[np.ndarray, np.ndarray]) -> None:
    scores, grades = table
    worth = gains(grades.ravel(), "exponential")
    for cutoff in (5, None):
        found = registry.load("recft.metrics", "ndcg").ranking(
            ranks_of_pairs(scores.ravel(), worth, np.arange(R + 1) * C), cutoff
        )
        expected = sklearn.metrics.ndcg_score(worth.reshape(R, C), scores, k=cutoff)
        assert found.mean() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cutoff", [5, 20, 100])
def test_judged_is_trec_evals_precision_of_being_judged(table: tuple[np.ndarray, np.ndarray], cutoff: int) -> None:
    scores, _ = table
    rng = np.random.default_rng(3)
    judged = [np.sort(rng.choice(C, size=int(rng.integers(1, 15)), replace=False)) for _ in range(R)]
    offsets = np.cumsum([0, *map(len, judged)])
    ranks = ranks_of(scores, offsets, np.concatenate(judged), np.ones(offsets[-1]))
    found = registry.load("recft.metrics", "judged").ranking(ranks, cutoff)
    was_judged = np.zeros((R, C), dtype=np.int64)
    for r, items in enumerate(judged):
        was_judged[r, items] = 1
    np.testing.assert_allclose(found, trec((scores, was_judged), f"P.{cutoff}"), rtol=1e-6)


@pytest.fixture(scope="module")
def labels() -> Labels:
    rng = np.random.default_rng(1)
    n = 500
    # Rounded scores tie often; none is at the threshold's float neighbours or at 0 or 1.
    return Labels(np.round(rng.uniform(0.05, 0.95, n), 2), rng.integers(0, 2, n), rng.integers(0, 40, n))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "function", "decided"),
    [
        ("auc", "roc_auc_score", False),
        ("log-loss", "log_loss", False),
        ("accuracy", "accuracy_score", True),
        ("precision", "precision_score", True),
        ("recall", "recall_score", True),
        ("f1", "f1_score", True),
    ],
)
def test_equals_scikit_learn(labels: Labels, name: str, function: str, decided: bool, weighted: bool) -> None:
    weights = np.random.default_rng(2).integers(0, 4, len(labels.labels)).astype(float) if weighted else None
    answers = labels.scores >= 0.5 if decided else labels.scores
    expected = getattr(sklearn.metrics, function)(labels.labels, answers, sample_weight=weights)
    found = registry.load("recft.metrics", name).pointwise(labels, np.ones(500) if weights is None else weights)
    assert found == pytest.approx(expected, rel=1e-12)


def test_grouped_auc_equals_scikit_learn_by_user(labels: Labels) -> None:
    lone = labels.groups == 3
    labels = Labels(labels.scores, np.where(lone, 1, labels.labels), labels.groups)
    total, size, dropped = 0.0, 0, 0
    for group in np.unique(labels.groups):
        own = labels.groups == group
        if len(set(labels.labels[own].tolist())) < 2:
            dropped += 1
            continue
        total += own.sum() * sklearn.metrics.roc_auc_score(labels.labels[own], labels.scores[own])
        size += int(own.sum())
    assert gauc.pointwise(labels, np.ones(500)) == pytest.approx(total / size, rel=1e-12)
    assert gauc.dropped(labels) == dropped >= 1
