"""Rankings block by block, against sorting every record's candidates whole; and blocks that several systems read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exam_toys import exam, table
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import Numbers, shop

from recft.metrics._ranks import gains
from recft.training import exam as exam_module
from recft.training.exam import System, classic_system, model_system
from recft.training.fusion import Fusion
from recft.training.scoring import Scored, score, score_all

NAMES = ["ndcg@10", "mrr@3", "judged@5", "coverage@4", "hr@2"]


def slow(asked: Any, scores: np.ndarray, invalid: np.ndarray | None) -> tuple[list[Any], ...]:
    """Places of relevant items, candidates and first places of each record, one by one."""
    own, n_items = asked.records, len(asked.items)
    worth = gains(own.grades, asked.settings.gain)
    greater, tied, pairs, counts, tops = [], [], [], [], []
    for row in range(len(own)):
        mine = range(own.offsets[row], own.offsets[row + 1])
        candidates = set(range(n_items))
        if asked.candidates != "all":
            drawn = np.random.default_rng([row, 3]).permutation(n_items)[: int(asked.candidates.split()[1])]
            candidates = {*drawn.tolist(), *own.items[mine.start : mine.stop].tolist()}
        if asked.settings.mask_history:
            candidates -= set(own.history(row).tolist())
        shown = [(float(scores[row, item]), item) for item in candidates]
        if invalid is not None:
            shown += [(float(one), n_items + n) for n, one in enumerate(invalid[row]) if np.isfinite(one)]
        for pair in mine:
            if worth[pair] > 0 and own.items[pair] in candidates:
                value = float(scores[row, own.items[pair]])
                greater.append(sum(other > value for other, _ in shown))
                tied.append(sum(other == value for other, _ in shown))
                pairs.append(pair)
        counts.append(len(shown))
        order = sorted((-value, item) for value, item in shown if np.isfinite(value))[: asked.top]
        top = [item if item < n_items else -2 for _, item in order]
        tops.append(top + [-1] * (min(asked.top, n_items) - len(top)))
    return greater, tied, pairs, counts, tops


@given(
    seed=st.integers(0, 10_000),
    candidates=st.sampled_from(["all", "sampled 5", "sampled 29", "sampled 99"]),
    mask=st.booleans(),
    writes=st.booleans(),
    values=st.sampled_from([3, 1000]),
    block=st.sampled_from([1, 70, 10_000]),
)
@settings(deadline=None)
def test_every_place_is_the_slow_one(
    seed: int, candidates: str, mask: bool, writes: bool, values: int, block: int
) -> None:
    own, _, _ = shop(n_records=5, seed=seed)
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, values, (5, 30)) / 8).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    invalid = np.where(rng.random((5, 2)) < 0.5, -np.inf, rng.integers(0, values, (5, 2)) / 8) if writes else None
    asked = exam(own, 30, NAMES, candidates=candidates, settings={"mask_history": mask}, popularity=np.ones(30, int))
    system = System(lambda rows: scores[rows], lambda rows: rows, invalid=invalid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam_module, "BLOCK_SCORES", block)
        patch.setattr(exam_module, "LEAST_ROWS", 1)
        found = score(asked, system)
    greater, tied, pairs, counts, top = slow(asked, scores, invalid)
    assert found.ranks is not None and found.top is not None
    assert (found.ranks.greater.tolist(), found.ranks.tied.tolist()) == (greater, tied)
    assert (found.ranks.pairs.tolist(), found.ranks.n_candidates.tolist()) == (pairs, counts)
    assert found.top.tolist() == top


def same(one: Scored, other: Scored) -> None:
    assert one.values == pytest.approx(other.values, nan_ok=True)
    np.testing.assert_array_equal(one.top, other.top)
    np.testing.assert_array_equal(one.top_scores, other.top_scores)


def test_a_block_that_several_systems_read_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, scores, _ = shop(n_records=8)
    asked = exam(own, 30, ["ndcg@10", "mrr@10"], settings={"mask_history": True})
    calls: list[int] = []

    def classic(_: Any, rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        found: np.ndarray = scores[rows]
        return found

    systems = {"classic": classic_system(asked, classic), "tuned": model_system(asked, Numbers())}
    weights = {"classic": 0.5, "tuned": 1.0, "classic:rank": 0.2, "tuned:rank": -0.1}
    systems["fused"] = Fusion(weights, 0.0, 8).system(asked, systems)
    systems["without"] = Fusion({"classic": 1.0, "classic:rank": 0.3}, 0.0, 8).system(asked, systems)
    alone = {name: score(asked, system) for name, system in systems.items()}
    monkeypatch.setattr(exam_module, "BLOCK_SCORES", 60)
    monkeypatch.setattr(exam_module, "LEAST_ROWS", 1)
    calls.clear()
    together = score_all(asked, systems)
    assert calls == [2, 2, 2, 2]
    assert list(together) == list(systems)
    for name, found in together.items():
        same(found, alone[name])


def test_a_block_is_not_remembered_for_other_rows() -> None:
    own, scores, _ = shop(n_records=8)
    system = classic_system(exam(own, 30, ["ndcg@10"]), lambda _, rows: scores[rows])
    assert system.block is not None
    rows = np.array([1, 2])
    np.testing.assert_array_equal(system.block(rows), scores[rows])
    np.testing.assert_array_equal(system.block(np.array([3, 2])), scores[[3, 2]])
    np.testing.assert_array_equal(system.block(rows), scores[rows])


def test_scores_of_a_table_are_left_as_they_are() -> None:
    own, scores, _ = shop()
    kept = scores.copy()
    kept.flags.writeable = False
    asked = exam(own, 30, ["ndcg@10"], settings={"mask_history": True})
    whole = System(lambda rows: kept, table(own, kept).pairs)
    same(score(asked, whole), score(asked, table(own, scores)))
    np.testing.assert_array_equal(scores, kept)
