"""Each kind of leakage, made on purpose, stops the run; what is no leakage passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recft.data.audit import audit_events, audit_order, audit_queries, order_auc
from recft.data.labels import event_records
from recft.data.splits import Drafts, Spans, split_events
from recft.data.store import SPLITS, Log, Records
from recft.errors import DataError
from recft.schema import LabelSettings, SplitSettings


def a_log() -> Log:
    rng = np.random.default_rng(3)
    rows = np.unique(np.c_[rng.integers(0, 50, 1500), rng.integers(0, 60, 1500), rng.integers(0, 40, 1500)], axis=0)
    return Log(rows[:, 0].astype(np.int32), rows[:, 2].astype(np.int32), rows[:, 1].astype(np.int64), None)


def prepared(by: Any = "time", negatives: int | None = None) -> tuple[Log, Drafts, dict[Any, Records]]:
    log = a_log()
    drafts = split_events(log, SplitSettings(by=by), graded=False)
    labels = LabelSettings(negatives=negatives)
    return log, drafts, event_records(log, drafts, labels, 0, [str(user) for user in range(50)], 40)


def of_queries(queries: list[str], items: list[list[int]], grades: list[list[float]] | None = None) -> Records:
    offsets = np.r_[0, np.cumsum([len(part) for part in items])].astype(np.int64)
    flat = np.array([item for part in items for item in part], np.int32)
    marks = (
        np.ones(len(flat), np.float32) if grades is None else np.array([g for part in grades for g in part], np.float32)
    )
    return Records(queries, queries, None, None, None, None, offsets, flat, marks)


@pytest.mark.parametrize("by", ["time", "leave_one_out", "user", "cold_items"])
def test_honest_splits_pass(by: Any) -> None:
    log, drafts, records = prepared(by, negatives=4)
    audit_events(log, drafts.splits, records, by)
    audit_order(records)


def test_an_event_in_two_splits_is_found() -> None:
    log, drafts, records = prepared()
    test = drafts.splits["test"]
    rows = test.rows.copy()
    rows[0] = drafts.splits["train"].rows[0]
    spans = {**drafts.splits, "test": Spans(test.starts, test.cuts, test.ends, test.offsets, rows)}
    with pytest.raises(DataError, match=r"leakage audit.*target in train and in test; 1 such"):
        audit_events(log, spans, records, "time")


@pytest.mark.parametrize("split", SPLITS)
def test_an_input_that_holds_its_target_is_found(split: Any) -> None:
    log, drafts, records = prepared()
    there = records[split]
    assert there.cuts is not None
    late = there.cuts.copy()
    late[3] += 1  # the first event of the target's own basket
    with pytest.raises(DataError, match=f"in {split} has an input at or after its target"):
        audit_events(log, drafts.splits, {**records, split: replace(there, cuts=late)}, "time")


def test_a_log_out_of_order_is_found() -> None:
    log, drafts, records = prepared()
    wrong = Log(log.users, log.items, log.times[::-1].copy(), None)
    with pytest.raises(DataError, match="the log is not in order"):
        audit_events(wrong, drafts.splits, records, "time")


def test_training_after_the_cut_is_found() -> None:
    log, drafts, records = prepared()
    train = records["train"]
    assert train.times is not None
    times = train.times.copy()
    times[-1] = 10**9
    with pytest.raises(DataError, match="in train is not before valid"):
        audit_events(log, drafts.splits, {**records, "train": replace(train, times=times)}, "time")


def test_a_user_in_two_splits_is_found() -> None:
    log, drafts, records = prepared("user")
    test, train = records["test"], records["train"]
    assert test.users is not None and train.users is not None
    users = test.users.copy()
    users[0] = train.users[0]
    with pytest.raises(DataError, match="user number"):
        audit_events(log, drafts.splits, {**records, "test": replace(test, users=users)}, "user")


def test_a_cold_item_in_training_is_found() -> None:
    log, drafts, records = prepared("cold_items")
    cold = records["test"].items[0]
    train = records["train"]
    targets = train.items.copy()
    targets[0] = cold
    with pytest.raises(DataError, match=f"item number {cold} in train and in test"):
        audit_events(log, drafts.splits, {**records, "train": replace(train, items=targets)}, "cold_items")
    assert train.log_items is not None
    histories = train.log_items.copy()
    histories[0] = cold
    with pytest.raises(DataError, match=f"item number {cold} in histories and in test"):
        audit_events(log, drafts.splits, {**records, "train": replace(train, log_items=histories)}, "cold_items")


def test_one_normalised_query_in_two_folds_is_found() -> None:
    records: dict[Any, Records] = {
        "train": of_queries(["red chair"], [[0]]),
        "valid": of_queries(["desk"], [[0]]),
        "test": of_queries(["Ｒｅｄ  CHAIR"], [[1]]),
    }
    with pytest.raises(DataError, match=r"'red chair' and 'Ｒｅｄ  CHAIR' in train and in test"):
        audit_queries(records, "query")
    records["test"] = of_queries(["blue chair"], [[0]])
    audit_queries(records, "query")  # the same product under two queries is none
    with pytest.raises(DataError, match="item number 0 in train and in valid"):
        audit_queries(records, "cold_items")


@pytest.mark.parametrize("last", [False, True])
def test_an_order_that_tells_the_grade_is_found(last: bool) -> None:
    log, drafts, records = prepared(negatives=4)
    train = records["train"]
    owner = np.repeat(np.arange(len(train)), np.diff(train.offsets))
    order = np.lexsort((train.grades if last else -train.grades, owner))
    told = replace(train, items=train.items[order], grades=train.grades[order])
    with pytest.raises(DataError, match=r"AUC [01]\.00 of a candidate's place in train"):
        audit_order({**records, "train": told})
    audit_events(log, drafts.splits, {**records, "train": told}, "time")


def test_item_numbers_that_tell_the_grade_are_found() -> None:
    rng = np.random.default_rng(0)
    items = [rng.permutation(10).tolist() for _ in range(120)]
    grades = [[float(item < 3) for item in part] for part in items]
    told = of_queries([str(number) for number in range(120)], items, grades)
    empty = of_queries([], [])
    with pytest.raises(DataError, match="of item numbers in train"):
        audit_order({"train": told, "valid": empty, "test": empty})


def test_order_auc_equals_counting_pairs() -> None:
    rng = np.random.default_rng(1)
    items = [rng.permutation(8)[: rng.integers(1, 8)].tolist() for _ in range(40)]
    grades = [rng.integers(0, 3, len(part)).astype(float).tolist() for part in items]
    records = of_queries([str(number) for number in range(40)], items, grades)
    expected = []
    for part, marks in zip(items, grades, strict=True):
        high = [item for item, mark in zip(part, marks, strict=True) if mark > np.mean(marks) + 1e-6]
        low = [item for item in part if item not in high]
        if high and low:
            expected.append(np.mean([one > other for one in high for other in low]))
    auc, _, mixed = order_auc(records, records.items)
    assert mixed == len(expected)
    assert auc == pytest.approx(np.mean(expected))
