"""Sampled negatives: by popularity, never bought by then, the same for every model."""

from __future__ import annotations

import numpy as np
import pytest

from recft.data import labels, order, splits
from recft.data.labels import event_records
from recft.data.splits import split_events
from recft.data.store import SPLITS, Log, Records, Split
from recft.errors import RecipeError
from recft.schema import LabelSettings, SplitSettings


def a_log(seed: int = 0, users: int = 60, items: int = 30, rows: int = 2000) -> Log:
    rng = np.random.default_rng(seed)
    popular = rng.zipf(1.5, rows) % items
    frame = np.unique(np.c_[rng.integers(0, users, rows), rng.integers(0, 40, rows), popular], axis=0)
    return Log(frame[:, 0].astype(np.int32), frame[:, 2].astype(np.int32), frame[:, 1].astype(np.int64), None)


def sampled(log: Log, items: int = 30, negatives: int = 4, seed: int = 0) -> dict[Split, Records]:
    drafts = split_events(log, SplitSettings(by="time", seed=seed), graded=False)
    names = [str(user) for user in range(2000)]
    return event_records(log, drafts, LabelSettings(negatives=negatives), seed, names, items)


def test_negatives_were_not_bought_by_then_and_no_item_stands_twice() -> None:
    log = a_log()
    for split, records in sampled(log).items():
        assert records.users is not None and records.times is not None and records.cuts is not None
        short = 0
        for record in range(len(records)):
            pairs = slice(records.offsets[record], records.offsets[record + 1])
            items, grades = records.items[pairs], records.grades[pairs]
            mine = log.users == records.users[record]
            basket = set(log.items[mine & (log.times == records.times[record])].tolist())
            bought = set(log.items[mine & (log.times <= records.times[record])].tolist())
            assert set(items[grades == 1].tolist()) == basket
            negatives = items[grades == 0].tolist()
            assert len(negatives) == len(set(negatives))
            assert not bought & set(negatives)
            assert len(negatives) <= 4 * len(basket)
            short += len(negatives) < 4 * len(basket)
        # Few users have bought so much that too little is left.
        assert short < len(records) / 2, split


def test_the_draw_is_fixed_by_the_seed_and_follows_popularity() -> None:
    rng = np.random.default_rng(0)
    rows = np.c_[rng.integers(0, 2000, 8000), rng.integers(0, 40, 8000), 300 * rng.random(8000) ** 2].astype(np.int64)
    rows = np.unique(rows, axis=0)
    log = Log(rows[:, 0].astype(np.int32), rows[:, 2].astype(np.int32), rows[:, 1], None)
    one, again, other = (sampled(log, items=300, seed=seed) for seed in (0, 0, 1))
    for split in SPLITS:
        assert np.array_equal(one[split].items, again[split].items)
        assert np.array_equal(one[split].grades, again[split].grades)
    assert not np.array_equal(one["train"].items, other["train"].items)
    drawn = np.bincount(one["train"].items[one["train"].grades == 0], minlength=300)
    counts = np.bincount(log.items, minlength=300)
    assert np.corrcoef(drawn, counts)[0, 1] > 0.8
    assert not drawn[counts == 0].any()


def test_whoever_bought_everything_gets_what_is_left() -> None:
    # User 0 buys items 0 to 4, one at a time; user 1 makes item 5 known. One negative is all there is.
    rows = [(0, t, t) for t in range(5)] + [(1, 0, 5), (1, 1, 0)]
    array = np.array(sorted(rows))
    log = Log(array[:, 0].astype(np.int32), array[:, 2].astype(np.int32), array[:, 1].astype(np.int64), None)
    drafts = split_events(log, SplitSettings(by="leave_one_out", valid=0, test=0.1), graded=False)
    records = event_records(log, drafts, LabelSettings(negatives=4), 0, ["u", "v"], 6)["test"]
    pairs = dict(zip(records.items[:2].tolist(), records.grades[:2].tolist(), strict=True))
    assert records.offsets.tolist()[:2] == [0, 2]
    assert pairs == {4: 1.0, 5: 0.0}


def test_yes_and_no_come_from_one_source() -> None:
    log = a_log()
    drafts = split_events(log, SplitSettings(by="time"), graded=False)
    names = [str(user) for user in range(60)]
    with pytest.raises(RecipeError, match="one source"):
        event_records(log, drafts, LabelSettings(at_least=4, negatives=4), 0, names, 30)
    with pytest.raises(RecipeError, match="needs ratings"):
        event_records(log, drafts, LabelSettings(at_least=4), 0, names, 30)


def test_pairs_do_not_stand_by_grade() -> None:
    records = sampled(a_log())["train"]
    firsts = records.grades[records.offsets[:-1]]
    assert 0.1 < firsts.mean() < 0.35  # one yes in five


def test_records_are_the_same_however_they_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    log = a_log()
    log = Log(log.users, log.items, log.times // 4, None)  # several targets at a time
    whole = sampled(log, negatives=2)
    for module in (labels, order, splits):
        monkeypatch.setattr(module, "CACHED_ROWS", 7)
    parts = sampled(log, negatives=2)
    for split in SPLITS:
        assert (np.diff(whole[split].offsets) > 3).any()
        for name in ("starts", "cuts", "times", "offsets", "items", "grades", "users"):
            assert np.array_equal(getattr(whole[split], name), getattr(parts[split], name)), name
