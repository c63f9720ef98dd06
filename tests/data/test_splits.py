"""Splits keep every event in one place and every target after its input, whatever the log looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data.audit import audit_events, audit_queries
from recft.data.judgements import Judgements
from recft.data.labels import event_records, query_records
from recft.data.query_splits import split_queries
from recft.data.splits import Drafts, split_events
from recft.data.store import SPLITS, Log
from recft.errors import DataError, RecipeError
from recft.schema import LabelSettings, SplitSettings

N_ITEMS = 12


def log_of(events: set[tuple[int, int, int]], rated: bool = False) -> Log:
    """A sorted log of (user, time, item)."""
    rows = np.array(sorted(events), np.int64).reshape(-1, 3)
    ratings = (rows[:, 2] * 7 % 5 + 1).astype(np.float32) if rated else None
    return Log(rows[:, 0].astype(np.int32), rows[:, 2].astype(np.int32), rows[:, 1], ratings)


def judgements_of(queries: list[list[tuple[int, float]]]) -> Judgements:
    offsets = np.r_[0, np.cumsum([len(pairs) for pairs in queries])].astype(np.int64)
    flat = [pair for pairs in queries for pair in pairs]
    names = [f"query {number}" for number in range(len(queries))]
    return Judgements(
        names, names, offsets, np.array([i for i, _ in flat], np.int32), np.array([g for _, g in flat], np.float32)
    )


events = st.sets(st.tuples(st.integers(0, 6), st.integers(0, 9), st.integers(0, N_ITEMS - 1)), min_size=1, max_size=60)
shares = st.sampled_from([0.0, 0.1, 0.3])
splits = st.sampled_from(["time", "leave_one_out", "user", "cold_items"])


def drafts_of(log: Log, settings: SplitSettings, graded: bool = False) -> Drafts | None:
    try:
        return split_events(log, settings, graded)
    except DataError as error:
        assert "no record in" in str(error)  # too little data is the one thing that may be said
        return None


@given(events, splits, shares, shares, st.integers(0, 3), st.booleans())
def test_no_event_in_two_splits_and_no_input_after_its_target(
    rows: set[tuple[int, int, int]], by: Any, valid: float, test: float, seed: int, graded: bool
) -> None:
    log = log_of(rows, rated=True)
    drafts = drafts_of(log, SplitSettings(by=by, valid=valid, test=test, seed=seed), graded)
    if drafts is None:
        return
    labels = LabelSettings(at_least=4) if graded else LabelSettings()
    records = event_records(log, drafts, labels, seed, [str(user) for user in range(7)], N_ITEMS)
    met: set[int] = set()
    trained_items: set[int] = set()
    for split in SPLITS:
        spans, there = drafts.splits[split], records[split]
        assert not met & set(spans.rows.tolist())
        met |= set(spans.rows.tolist())
        assert there.starts is not None and there.cuts is not None and there.users is not None
        assert there.times is not None and there.log_times is not None and there.log_items is not None
        for record in range(len(there)):
            start, cut, user, when = (int(a[record]) for a in (there.starts, there.cuts, there.users, there.times))
            history = [(t, i) for u, t, i in sorted(rows) if u == user and t < when]
            if by == "cold_items":
                kept = set(log.items[drafts.kept].tolist())
                history = [(t, i) for t, i in history if i in kept]
            # The history is all that the user did before the target, oldest first, and nothing else.
            assert (
                list(zip(there.log_times[start:cut].tolist(), there.log_items[start:cut].tolist(), strict=True))
                == history
            )
            assert history
            targets = there.items[there.offsets[record] : there.offsets[record + 1]].tolist()
            assert len(targets) == len(set(targets)) > 0
            after = {i for u, t, i in rows if u == user and t >= when}
            assert set(targets) <= after
            if split == "train":
                trained_items |= set(targets) | {i for _, i in history}
    if by == "cold_items":
        for split in ("valid", "test"):
            assert not trained_items & set(records[split].items.tolist())
    audit_events(log, drafts.splits, records, by)


@given(events, shares, shares)
def test_time_is_cut_at_quantiles_of_the_rows(rows: set[tuple[int, int, int]], valid: float, test: float) -> None:
    log = log_of(rows)
    drafts = drafts_of(log, SplitSettings(by="time", valid=valid, test=test))
    if drafts is None:
        return
    ordered = sorted(t for _, t, _ in rows)
    assert drafts.card["test_cut"] == ordered[int(np.floor((len(ordered) - 1) * (1 - test) + 1e-9))]
    cuts = {"train": (-1, drafts.card["valid_cut"]), "valid": (drafts.card["valid_cut"], drafts.card["test_cut"])}
    for split, (low, high) in cuts.items():
        found = {int(log.times[row]) for row in drafts.splits[split].rows}  # type: ignore[index]
        assert all(low < when <= high for when in found)
    # A user is tested once, on the first basket after the cut.
    users = log.users[drafts.splits["test"].cuts]
    assert len(users) == len(set(users.tolist()))
    for user, cut in zip(users.tolist(), drafts.splits["test"].cuts.tolist(), strict=True):
        assert log.times[cut] == min(t for u, t, _ in rows if u == user and t > drafts.card["test_cut"])


def test_leave_one_out_by_hand() -> None:
    log = log_of(
        {
            (0, 1, 0),
            (0, 2, 1),
            (0, 2, 2),
            (0, 3, 3),
            (0, 4, 4),
            (1, 1, 5),
            (2, 1, 6),
            (2, 2, 7),
            (3, 1, 0),
            (3, 2, 1),
            (3, 3, 2),
        }
    )
    drafts = split_events(log, SplitSettings(by="leave_one_out"), graded=False)
    targets = {split: log.items[spans.rows].tolist() for split, spans in drafts.splits.items()}
    assert targets == {"train": [1, 2], "valid": [3, 1], "test": [4, 7, 2]}
    assert [spans.cuts.tolist() for spans in drafts.splits.values()] == [[1], [3, 9], [4, 7, 10]]


def test_ratings_after_the_cut_are_one_record_a_user() -> None:
    log = log_of({(0, t, t) for t in range(10)} | {(1, t, t) for t in range(5, 10)}, rated=True)
    drafts = split_events(log, SplitSettings(by="time", valid=0.2, test=0.2), graded=True)
    test_cut = drafts.card["test_cut"]
    records = event_records(log, drafts, LabelSettings(at_least=4), 0, ["u", "v"], N_ITEMS)["test"]
    assert records.keys == ["u", "v"]
    for record in range(2):
        items = sorted(records.items[records.offsets[record] : records.offsets[record + 1]].tolist())
        assert items == list(range(test_cut + 1, 10))
    assert ((records.items * 7 % 5 + 1 >= 4) == (records.grades == 1)).all()


def test_folds_are_the_protocols_own() -> None:
    judgements = judgements_of([[(number % 5, 1.0), (5, 0.0)] for number in range(23)])
    order = np.arange(23)
    np.random.default_rng(7).shuffle(order)
    for fold in range(5):
        drafts = split_queries(judgements, SplitSettings(by="query", folds=5, fold=fold, seed=7, valid=0.2))
        assert drafts["test"].queries.tolist() == sorted(order[fold::5].tolist())
        together = np.concatenate([draft.queries for draft in drafts.values()])
        assert sorted(together.tolist()) == list(range(23))
        assert len(drafts["valid"].queries) == round(0.2 * (23 - len(drafts["test"].queries)))


@given(
    st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=1, max_size=20),
    st.sampled_from(["query", "cold_items"]),
    st.integers(0, 3),
)
def test_every_judgement_is_in_one_split(queries: list[set[int]], by: Any, seed: int) -> None:
    judgements = judgements_of([[(item, float(item % 3)) for item in sorted(items)] for items in queries])
    try:
        drafts = split_queries(judgements, SplitSettings(by=by, seed=seed, valid=0.2, test=0.3))
    except DataError:
        return
    rows = np.concatenate([draft.rows for draft in drafts.values()])
    assert sorted(rows.tolist()) == list(range(len(judgements.items)))
    records = {split: query_records(judgements, drafts[split], seed, split) for split in SPLITS}
    for split in SPLITS:
        there, draft = records[split], drafts[split]
        for record, query in enumerate(draft.queries.tolist()):
            pairs = slice(there.offsets[record], there.offsets[record + 1])
            wanted = [(int(judgements.items[row]), float(judgements.grades[row])) for row in draft.rows[pairs]]
            assert sorted(zip(there.items[pairs].tolist(), there.grades[pairs].tolist(), strict=True)) == sorted(wanted)
            assert there.keys[record] == judgements.keys[query]
    audit_queries(records, by)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"by": "query"}, "interactions have no queries"),
        ({"by": "time", "folds": 5}, "folds are of queries"),
        ({"by": "time", "valid": 0.5, "test": 0.5}, "their sum is below 1"),
    ],
)
def test_splits_that_events_cannot_have(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        split_events(log_of({(0, 0, 0), (0, 1, 1)}), SplitSettings(**settings), graded=False)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"by": "time"}, "no users or times"),
        ({"by": "query", "folds": 5, "fold": 5}, "a fold from 0 to 4"),
        ({"by": "cold_items", "folds": 5}, "by cold_items"),
    ],
)
def test_splits_that_queries_cannot_have(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        split_queries(judgements_of([[(0, 1.0)]] * 9), SplitSettings(**settings))


def test_too_little_data_names_the_split() -> None:
    with pytest.raises(DataError, match=r"no record in train, valid, test \(train 0, valid 0, test 0\)"):
        split_events(log_of({(0, 0, 0), (1, 1, 1)}), SplitSettings(by="time"), graded=False)
