"""Rows that carry scores from item to item, and from the own history, against slow references."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.baselines import _pairs, als, ease, item_knn, repeat, skip_markov
from recft.baselines._base import known
from recft.baselines._factors import Sparse, solve
from recft.errors import DataError

if TYPE_CHECKING:
    from recft.data.store import Store
    from tests.baselines.conftest import MakeTexts, ToyStore

N = 12
DAY = 86_400


def taken(store: Store) -> list[tuple[int, int, int]]:
    log = known(store, "test").log
    assert log is not None
    return list(zip(log.users.tolist(), log.items.tolist(), log.times.tolist(), strict=True))


def history(store: Store, record: int) -> list[tuple[int, int]]:
    records, log = store.records("test"), store.log
    assert records.starts is not None
    assert records.cuts is not None
    assert log is not None
    span = slice(int(records.starts[record]), int(records.cuts[record]))
    return list(zip(log.items[span].tolist(), log.times[span].tolist(), strict=True))


def weight(time: int, last: int, decay: float | None) -> float:
    return math.exp(-(last - time) / DAY / decay) if decay else 1.0


def scored(member: Any, store: Store, settings: dict[str, Any]) -> np.ndarray:
    records = store.records("test")
    arrays = member.fit(known(store, "test"), settings)
    out: np.ndarray = member.scores(arrays, store, records, np.arange(len(records)))
    return out


@pytest.mark.parametrize("decay", [None, 30])
def test_repeat(shop: Store, decay: float | None) -> None:
    scores = scored(repeat.MEMBER, shop, {"decay_days": decay})
    for record, row in enumerate(scores):
        own = history(shop, record)
        slow = [sum(weight(t, own[-1][1], decay) for item, t in own if item == wanted) for wanted in range(N)]
        np.testing.assert_allclose(row, slow, rtol=1e-5)


@pytest.mark.parametrize("settings", item_knn.MEMBER.grid)
def test_item_knn(shop: Store, settings: dict[str, Any]) -> None:
    scores = scored(item_knn.MEMBER, shop, settings)
    decay, events = settings["decay_days"], taken(shop)
    now = max(time for _, _, time in events)
    held = np.zeros((20, N))
    for user, item, time in events:
        recent = weight(time, now, decay) if settings["recent_pairs"] else 1.0
        held[user, item] = max(held[user, item], recent)
    lengths = np.sqrt((held**2).sum(axis=0))
    sims = held.T @ held / (np.outer(lengths, lengths) + settings["shrinkage"])
    np.fill_diagonal(sims, 0)
    for record, row in enumerate(scores):
        own = history(shop, record)
        if decay is None:
            own = list({item: (item, time) for item, time in own}.values())
        slow = sum(weight(time, own[-1][1], decay) * sims[item] for item, time in own)
        np.testing.assert_allclose(row, slow, rtol=1e-4)


@pytest.mark.parametrize("settings", skip_markov.MEMBER.grid)
def test_skip_markov(shop: Store, settings: dict[str, Any]) -> None:
    scores = scored(skip_markov.MEMBER, shop, settings)
    window, decay, events = settings["window"], settings["decay"], taken(shop)
    baskets: dict[int, dict[int, list[int]]] = {}
    for user, item, time in events:
        baskets.setdefault(user, {}).setdefault(time, []).append(item)
    steps = np.zeros((N, N))
    for own in baskets.values():
        ordered = [own[time] for time in sorted(own)]
        for first, before in enumerate(ordered):
            for distance, after in enumerate(ordered[first + 1 : first + 1 + window]):
                for i in before:
                    for j in after:
                        steps[i, j] += decay**distance
    steps = steps / np.sqrt(np.outer(steps.sum(axis=1), steps.sum(axis=0)))
    for record, row in enumerate(scores):
        own_events = history(shop, record)
        times = sorted({time for _, time in own_events}, reverse=True)
        slow = np.zeros(N)
        for item, time in own_events:
            back = times.index(time)
            if back < window:
                slow += decay**back * steps[item]
        np.testing.assert_allclose(row, slow, rtol=1e-4)


def test_ease_is_the_best_linear_model_without_itself(shop: Store) -> None:
    """Each column solves its own ridge regression on all other items."""
    penalty = 5.0
    weights = ease.MEMBER.fit(known(shop, "test"), {"regularisation": penalty})["weights"]
    held = np.zeros((20, N))
    for user, item, _ in taken(shop):
        held[user, item] = 1
    assert (np.diag(weights) == 0).all()
    for item in range(N):
        others = [other for other in range(N) if other != item]
        x = held[:, others]
        slow = np.linalg.solve(x.T @ x + penalty * np.eye(N - 1), x.T @ held[:, item])
        np.testing.assert_allclose(weights[others, item], slow, rtol=1e-4, atol=1e-6)


def test_ease_refuses_a_catalogue_that_its_matrix_would_not_fit(shop: Store) -> None:
    large = cast("Any", replace(cast("ToyStore", shop), item_ids=["x"] * 40_001))
    before = replace(known(shop, "test"), store=large)
    with pytest.raises(DataError, match=r"eval\.baselines: ease over 40,001 items \(rule: at most 40,000.*fix: take"):
        ease.MEMBER.fit(before, {"regularisation": 1.0})


@pytest.mark.parametrize("name", ["ease", "item_knn", "als", "skip_markov"])
def test_a_table_without_events_is_refused(name: str, text_store: MakeTexts) -> None:
    member = {"ease": ease, "item_knn": item_knn, "als": als, "skip_markov": skip_markov}[name].MEMBER
    store = text_store("queries", {"train": [("a", 0)], "valid": [("b", 0)], "test": [("c", 0)]}, ["x"])
    with pytest.raises(
        DataError, match=r"eval\.baselines: .* on queries \(rule: .* learns from interactions; fix: rem"
    ):
        member.fit(known(store, "valid"), member.grid[0])


def test_als_minimises_its_loss(shop: Store) -> None:
    """A user's factors are where the gradient of the weighted loss over all items is zero."""
    settings = {"factors": 4, "alpha": 3.0, "regularisation": 0.7}
    before = known(shop, "test")
    items = als.MEMBER.fit(before, settings)["items"].astype(float)
    scores = scored(als.MEMBER, shop, settings)
    for record in range(3):
        held = np.zeros(N)
        held[[item for item, _ in history(shop, record)]] = 1
        trust = 1 + 3.0 * held
        user = np.linalg.solve(items.T @ (trust[:, None] * items) + 0.7 * np.eye(4), items.T @ (trust * held))
        np.testing.assert_allclose(scores[record], items @ user, rtol=1e-3, atol=1e-4)


def test_rows_of_factors_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    entries = Sparse.of(random.integers(0, 9, 50), random.integers(0, 6, 50), random.random(50).astype(np.float32), 11)
    fixed = random.random((6, 3)).astype(np.float32)
    whole = solve(entries, fixed, 0.1, by_count=True)
    monkeypatch.setattr("recft.baselines._factors._BLOCK_NUMBERS", 20)
    np.testing.assert_array_equal(solve(entries, fixed, 0.1, by_count=True), whole)
    assert (whole[9:] == 0).all()


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 99))
def test_neighbours_few_or_many_are_summed_the_same(n_items: int, flat: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    table = np.where(random.random((n_items, n_items)) < 0.5, random.random((n_items, n_items)), 0)
    profiles = np.where(random.random((5, n_items)) < 0.5, random.random((5, n_items)), 0).astype(np.float32)
    arrays = _pairs.nearest(n_items, lambda item: table[item])
    with pytest.MonkeyPatch.context() as patch:
        dense = _pairs.spread(arrays, profiles)
        patch.setattr(_pairs, "_WEIGHTS", 0)
        patch.setattr(_pairs.parts_of, "__defaults__", (flat,))
        sparse = _pairs.spread(arrays, profiles)
    np.testing.assert_allclose(dense, profiles @ table, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sparse, dense, rtol=1e-4, atol=1e-6)


def test_only_the_largest_neighbours_are_kept() -> None:
    arrays = _pairs.nearest(3, lambda item: np.array([0.5, 0.1 * item, 0.9]), keep=2)
    assert arrays["starts"].tolist() == [0, 2, 4, 6]
    assert arrays["neighbours"].tolist() == [0, 2] * 3


def test_a_popular_item_is_read_in_parts(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = known(shop, "test").log
    assert log is not None
    pairs = _pairs.Pairs.of(log, N)
    whole = pairs.shared(3)
    monkeypatch.setattr(_pairs.parts_of, "__defaults__", (7,))
    np.testing.assert_array_equal(pairs.shared(3), whole)
