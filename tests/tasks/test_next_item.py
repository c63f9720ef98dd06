"""Next item by likelihood: the list that goes on, every position of it, and what the window does to it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from history_toys import ITEMS, RECORDS

from recft import registry
from recft.data.store import Records
from recft.tasks._history import history_lines
from recft.training.examples import example_records

TASK = registry.load("recft.tasks", "next-item")
N_EVENTS = 23


def positions() -> Records:
    """Every position of one user's log, and one record of another's."""
    cuts = np.arange(1, N_EVENTS)
    n = len(cuts) + 1
    return replace(
        RECORDS,
        keys=[*["u0"] * (n - 1), "u1"],
        users=np.array([1] * (n - 1) + [0], np.int32),
        starts=np.array([0] * (n - 1) + [N_EVENTS]),
        cuts=np.array([*cuts, N_EVENTS + 1]),
        times=np.arange(n),
        offsets=np.arange(n + 1),
        items=np.arange(n, dtype=np.int32) % len(ITEMS),
        grades=np.ones(n, np.float32),
        log_items=np.arange(N_EVENTS + 2, dtype=np.int32) % len(ITEMS),
        log_times=np.arange(N_EVENTS + 2),
        log_ratings=None,
    )


def test_a_later_list_begins_with_the_earlier_one() -> None:
    records = positions()
    lists = [history_lines(records, row, ITEMS, 100) for row in range(N_EVENTS - 1)]
    assert lists[3].split("\n") == [ITEMS[0], ITEMS[1], ITEMS[2], ITEMS[3]]
    for earlier, later in pairwise(lists):
        assert later.startswith(earlier + "\n")


@pytest.mark.parametrize("last", [1, 4, 7])
def test_a_stepped_window_holds_from_so_many_to_twice_as_many_and_moves_by_whole_windows(last: int) -> None:
    records = positions()
    anew = 0
    for row in range(N_EVENTS - 1):
        now = history_lines(records, row, ITEMS, last, stepped=True).split("\n")
        assert min(row + 1, last) <= len(now) < 2 * last
        assert now == [ITEMS[event % len(ITEMS)] for event in range(row + 1)][-len(now) :]
        before = history_lines(records, row - 1, ITEMS, last, stepped=True).split("\n") if row else []
        anew += now[: len(before)] != before or len(now) <= len(before)
    assert anew == (N_EVENTS - 1) // last - 1


def test_an_example_is_a_user_with_all_positions_and_the_loss_that_of_all_prompts() -> None:
    records = positions()
    config = TASK.Config(score_by="likelihood", positions="every", history_items=100)
    examples = example_records(TASK, config, records)
    assert len(examples) == 2
    assert examples.records(np.array([1])).tolist() == list(range(N_EVENTS - 1))
    assert examples.records(np.array([0, 1])).tolist() == [N_EVENTS - 1, *range(N_EVENTS - 1)]
    assert len(example_records(TASK, TASK.Config(score_by="likelihood"), records)) == len(records)
    rows = examples.records(np.array([1, 0]))
    batch = TASK.batch(config, records, rows, ITEMS, np.random.default_rng(0))
    prompts = TASK.pairs(config, records, rows, ITEMS)
    assert [batch.texts[place] for place in batch.arrays["text"]] == prompts
    outputs = torch.stack([torch.arange(len(batch.texts)).float(), torch.arange(len(batch.texts)) % 3 + 1.0], dim=1)
    found = outputs[batch.arrays["text"]]
    assert float(TASK.loss(config, outputs, batch)) == pytest.approx(float(-found[:, 0].sum() / found[:, 1].sum()))


def test_every_item_of_a_basket_is_a_target() -> None:
    config = TASK.Config(score_by="likelihood", positions="every")
    batch = TASK.batch(config, RECORDS, np.arange(2), ITEMS, np.random.default_rng(0))
    assert [batch.texts[place][1] for place in batch.arrays["text"]] == [ITEMS[4], ITEMS[1], ITEMS[0]]
    one = TASK.batch(TASK.Config(score_by="likelihood"), RECORDS, np.arange(2), ITEMS, np.random.default_rng(0))
    assert len(one.arrays["text"]) == 2
