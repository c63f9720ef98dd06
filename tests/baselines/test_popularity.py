"""Popularity and recency against slow counts of the known events."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from recft.baselines import popularity, recency
from recft.baselines._base import known

if TYPE_CHECKING:
    from recft.data.store import Store
    from tests.baselines.conftest import MakeTexts


@pytest.mark.parametrize("of", ["users", "events"])
@pytest.mark.parametrize("decay", [None, 30])
def test_counts_equal_the_formula(shop: Store, of: str, decay: float | None) -> None:
    before = known(shop, "test")
    assert before.log is not None
    assert before.now is not None
    found: dict[tuple[int, int], float] = {}
    for place, (user, item, time) in enumerate(
        zip(before.log.users.tolist(), before.log.items.tolist(), before.log.times.tolist(), strict=True)
    ):
        weight = math.exp(-(before.now - time) / 86_400 / decay) if decay else 1.0
        key = (item, user if of == "users" else place)
        found[key] = max(found.get(key, 0.0), weight)
    slow = [sum(weight for (item, _), weight in found.items() if item == wanted) for wanted in range(12)]
    settings = {"of": of, "decay_days": decay}
    arrays = popularity.MEMBER.fit(before, settings)
    scores = popularity.MEMBER.scores(arrays, shop, shop.records("test"), np.array([2, 0]))
    np.testing.assert_allclose(scores, [slow, slow], rtol=1e-6)


def test_queries_count_relevant_pairs(text_store: MakeTexts) -> None:
    rows = {"train": [("a", 1), ("b", 1), ("c", 0)], "valid": [("d", 2)], "test": [("e", 2)]}
    store = text_store("queries", rows, ["x", "y", "z"])
    store.records("train").grades[0] = 0  # judged irrelevant: nobody took it
    counted = [popularity.counts(known(store, split), "users").tolist() for split in ("valid", "test")]
    assert counted == [[1, 1, 0], [1, 1, 1]]


def test_recency_counts_the_window_and_orders_the_rest_by_their_last_event(shop: Store) -> None:
    before = known(shop, "test")
    assert before.log is not None
    assert before.now is not None
    ages = (before.now - before.log.times) / 86_400
    for window in (0, 7, 60):
        scores = recency.MEMBER.fit(before, {"window_days": window})["counts"]
        for item in range(12):
            mine = before.log.items == item
            users = len({int(user) for user in before.log.users[mine & (ages < window)]})
            assert scores[item] == pytest.approx(users + 1 / (2 + ages[mine].min()), rel=1e-6)
