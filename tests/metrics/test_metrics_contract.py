"""What every metric promises, checked for every file in the family.

Classes, numbers and likelihoods are in test_metrics_outputs.py, lists in test_metrics_lists.py. Ties are checked
against the metric's own value without ties, averaged over every order of the tied candidates; the files beside this
one check those values against definitions and libraries.
"""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.metrics._base import Labels, Metric, Ranks, parse
from recft.metrics._ranks import ranks_of_pairs

PACKAGE = "recft.metrics"
NAMES = registry.names(PACKAGE)
MEMBERS: dict[str, Metric] = {name: registry.load(PACKAGE, name) for name in NAMES}
RANKING = [name for name in NAMES if MEMBERS[name].ranking]
POINTWISE = [name for name in NAMES if MEMBERS[name].pointwise and "labels" in MEMBERS[name].outputs]
# Calibration has no better and worse order: of too certain answers a promoted yes is a worse one.
MONOTONE = [name for name in POINTWISE if name != "ece"]
CUTOFFS = (None, 1, 2, 3, 7)

# No score lies on the threshold or on a bin's edge, so that a nudge which breaks a tie flips no answer.
SCORES = st.sampled_from([0.19, 0.39, 0.59, 0.79])


def ranking(name: str, ranks: Ranks, cutoff: int | None) -> np.ndarray:
    score = MEMBERS[name].ranking
    assert score is not None
    return score(ranks, cutoff)


def pointwise(name: str, labels: Labels, weights: np.ndarray | None = None) -> float:
    score = MEMBERS[name].pointwise
    assert score is not None
    return score(labels, np.ones(len(labels.labels)) if weights is None else weights)


def orders(scores: list[float]) -> Iterator[np.ndarray]:
    """The scores with ties broken in every way, each way equally often."""
    values = sorted(set(scores))
    members = [[i for i, score in enumerate(scores) if score == value] for value in values]
    for chosen in itertools.product(*(itertools.permutations(range(len(group))) for group in members)):
        out = np.array(scores)
        for group, places in zip(members, chosen, strict=True):
            out[group] += np.array(places) * 1e-9
        yield out


@pytest.mark.parametrize("name", [*NAMES, "_base", "_ranks", "_intervals", "_classes", "_calibration"])
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"{PACKAGE}.{name.replace('-', '_')}"))
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", NAMES)
def test_is_a_metric(name: str) -> None:
    metric = MEMBERS[name]
    assert metric.ranking or metric.pointwise or metric.lists
    assert metric.summary
    assert parse(f"{name}@5" if metric.ranking or metric.lists else name)[0] == name
    assert metric.pointwise or metric.outputs == ("labels",)  # nothing is claimed that cannot be computed
    assert not metric.of_judged or metric.ranking
    assert dataclasses.is_dataclass(metric)


RECORD = st.lists(st.tuples(SCORES, st.sampled_from([0, 0, 1, 2, 3])), min_size=1, max_size=6)


@pytest.mark.parametrize("name", RANKING)
@given(record=RECORD)
def test_ranking_ties_are_the_mean_over_every_order(name: str, record: list[tuple[float, int]]) -> None:
    scores, grades = [score for score, _ in record], [grade for _, grade in record]
    if math.prod(math.factorial(scores.count(score)) for score in set(scores)) > 120:
        return
    broken = [ranks_of_pairs(order, grades) for order in orders(scores)]
    for cutoff in CUTOFFS:
        expected = np.mean([ranking(name, ranks, cutoff)[0] for ranks in broken])
        found = ranking(name, ranks_of_pairs(scores, grades), cutoff)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", RANKING)
@given(records=st.lists(RECORD, max_size=4))
def test_records_do_not_touch_each_other(name: str, records: list[list[tuple[float, int]]]) -> None:
    offsets = np.cumsum([0, *map(len, records)])
    pairs = [pair for record in records for pair in record]
    ranks = ranks_of_pairs([score for score, _ in pairs], [grade for _, grade in pairs], offsets)
    for cutoff in CUTOFFS:
        alone = [
            ranking(name, ranks_of_pairs([score for score, _ in record], [grade for _, grade in record]), cutoff)[0]
            for record in records
        ]
        np.testing.assert_allclose(ranking(name, ranks, cutoff), alone, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", RANKING)
@given(record=RECORD, seed=st.integers(0, 99))
def test_ranking_range_and_the_perfect_order(name: str, record: list[tuple[float, int]], seed: int) -> None:
    scores, grades = np.array([score for score, _ in record]), np.array([grade for _, grade in record])
    for cutoff in CUTOFFS:
        value = ranking(name, ranks_of_pairs(scores, grades), cutoff)[0]
        if not grades.any():
            assert np.isnan(value)
            continue
        best = ranking(name, ranks_of_pairs(grades, grades), cutoff)[0]
        perfect = ranking(
            name, ranks_of_pairs(grades + np.random.default_rng(seed).random(len(grades)) / 2, grades), cutoff
        )
        assert -1e-12 <= value <= best + 1e-12 <= 1 + 2e-12
        np.testing.assert_allclose(perfect[0], best, rtol=1e-9)


@pytest.mark.parametrize("name", RANKING)
def test_a_perfect_ranking_scores_one(name: str) -> None:
    ranks = ranks_of_pairs([0.9, 0.8, 0.1], [2, 1, 0])
    assert ranking(name, ranks, 2)[0] == pytest.approx(1)


@pytest.mark.parametrize("name", RANKING)
@given(record=RECORD, which=st.integers(0, 5), up=st.sampled_from([0.1, 0.2, 0.5]))
def test_a_promoted_relevant_item_never_hurts(
    name: str, record: list[tuple[float, int]], which: int, up: float
) -> None:
    scores, grades = np.array([score for score, _ in record]), np.array([grade for _, grade in record])
    if not grades.any():
        return
    # The best graded one: lifting a lower grade over a higher one rightly costs NDCG.
    item = np.flatnonzero(grades == grades.max())[which % (grades == grades.max()).sum()]
    promoted = scores.copy()
    promoted[item] += up
    for cutoff in CUTOFFS:
        before = ranking(name, ranks_of_pairs(scores, grades), cutoff)[0]
        assert ranking(name, ranks_of_pairs(promoted, grades), cutoff)[0] >= before - 1e-12


PAIRS = st.lists(st.tuples(SCORES, st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6)


def labels_of(pairs: list[tuple[float, int, int]]) -> Labels:
    scores, labels, groups = zip(*pairs, strict=True)
    return Labels(np.array(scores), np.array(labels), np.array(groups))


@pytest.mark.parametrize("name", POINTWISE)
@given(pairs=PAIRS)
def test_pointwise_ties_are_the_mean_over_every_order(name: str, pairs: list[tuple[float, int, int]]) -> None:
    labels = labels_of(pairs)
    scores = labels.scores.tolist()
    if math.prod(math.factorial(scores.count(score)) for score in set(scores)) > 120:
        return
    expected = np.mean([pointwise(name, dataclasses.replace(labels, scores=order)) for order in orders(scores)])
    np.testing.assert_allclose(pointwise(name, labels), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", POINTWISE)
@given(pairs=PAIRS, data=st.data())
def test_a_weight_is_a_number_of_copies(name: str, pairs: list[tuple[float, int, int]], data: st.DataObject) -> None:
    labels = labels_of(pairs)
    copies = np.array(data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3)))[labels.groups]
    repeated = Labels(*(np.repeat(part, copies) for part in (labels.scores, labels.labels, labels.groups)))
    weighted = pointwise(name, labels, copies.astype(float))
    np.testing.assert_allclose(weighted, pointwise(name, repeated), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", POINTWISE)
@given(pairs=PAIRS)
def test_order_of_pairs_does_not_matter(name: str, pairs: list[tuple[float, int, int]]) -> None:
    np.testing.assert_allclose(
        pointwise(name, labels_of(pairs)), pointwise(name, labels_of(list(reversed(pairs)))), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("name", MONOTONE)
@given(pairs=PAIRS, which=st.integers(0, 5), up=st.sampled_from([0.1, 0.19, 0.2]))
def test_a_promoted_yes_never_hurts(name: str, pairs: list[tuple[float, int, int]], which: int, up: float) -> None:
    labels = labels_of(pairs)
    yes = np.flatnonzero(labels.labels == 1)
    before = pointwise(name, labels)
    if not len(yes) or np.isnan(before):
        return
    promoted = labels.scores.copy()
    promoted[yes[which % len(yes)]] += up
    after = pointwise(name, dataclasses.replace(labels, scores=promoted))
    assert after >= before - 1e-12 if MEMBERS[name].higher_is_better else after <= before + 1e-12


@pytest.mark.parametrize("name", POINTWISE)
@given(pairs=PAIRS)
def test_pointwise_range(name: str, pairs: list[tuple[float, int, int]]) -> None:
    value = pointwise(name, labels_of(pairs))
    assert np.isnan(value) or (value >= 0 and (value <= 1 or not MEMBERS[name].higher_is_better))


@pytest.mark.parametrize("name", POINTWISE)
def test_perfect_answers(name: str) -> None:
    labels = Labels(np.array([1.0, 1.0, 0.0, 0.0]), np.array([1, 1, 0, 0]), np.array([0, 1, 0, 1]))
    assert pointwise(name, labels) == pytest.approx(1 if MEMBERS[name].higher_is_better else 0, abs=1e-6)


@pytest.mark.parametrize("name", POINTWISE)
def test_nothing_to_score(name: str) -> None:
    empty = Labels(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64))
    assert np.isnan(pointwise(name, empty))


@pytest.mark.parametrize("name", RANKING)
def test_no_records(name: str) -> None:
    for cutoff in CUTOFFS:
        assert ranking(name, ranks_of_pairs([], [], [0]), cutoff).shape == (0,)
        assert np.isnan(ranking(name, ranks_of_pairs([], [], [0, 0]), cutoff)).tolist() == [True]
