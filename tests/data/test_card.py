"""The card's shares beside a count that goes through records one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recft.data.card import split_card
from recft.data.labels import event_records
from recft.data.splits import split_events
from recft.data.store import SPLITS, Log, Records
from recft.schema import LabelSettings, SplitSettings

N_ITEMS = 30


def made(by: Any, labels: LabelSettings) -> tuple[Log, dict[Any, Records]]:
    """A log with baskets and repeats, and its records."""
    rng = np.random.default_rng(5)
    events = {(int(user), int(time), int(item)) for user, time, item in rng.integers(0, [40, 50, N_ITEMS], (1500, 3))}
    users, times, items = np.array(sorted(events)).T
    ratings = rng.integers(1, 6, len(users)).astype(np.float32)
    log = Log(users.astype(np.int32), items.astype(np.int32), times.astype(np.int64), ratings)
    graded = labels.at_least is not None
    drafts = split_events(log, SplitSettings(by=by, valid=0.2, test=0.2), graded)
    left = log if drafts.kept.all() else log.kept(drafts.kept)
    return left, event_records(log, drafts, labels, 0, [f"用户{user}" for user in range(40)], N_ITEMS)


@pytest.mark.parametrize("labels", [LabelSettings(), LabelSettings(negatives=3), LabelSettings(at_least=3)])
@pytest.mark.parametrize("by", ["time", "leave_one_out", "user", "cold_items"])
def test_shares_are_those_of_a_slow_count(by: Any, labels: LabelSettings) -> None:
    log, records = made(by, labels)
    card = split_card(records, N_ITEMS, log)
    train = records["train"]
    seen = set(train.items[train.grades > 0].tolist())
    seen.update(item for record in range(len(train)) for item in train.history(record).tolist())
    known = set(train.users.tolist() if train.users is not None else [])
    for split in SPLITS:
        there = records[split]
        repeats, cold = [], []
        for record, (start, stop) in enumerate(zip(there.offsets, there.offsets[1:], strict=False)):
            history = set(there.history(record).tolist())
            taken = there.items[start:stop][there.grades[start:stop] > 0].tolist()
            repeats += [item in history for item in taken]
            cold += [item not in seen for item in taken]
        assert there.users is not None
        assert card[split]["repeat_share"] == (round(float(np.mean(repeats)), 4) if repeats else None)
        assert card[split]["cold_item_share"] == (round(float(np.mean(cold)), 4) if cold else None)
        assert card[split]["cold_user_share"] == round(np.mean([user not in known for user in there.users.tolist()]), 4)
