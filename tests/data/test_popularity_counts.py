"""Training events are counted once each, later rows never; a popularity has one share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data.popularity import counts, share_above
from recft.data.store import Records


def interactions(
    users: list[int], starts: list[int], cuts: list[int], targets: list[list[tuple[int, float]]]
) -> Records:
    # Log: user 0 has rows 0-4 (items 0 1 1 2 5), user 1 rows 5-7 (items 1 3 4); items 5 and 4 come after the split.
    return Records(
        keys=[str(user) for user in users],
        queries=None,
        users=np.array(users, dtype=np.int32),
        starts=np.array(starts, dtype=np.int64),
        cuts=np.array(cuts, dtype=np.int64),
        times=np.zeros(len(users), dtype=np.int64),
        offsets=np.cumsum([0, *map(len, targets)]),
        items=np.array([item for target in targets for item, _ in target], dtype=np.int32),
        grades=np.array([grade for target in targets for _, grade in target], dtype=np.float32),
        log_items=np.array([0, 1, 1, 2, 5, 1, 3, 4], dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Histories overlap: each row counts once.
        (([0, 0, 0, 1], [0, 0, 0, 5], [1, 2, 3, 6], [[(1, 1)], [(1, 1)], [(2, 1)], [(3, 1)]]), [1, 3, 1, 1, 0, 0]),
        # Negatives that were drawn are no events.
        (([0], [0], [3], [[(2, 1), (4, 0), (5, 0)]]), [1, 2, 1, 0, 0, 0]),
        # A basket counts every item.
        (([0, 0], [0, 0], [2, 2], [[(1, 1)], [(2, 1)]]), [1, 2, 1, 0, 0, 0]),
        (([], [], [], []), [0] * 6),
    ],
)
def test_counts_of_a_log(given: Any, expected: list[int]) -> None:
    assert counts(interactions(*given), 6).tolist() == expected


def test_counts_of_judgements() -> None:
    pairs, grades = np.array([0, 1, 1, 2], np.int32), np.array([3, 1, 2, 0], np.float32)
    records = Records(["a", "b"], ["a", "b"], None, None, None, None, np.array([0, 2, 4]), pairs, grades)
    assert counts(records, 4).tolist() == [1, 2, 0, 0]


@given(st.lists(st.integers(0, 5), max_size=8), st.randoms())
def test_shares_add_up_item_by_item(popularity: list[int], random: Any) -> None:
    found = share_above(np.array(popularity, dtype=np.int64)).tolist()
    total = sum(popularity)
    for own, share in zip(popularity, found, strict=True):
        assert share == pytest.approx(sum(other for other in popularity if other > own) / total if own else 1)
    order = list(range(len(popularity)))
    random.shuffle(order)
    turned = share_above(np.array([popularity[i] for i in order], dtype=np.int64)).tolist()
    assert turned == [found[i] for i in order]
