"""The leakage audit: it reads what is about to be stored, trusts nothing that made it, and fails the run.

Leakage is an event in two splits, an input that holds an event at or after its target, a query in two folds, a held
out item seen in training, and an order or numbering that gives the target away. Repeat purchases are none, nor is
text that products share: both are there when the model serves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from recft.data.ledger import short
from recft.data.order import CACHED_ROWS
from recft.data.splits import Spans
from recft.data.store import SPLITS, Log, Records, Split
from recft.data.text import normalise
from recft.errors import DataError, problem

__all__ = ["audit_events", "audit_order", "audit_queries", "audit_texts", "order_auc"]

_FEWEST_MIXED_RECORDS = 30
_ORDER_BOUND = 0.1
# Item numbers may well go with grades (old films, classics); only where they all but tell the grade is it leakage.
_NUMBER_BOUND = 0.48


def audit_events(log: Log, spans: Mapping[Split, Spans], records: Mapping[Split, Records], by: str) -> None:
    """Passes where no record of events sees its future or another split's target.

    Raises:
        DataError: with the first place that leaks.
    """
    _sorted_log(log)
    targeted = {split: np.zeros(len(log), bool) for split in SPLITS}
    for split in SPLITS:
        targeted[split][spans[split].rows] = True
    for one, other in combinations(SPLITS, 2):
        shared = np.flatnonzero(targeted[one] & targeted[other])
        if len(shared):
            raise _leak(
                _event(log, int(shared[0])), f"target in {one} and in {other}", "an event is in one split", len(shared)
            )
    for split in SPLITS:
        _strictly_past(split, records[split])
    if by == "time":
        _in_order_of_time(records)
    if by == "user":
        for one, other in combinations(SPLITS, 2):
            _disjoint(_users(records[one]), _users(records[other]), "user", one, other)
    if by == "cold_items":
        _cold(records)


def audit_queries(records: Mapping[Split, Records], by: str) -> None:
    """Passes where no normalised query, or by cold items no judged item, is in two splits.

    Raises:
        DataError: with the first place that leaks.
    """
    if by == "cold_items":
        _cold(records)
        return
    keys = {split: {normalise(query): query for query in records[split].queries or []} for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        shared = sorted(keys[one].keys() & keys[other].keys())
        if shared:
            value = f"{keys[one][shared[0]]!r} and {keys[other][shared[0]]!r}"
            raise _leak(value, f"in {one} and in {other}", "one normalised query is in one fold", len(shared))


def audit_texts(records: Mapping[Split, Records], given: Collection[Split], grouped: bool) -> None:
    """Passes where no text, or group where texts have one, is in two of the splits that recft has cut.

    given: splits that are files of the user's own; what they share with others is told on the card.

    Raises:
        DataError: with the first place that leaks.
    """
    keys: dict[Split, dict[str, str]] = {}
    for split in SPLITS:
        there = records[split]
        names = there.keys if grouped else [normalise(text) for text in there.queries or []]
        keys[split] = dict(zip(names, there.keys if grouped else there.queries or [], strict=True))
    for one, other in combinations([split for split in SPLITS if split not in given], 2):
        shared = sorted(keys[one].keys() & keys[other].keys())
        if shared:
            rule = "one group is in one split" if grouped else "one normalised text is in one split"
            raise _leak(short(keys[one][shared[0]]), f"in {one} and in {other}", rule, len(shared))


def audit_order(records: Mapping[Split, Records], numbers: bool = True) -> dict[str, dict[str, float | int | None]]:
    """How far place and item number tell the grade, split by split: AUC within records, 0.5 where they do not.

    numbers: whether numbers that all but tell the grade are leakage. Of replies they are not: one that is always
        rejected keeps its low number.

    Raises:
        DataError: the order of the candidates, or their numbers, give the target away.
    """
    card: dict[str, dict[str, float | int | None]] = {}
    for split in SPLITS:
        there = records[split]
        if not len(there.grades) or there.grades.min() == there.grades.max():
            card[split] = {"mixed_records": 0, "place_auc": None, "item_number_auc": None}
            continue
        place, spread, mixed = order_auc(there, np.arange(len(there.items)))
        by_number, _, _ = order_auc(there, there.items)
        if mixed >= _FEWEST_MIXED_RECORDS:
            off = abs(place - 0.5)
            # With few pairs a record the mean itself is uncertain: four standard errors are no accident.
            if off > _ORDER_BOUND and off > 4 * spread:
                raise _leak(f"AUC {place:.2f}", f"of a candidate's place in {split}", f"0.5 ± {_ORDER_BOUND}", mixed)
            if numbers and abs(by_number - 0.5) > _NUMBER_BOUND:
                raise _leak(f"AUC {by_number:.2f}", f"of item numbers in {split}", f"0.5 ± {_NUMBER_BOUND}", mixed)
        card[split] = {
            "mixed_records": mixed,
            "place_auc": round(place, 4) if mixed else None,
            "item_number_auc": round(by_number, 4) if mixed else None,
        }
    return card


def order_auc(records: Records, values: NDArray[np.integer]) -> tuple[float, float, int]:
    """The mean over records of AUC(values; grade above the record's mean), its standard error, and how many count.

    values: (P,) one number a candidate, all different within a record. Records of one grade do not count.
    """
    sizes = np.diff(records.offsets)
    if not len(values) or records.grades.min() == records.grades.max():
        return 0.5, 0.0, 0
    owner = np.repeat(np.arange(len(sizes)), sizes)
    means = np.bincount(owner, records.grades, len(sizes)) / np.maximum(sizes, 1)
    yes = records.grades > means[owner] + 1e-6
    order = np.lexsort((values, owner))
    rank = np.empty(len(values))
    rank[order] = np.arange(len(values)) - records.offsets[owner[order]] + 1
    n_yes = np.bincount(owner, yes, len(sizes))
    n_no = sizes - n_yes
    mixed = (n_yes > 0) & (n_no > 0)
    wins = np.bincount(owner, rank * yes, len(sizes)) - n_yes * (n_yes + 1) / 2
    aucs = wins[mixed] / (n_yes * n_no)[mixed]
    if not len(aucs):
        return 0.5, 0.0, 0
    return float(aucs.mean()), float(aucs.std() / np.sqrt(len(aucs))), len(aucs)


def _sorted_log(log: Log) -> None:
    later = (log.users[1:] == log.users[:-1]) & (log.times[1:] < log.times[:-1])
    if later.any() or (log.users[1:] < log.users[:-1]).any():
        raise _leak(
            "the log", "is not in order", "histories are spans of a log sorted by user and time", int(later.sum())
        )


def _strictly_past(split: Split, records: Records) -> None:
    """Every history is its own user's, and all of it lies before the target."""
    if records.starts is None or records.cuts is None or records.times is None or not len(records):
        return
    if records.log_times is None:
        return
    empty = records.cuts <= records.starts
    if empty.any():
        raise _leak(
            records.keys[int(empty.argmax())],
            f"in {split} has no history",
            "every input holds an event",
            int(empty.sum()),
        )
    # Sorted by time within a user: the last event of a history is its latest.
    late = np.empty(len(records), bool)
    for start in range(0, len(records), CACHED_ROWS):
        part = slice(start, start + CACHED_ROWS)
        late[part] = records.log_times[records.cuts[part] - 1] >= records.times[part]
    if late.any():
        value = f"user {records.keys[int(late.argmax())]}"
        raise _leak(
            value,
            f"in {split} has an input at or after its target",
            "histories end before their targets",
            int(late.sum()),
        )


def _in_order_of_time(records: Mapping[Split, Records]) -> None:
    spans = [(split, records[split].times) for split in SPLITS if len(records[split])]
    for (one, before), (other, after) in pairwise(spans):
        if before is not None and after is not None and before.max() >= after.min():
            raise _leak(
                f"time {before.max()}", f"in {one} is not before {other}", "splits by time follow each other", 1
            )


def _cold(records: Mapping[Split, Records]) -> None:
    """Items held out for one split are met in no other, as target or in a history."""
    for one, other in combinations(SPLITS, 2):
        # Sampled negatives are items of training that a held out record was tested against; targets count.
        _disjoint(_targets(records[one]), _targets(records[other]), "item", one, other)
    log_items = records["train"].log_items
    if log_items is not None:
        for split in ("valid", "test"):
            _disjoint(np.unique(log_items), _targets(records[split]), "item", "histories", split)


def _targets(records: Records) -> NDArray[np.integer]:
    items = records.items if records.queries is not None else records.items[records.grades > 0]
    return np.unique(items)


def _users(records: Records) -> NDArray[np.integer]:
    return np.unique(records.users) if records.users is not None else np.empty(0, np.int32)


def _disjoint(one: NDArray[np.integer], other: NDArray[np.integer], what: str, here: str, there: str) -> None:
    shared = np.intersect1d(one, other)
    if len(shared):
        raise _leak(
            f"{what} number {shared[0]}", f"in {here} and in {there}", f"held out {what}s are apart", len(shared)
        )


def _event(log: Log, row: int) -> str:
    return f"event of user number {log.users[row]}, item number {log.items[row]}, time {log.times[row]}"


def _leak(value: str, where: str, rule: str, count: int) -> DataError:
    return DataError(
        problem(
            "data.split (leakage audit)",
            f"{value} {where}; {count:,} such",
            rule,
            "nothing was written; if the files are sound this is a fault of recft: report it with the recipe",
        )
    )
