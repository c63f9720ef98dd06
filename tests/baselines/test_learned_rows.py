"""Rows that learn weights: ratings, yes or no, classes, sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from recft.baselines import biases, logistic, mf, sasrec, tfidf_logistic
from recft.baselines._base import known
from recft.errors import DataError

if TYPE_CHECKING:
    from recft.data.store import Store
    from tests.baselines.conftest import MakeEvents, MakeLog, MakeTexts


def stars(store: Store, split: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The record, item and rating of each target."""
    records, log = store.records(split), store.log
    assert log is not None
    assert log.ratings is not None
    assert records.users is not None
    assert records.times is not None
    rows = zip(log.users.tolist(), log.items.tolist(), log.times.tolist(), strict=True)
    given = dict(zip(rows, log.ratings.tolist(), strict=True))
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    keys = zip(records.users[owners].tolist(), records.items.tolist(), records.times[owners].tolist(), strict=True)
    return owners, records.items, np.array([given[key] for key in keys])


def test_biases_equal_the_formula(shop: Store) -> None:
    before, records = known(shop, "test"), shop.records("test")
    log = before.log
    assert log is not None
    assert log.ratings is not None
    ratings = log.ratings.astype(float)
    mean = ratings.mean()
    items = np.array([(ratings[log.items == i] - mean).sum() / ((log.items == i).sum() + 3) for i in range(12)])
    arrays = biases.MEMBER.fit(before, {"item_damping": 3.0, "user_damping": 2.0})
    scores = biases.MEMBER.scores(arrays, shop, records, np.arange(len(records)))
    assert records.starts is not None
    assert records.cuts is not None
    assert records.log_items is not None
    assert records.log_ratings is not None
    for record, row in enumerate(scores):
        span = slice(int(records.starts[record]), int(records.cuts[record]))
        own, given = records.log_items[span], records.log_ratings[span]
        user = (given - mean - items[own]).sum() / (len(own) + 2)
        np.testing.assert_allclose(row, np.clip(mean + user + items, ratings.min(), ratings.max()), rtol=1e-5)


@pytest.mark.parametrize("member", [biases.MEMBER, mf.MEMBER])
def test_ratings_are_predicted_better_than_by_their_mean(member: Any, shop: Store) -> None:
    before, records = known(shop, "test"), shop.records("test")
    assert before.log is not None
    assert before.log.ratings is not None
    scores = member.scores(member.fit(before, member.grid[0]), shop, records, np.arange(len(records)))
    owners, items, given = stars(shop, "test")
    error = np.sqrt(np.mean((scores[owners, items] - given) ** 2))
    assert error < 0.95 * np.sqrt(np.mean((before.log.ratings.mean() - given) ** 2))
    assert scores.min() >= before.log.ratings.min()
    assert scores.max() <= before.log.ratings.max()


def test_mf_solves_a_history_exactly(shop: Store) -> None:
    """The user's vector and bias are the ridge regression of its ratings on the items' vectors."""
    records = shop.records("test")
    arrays = mf.MEMBER.fit(known(shop, "test"), {"factors": 3, "regularisation": 0.1})
    scores = mf.MEMBER.scores(arrays, shop, records, np.array([1]))[0]
    assert records.starts is not None
    assert records.cuts is not None
    assert records.log_ratings is not None
    own = records.history(1)
    given = records.log_ratings[int(records.starts[1]) : int(records.cuts[1])]
    vectors = np.concatenate([arrays["items"][:, :-1], np.ones((12, 1))], axis=1).astype(float)
    mean, low, high = arrays["means"]
    left = given - mean - arrays["items"][own, -1]
    x = vectors[own]
    user = np.linalg.solve(x.T @ x + 0.1 * len(own) * np.eye(4), x.T @ left)
    slow = np.clip(mean + vectors @ user + arrays["items"][:, -1], low, high)
    np.testing.assert_allclose(scores, slow, rtol=1e-3)


def test_ratings_are_asked_for(log_store: MakeLog, toy_events: MakeEvents) -> None:
    store = log_store(toy_events(), 12)
    with pytest.raises(
        DataError, match=r"eval\.baselines: biases on a log without ratings \(rule: .*fix: map data\.int"
    ):
        biases.MEMBER.fit(known(store, "test"), biases.MEMBER.grid[0])
    assert "means" not in mf.MEMBER.fit(known(store, "test"), mf.MEMBER.grid[0])


@pytest.mark.parametrize("regularisation", [0.5, 20.0])
def test_newton_finds_what_scikit_learn_finds(regularisation: float) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4))
    y = (x @ [1.0, -2.0, 0.0, 0.5] + random.normal(size=300) > 0.3).astype(float)
    ours = logistic.newton(x, y, regularisation)
    theirs = LogisticRegression(C=1 / regularisation, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(ours[1:], theirs.coef_[0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours[0], theirs.intercept_[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("labels", [np.ones(5), np.zeros(5), np.array([0, 0, 1, 1, 1.0])])
def test_newton_does_not_run_away(labels: np.ndarray) -> None:
    assert np.abs(logistic.newton(np.arange(5.0)[:, None] * 1e3, labels, 1e-6)).max() < 1e3


@pytest.mark.parametrize("labels", [{"at_least": 4.0}, {"negatives": 3}])
def test_logistic_says_yes_with_probability(log_store: MakeLog, toy_events: MakeEvents, labels: dict[str, Any]) -> None:
    store = log_store(toy_events(n_events=900), 12, rated="at_least" in labels, **labels)
    records = store.records("test")
    arrays = logistic.MEMBER.fit(known(store, "test"), {"regularisation": 1.0})
    scores = logistic.MEMBER.scores(arrays, store, records, np.arange(len(records)))
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    yes, found = records.grades > 0, scores[owners, records.items]
    assert roc_auc_score(yes, found) > 0.6
    assert log_loss(yes, found.astype(float)) < log_loss(yes, np.full(len(yes), yes.mean())) + 0.02


def test_tfidf_features_have_length_one_a_family_and_forget_unknown_terms() -> None:
    terms = tfidf_logistic._Terms.of(["red red dress", "红色连衣裙", ""])
    places = np.unique(terms.places)
    starts, columns, values = tfidf_logistic._weighted(terms, places, np.ones(len(places)))
    assert starts[-1] == len(columns) == len(values)
    np.testing.assert_allclose(np.add.reduceat(values**2, starts[:2]), [2, 2], rtol=1e-5)
    assert starts[3] - starts[2] == 0
    few = tfidf_logistic._weighted(terms, places[:3], np.ones(3))
    assert set(few[1].tolist()) <= {0, 1, 2}


def test_tfidf_weights_are_where_the_gradient_is_zero() -> None:
    random = np.random.default_rng(0)
    dense = np.where(random.random((40, 6)) < 0.5, random.random((40, 6)), 0).astype(np.float32)
    owners, columns = np.nonzero(dense)
    starts = np.searchsorted(owners, np.arange(41))
    classes = (dense @ random.normal(size=(6, 3))).argmax(axis=1)
    weights, intercept = tfidf_logistic._learned((starts, columns, dense[owners, columns]), np.eye(3)[classes], 6, 2.0)
    theirs = LogisticRegression(C=2.0, tol=1e-9, max_iter=5000).fit(dense, classes)
    np.testing.assert_allclose(weights.T, theirs.coef_, atol=0.02)
    np.testing.assert_allclose(intercept - intercept.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=0.02)


def test_tfidf_tells_chinese_classes_apart(text_store: MakeTexts) -> None:
    rows = [
        ("红色连衣裙 很好", 0),
        ("物流太慢了", 1),
        ("裙子 红色", 0),
        ("快递 慢", 1),
        ("连衣裙真好看", 0),
        ("物流 差", 1),
    ]
    asked = [("这条连衣裙", 0), ("物流慢", 1)]
    store = text_store("texts", {"train": rows, "valid": asked, "test": asked}, ["praise", "delivery"])
    arrays = tfidf_logistic.MEMBER.fit(known(store, "valid"), {"c": 10.0})
    scores = tfidf_logistic.MEMBER.scores(arrays, store, store.records("valid"), np.arange(2))
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_sasrec_learns_a_cycle_and_leaves_torch_s_numbers_alone(log_store: MakeLog) -> None:
    import torch

    events = [(user, (user + day) % 7, float(day), 0.0) for user in range(30) for day in range(25)]
    store = log_store(events, 7, "leave_one_out")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    arrays = sasrec.MEMBER.fit(known(store, "test"), {"epochs": 60, "dropout": 0.0})
    assert torch.equal(torch.rand(1), expected)
    records = store.records("test")
    scores = sasrec.MEMBER.scores(arrays, store, records, np.arange(len(records)))
    assert (scores.argmax(axis=1) == records.items).mean() > 0.9


def test_sasrec_scores_do_not_depend_on_what_lies_beyond_fifty_events_or_beside(shop: Store) -> None:
    records = shop.records("test")
    arrays = sasrec.MEMBER.fit(known(shop, "test"), {"epochs": 1, "dropout": 0.2})
    assert records.starts is not None
    assert records.cuts is not None
    late = replace(records, starts=np.maximum(records.starts, records.cuts - sasrec.LENGTH))
    rows = np.arange(len(records))
    whole, recent = (sasrec.MEMBER.scores(arrays, shop, part, rows) for part in (records, late))
    np.testing.assert_array_equal(whole, recent)
    alone = np.concatenate([sasrec.MEMBER.scores(arrays, shop, records, rows[i : i + 1]) for i in rows])
    np.testing.assert_allclose(alone, sasrec.MEMBER.scores(arrays, shop, records, rows), rtol=1e-4, atol=1e-5)


def test_sasrec_draws_the_next_item_from_the_next_basket(shop: Store) -> None:
    log = known(shop, "test").log
    assert log is not None
    pieces = sasrec._Pieces.of(log, 12)
    rows = list(zip(log.users.tolist(), log.times.tolist(), strict=True))
    for place, (user, time) in enumerate(rows):
        later = sorted(t for u, t in rows if u == user and t > time)
        expected = [i for i, row in enumerate(rows) if later and row == (user, later[0])]
        start = int(pieces.next_starts[place])
        found = list(range(start, start + int(pieces.next_sizes[place])))
        assert found == expected
    assert pieces.next_sizes[-1] == 0
    assert set(pieces.places[pieces.places >= 0].tolist()) <= set(range(len(log)))
