"""Scores that are kept until they are read: the same from memory and from disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from exam_toys import exam, records
from test_scoring import Numbers, Writer, shop

from recft.errors import RecftError
from recft.training import exam as exam_module
from recft.training import kept_scores
from recft.training.exam import model_system
from recft.training.kept_scores import KeptScores
from recft.training.scoring import score


@pytest.mark.parametrize("in_memory", [0, 1 << 28])
def test_scores_come_back_as_they_were(in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_scores, "IN_MEMORY_BYTES", in_memory)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    scores = np.random.default_rng(0).standard_normal((9, 7), dtype=np.float32)
    kept = KeptScores(9, 7)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        kept.add(scores[part])
    for rows in (np.arange(9), np.array([8, 0, 3]), np.zeros(0, int)):
        np.testing.assert_array_equal(kept(rows), scores[rows])
    assert not [name for _, _, names in os.walk(tmp_path) for name in names], "no file is left to be seen"


@pytest.mark.parametrize("reader", ["pairs", "likelihood"])
def test_what_is_kept_on_disk_scores_alike(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, scores, _ = shop()
    asked = exam(own, 30, ["ndcg@10", "coverage@5"], how="pairs", popularity=np.ones(30, int))
    writer = Writer(scores[:4])
    model = Numbers() if reader == "pairs" else writer
    if reader == "likelihood":
        asked = exam(records([[(3, 1.0)]] * 4), 30, ["ndcg@10"], how="pairs")
    before = score(asked, model_system(asked, model))
    monkeypatch.setattr(kept_scores, "IN_MEMORY_BYTES", 0)
    found = score(asked, model_system(asked, model))
    assert found.values == before.values
    np.testing.assert_array_equal(found.top, before.top)


def test_a_likelihood_of_a_large_catalogue_is_asked_for_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam_module, "KEPT_SCORES", 60)
    _, scores, _ = shop()
    asked = exam(records([[(3, 1.0)]] * 5), 30, ["ndcg@10"], how="pairs")
    seen: list[int] = []

    class Blocks(Writer):
        def catalogue(self, bodies: object, tails: object) -> np.ndarray:
            start = sum(seen)
            seen.append(len(bodies))  # type: ignore[arg-type]
            return scores[start : start + seen[-1]]

    system = model_system(asked, Blocks(scores))
    assert seen == [2, 2, 1]
    assert system.block is not None
    np.testing.assert_array_equal(system.block(np.arange(5)), scores[:5])


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept_scores, "IN_MEMORY_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RecftError, match=r"scores: cannot be written .*records x items x 4 bytes.*set eval\.records"):
        KeptScores(9, 7)
