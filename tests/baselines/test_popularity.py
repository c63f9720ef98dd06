"""Popularity: training events are counted once each, later rows never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from recft.baselines import popularity


def interactions(users: list[int], starts: list[int], cuts: list[int], targets: list[list[tuple[int, float]]]) -> Any:
    # Log: user 0 has rows 0-4 (items 0 1 1 2 5), user 1 rows 5-7 (items 1 3 4); items 5 and 4 come after the split.
    return SimpleNamespace(
        users=np.array(users, dtype=np.int32),
        starts=np.array(starts, dtype=np.int64),
        cuts=np.array(cuts, dtype=np.int64),
        offsets=np.cumsum([0, *map(len, targets)]),
        items=np.array([item for target in targets for item, _ in target], dtype=np.int32),
        grades=np.array([grade for target in targets for _, grade in target], dtype=np.float32),
        log_items=np.array([0, 1, 1, 2, 5, 1, 3, 4], dtype=np.int32),
    )


def test_overlapping_histories_count_each_row_once() -> None:
    records = interactions([0, 0, 0, 1], [0, 0, 0, 5], [1, 2, 3, 6], [[(1, 1)], [(1, 1)], [(2, 1)], [(3, 1)]])
    assert popularity.counts(records, 6).tolist() == [1, 3, 1, 1, 0, 0]


def test_sampled_negatives_are_no_events() -> None:
    records = interactions([0], [0], [3], [[(2, 1), (4, 0), (5, 0)]])
    assert popularity.counts(records, 6).tolist() == [1, 2, 1, 0, 0, 0]


def test_a_basket_counts_every_item() -> None:
    records = interactions([0, 0], [0, 0], [2, 2], [[(1, 1)], [(2, 1)]])
    assert popularity.counts(records, 6).tolist() == [1, 2, 1, 0, 0, 0]


def test_queries_count_relevant_pairs() -> None:
    records: Any = SimpleNamespace(
        users=None, starts=None, cuts=None, log_items=None, items=np.array([0, 1, 1, 2]), grades=np.array([3, 1, 2, 0])
    )
    assert popularity.counts(records, 4).tolist() == [1, 2, 0, 0]


def test_no_records() -> None:
    assert popularity.counts(interactions([], [], [], []), 6).tolist() == [0] * 6


def test_only_the_training_split_is_read() -> None:
    asked = []

    def records(split: str) -> Any:
        asked.append(split)
        return interactions([1], [5], [6], [[(3, 1)]])

    store: Any = SimpleNamespace(records=records, item_ids=list("abcdef"))
    scores = popularity.MEMBER.fit(store)(store, np.array([4, 7]))
    assert asked == ["train"]
    assert scores.dtype == np.float32
    assert scores.tolist() == [[0, 1, 0, 1, 0, 0]] * 2
