"""Pooled rows: p values of scores of all pairs against a slow exchange, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from recft import registry
from recft.metrics import _base as metrics
from recft.metrics import _intervals as intervals
from recft.reports.pooled import Row, difference, entry

N_USERS, N_PAIRS = 12, 48


def row(scores: Sequence[np.ndarray], labels: np.ndarray, name: str, names: Sequence[str]) -> Row:
    groups = np.arange(N_PAIRS) % N_USERS
    tables = [metrics.Labels(one, labels, groups.astype(np.int64)) for one in scores]
    return Row(name, {}, tables, names, groups.astype(str), len(tables), frozenset({("data", "rules")}))


def made(n_seeds: int, strength: float, output: str, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of so many seeds that know of the labels more or less."""
    rng = np.random.default_rng([seed, n_seeds])
    truth = np.random.default_rng(seed).integers(2 if output == "labels" else 3, size=N_PAIRS)
    if output == "values":
        return [truth + rng.normal(size=N_PAIRS) / strength for _ in range(n_seeds)], truth.astype(float)
    if output == "labels":
        return [1 / (1 + np.exp(-(truth - 0.5) * strength - rng.normal(size=N_PAIRS))) for _ in range(n_seeds)], truth
    logits = [rng.normal(size=(N_PAIRS, 3)) + strength * np.eye(3)[truth] for _ in range(n_seeds)]
    return [np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in logits], truth


def slow(metric: str, ours: Row, theirs: Row, turns: Sequence[tuple[int, int]]) -> float:
    """The p by taking each exchanged table apart and scoring it as it then stands."""
    score = registry.load("recft.metrics", metrics.parse(metric)[0]).pointwise
    everything = np.ones(N_PAIRS)

    def above(coins: np.ndarray) -> float:
        exchanged = coins[np.array([int(user) for user in ours.clusters])] > 0
        found = []
        for mine, other in turns:
            one, two = ours.labels[mine], theirs.labels[other]
            which = exchanged if one.scores.ndim == 1 else exchanged[:, None]
            first = metrics.Labels(np.where(which, two.scores, one.scores), one.labels, one.groups)
            second = metrics.Labels(np.where(which, one.scores, two.scores), one.labels, one.groups)
            found.append(score(first, everything) - score(second, everything))
        return float(np.mean(found))

    observed = above(np.zeros(N_USERS))
    drawn = [above(coins) for block in intervals._coins(N_USERS, 1000, 0) for coins in block]
    return (1 + sum(abs(one) >= abs(observed) - 1e-9 for one in drawn)) / (1 + len(drawn))


@pytest.mark.parametrize(
    ("output", "metric"),
    [("labels", "auc"), ("labels", "log_loss"), ("values", "rmse"), ("classes", "accuracy"), ("classes", "macro_f1")],
)
@pytest.mark.parametrize("seeds", [(1, 1), (2, 2), (1, 2), (3, 2)])
def test_p_is_by_exchanging_users_in_all_seeds_at_once(output: str, metric: str, seeds: tuple[int, int]) -> None:
    (mine, labels), (other, _) = made(seeds[0], 2.0, output, 5), made(seeds[1], 1.2, output, 5)
    ours, theirs = row(mine, labels, "a", [metric]), row(other, labels, "b", [metric])
    turns = [(0, 0), (1, 1)] if seeds == (2, 2) else [(one, two) for one in range(seeds[0]) for two in range(seeds[1])]
    found = difference(ours, theirs)[metric]
    assert found["p"] == pytest.approx(slow(metric, ours, theirs, turns), abs=1e-9)
    assert found["p"] == found["p_holm"] and 0 < found["p"] < 1
    means = [entry(one)["scores"][metric] for one in (ours, theirs)]
    assert found["mean"] == pytest.approx(means[0] - means[1])
    assert difference(theirs, ours)[metric]["p"] == pytest.approx(found["p"])


def test_all_metrics_of_a_pair_of_rows_are_corrected_together() -> None:
    names = ["auc", "log_loss", "accuracy"]
    (mine, labels), (other, _) = made(2, 3.0, "labels", 1), made(2, 0.3, "labels", 2)
    found = difference(row(mine, labels, "a", names), row(other, labels, "b", names))
    ps = {name: one["p"] for name, one in found.items()}
    assert {name: one["p_holm"] for name, one in found.items()} == intervals.holm(ps)
    assert ps["auc"] < 0.05


def test_equal_rows_have_a_p_of_one() -> None:
    scores, labels = made(2, 1.0, "labels", 3)
    one, other = row(scores, labels, "a", ["auc"]), row(scores, labels, "b", ["auc"])
    assert difference(one, other)["auc"]["p"] == 1.0
