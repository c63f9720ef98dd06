"""What may be known before a split: the fast way against a slow one, and never a scored target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recft.baselines._base import known
from recft.errors import DataError, RecftError

if TYPE_CHECKING:
    from recft.data.store import Log, Records, Split, Store
    from tests.baselines.conftest import MakeLog, MakeTexts

Scored = Literal["valid", "test"]
Row = tuple[int, int, int]


def rows_of(log: Log) -> list[Row]:
    return list(zip(log.users.tolist(), log.items.tolist(), log.times.tolist(), strict=True))


def histories(records: Records, log: Log) -> set[Row]:
    assert records.starts is not None
    assert records.cuts is not None
    rows = rows_of(log)
    return {row for start, cut in zip(records.starts, records.cuts, strict=True) for row in rows[start:cut]}


def targets(records: Records, log: Log) -> set[Row]:
    assert records.users is not None
    assert records.times is not None
    held = set(rows_of(log))
    found = set()
    for record in range(len(records)):
        for pair in range(records.offsets[record], records.offsets[record + 1]):
            row = (int(records.users[record]), int(records.items[pair]), int(records.times[record]))
            if row in held:
                found.add(row)
    return found


def slow(store: Store, split: Scored) -> set[Row]:
    log = store.log
    assert log is not None
    if store.card["split"]["by"] == "time":
        return {row for row in rows_of(log) if row[2] <= store.card["split"][f"{split}_cut"]}
    found = histories(store.records(split), log)
    parts: tuple[Split, ...] = ("train", "valid") if split == "test" else ("train",)
    for part in parts:
        records = store.records(part)
        found |= histories(records, log) | targets(records, log)
    return found


events = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 6).map(float), st.sampled_from([1.0, 5.0])),
    min_size=12,
    max_size=40,
    unique_by=lambda event: event[:3],
)


@pytest.mark.parametrize("by", ["time", "leave_one_out", "user", "cold_items"])
@given(drawn=events)
@settings(max_examples=40, deadline=None)
def test_equals_the_slow_way_and_holds_no_scored_target(
    log_store: MakeLog, by: str, drawn: list[tuple[int, int, float, float]]
) -> None:
    try:
        store = log_store(drawn, 5, by, rated=True)
    except RecftError:
        return  # too few for every split
    scored: tuple[Scored, ...] = ("valid", "test")
    for split in scored:
        before = known(store, split)
        assert before.log is not None
        assert store.log is not None
        assert set(rows_of(before.log)) == slow(store, split)
        assert not set(rows_of(before.log)) & targets(store.records(split), store.log)
        assert before.now == max(before.log.times, default=None)


def test_negatives_that_were_drawn_are_no_events(log_store: MakeLog) -> None:
    drawn = [(user, (user + day) % 6, float(day), 5.0) for user in range(6) for day in range(6)]
    store = log_store(drawn, 8, "leave_one_out", negatives=2)
    before = known(store, "valid")
    assert before.log is not None
    assert set(rows_of(before.log)) == slow(store, "valid")


def test_test_knows_train_and_valid(shop: Store) -> None:
    train, valid = shop.records("train"), shop.records("valid")
    first, both = known(shop, "valid"), known(shop, "test")
    assert first.records is train
    assert len(both.records) == len(train) + len(valid)
    assert both.records.keys == [*train.keys, *valid.keys]
    record = len(train)
    span = slice(both.records.offsets[record], both.records.offsets[record + 1])
    np.testing.assert_array_equal(both.records.items[span], valid.items[: valid.offsets[1]])
    np.testing.assert_array_equal(both.records.history(record), valid.history(0))
    assert first.log is not None
    assert both.log is not None
    assert len(first.log) < len(both.log)


def test_queries_have_no_log(text_store: MakeTexts) -> None:
    rows = {"train": [("红色 dress", 0)], "valid": [("blue", 1), ("red", 0)], "test": [("tea ☕", 1)]}
    store = text_store("queries", rows, ["a", "b"])
    before = known(store, "test")
    assert before.log is None
    assert before.now is None
    assert before.records.queries == ["红色 dress", "blue", "red"]
    assert before.records.offsets.tolist() == [0, 1, 2, 3]


def test_nothing_lies_before_train(shop: Store) -> None:
    with pytest.raises(DataError, match=r"split: 'train' \(rule: .*fix: "):
        known(shop, "train")
