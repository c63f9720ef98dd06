"""Exams without a model: a fake task, records written down, and systems that are tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from recft.data.store import Records
from recft.schema import EvalSettings
from recft.training.exam import Exam, System


def records(
    pairs: Sequence[Sequence[tuple[int, float]]],
    keys: Sequence[str] | None = None,
    histories: Sequence[Sequence[int]] | None = None,
) -> Records:
    """Records of (item, grade) pairs, with histories where these are given."""
    flat = [pair for own in pairs for pair in own]
    events = histories if histories is not None else [[] for _ in pairs]
    bounds = np.cumsum([0, *map(len, events)]).astype(np.int64)
    return Records(
        keys=list(keys) if keys is not None else [f"k{row}" for row in range(len(pairs))],
        queries=[f"query {row} 椅子" for row in range(len(pairs))],
        users=None,
        starts=bounds[:-1],
        cuts=bounds[1:],
        times=None,
        offsets=np.cumsum([0, *map(len, pairs)]).astype(np.int64),
        items=np.array([item for item, _ in flat], np.int32),
        grades=np.array([grade for _, grade in flat], np.float32),
        log_items=np.array([item for own in events for item in own], np.int32),
    )


@dataclass(frozen=True)
class FakeTask:
    """A task that reads `context 3` and `item 5` by their numbers."""

    output: str = "ranking"
    how: str = "towers"

    def reads(self, config: Any) -> str:
        return self.how

    def contexts(self, config: Any, own: Records, rows: np.ndarray, items: Sequence[str]) -> list[str]:
        return [f"context {own.keys[row]}" for row in rows]

    def candidates(self, config: Any, items: Sequence[str]) -> list[str]:
        return list(items)

    def pairs(self, config: Any, own: Records, rows: np.ndarray, items: Sequence[str]) -> list[tuple[str, str]]:
        return [
            (f"context {own.keys[row]}", items[item])
            for row in rows
            for item in own.items[own.offsets[row] : own.offsets[row + 1]]
        ]

    def scores(self, config: Any, outputs: np.ndarray) -> np.ndarray:
        return outputs if self.output in ("classes", "likelihood") else outputs[:, 0]


def exam(own: Records, n_items: int, names: Sequence[str], output: str = "ranking", **more: Any) -> Exam:
    """An exam of a fake task over items `item 0`, `item 1` and so on."""
    how = more.pop("how", "towers")
    settings = EvalSettings(**more.pop("settings", {}))
    items = [f"item {number}" for number in range(n_items)]
    task: Any = FakeTask(output, how)
    return Exam(task, SimpleNamespace(), own, items, tuple(names), settings, **more)  # type: ignore[arg-type]


def table(own: Records, scores: np.ndarray, probabilities: bool = True) -> System:
    """The system that scores as the table (R, N) says."""

    def pairs(rows: np.ndarray) -> np.ndarray:
        parts = [scores[row, own.items[own.offsets[row] : own.offsets[row + 1]]] for row in rows]
        return np.concatenate(parts) if parts else np.zeros(0)

    return System(lambda rows: scores[rows], pairs, probabilities)
