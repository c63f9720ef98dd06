"""Small prepared data in memory, divided and labelled by the package's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest

from recft.data.labels import event_records
from recft.data.splits import split_events
from recft.data.store import Log, Records, Split, Store, Table
from recft.schema import LabelSettings, SplitSettings

Event = tuple[int, int, float, float]
"""User, item, day, rating."""


@dataclass(frozen=True)
class ToyStore:
    """What a baseline may ask of a store."""

    table: Table
    item_ids: list[str]
    item_texts: list[str]
    card: dict[str, Any]
    log: Log | None
    splits: dict[str, Records]

    def records(self, split: Split) -> Records:
        return self.splits[split]


MakeLog = Callable[..., Store]
MakeTexts = Callable[..., Store]
MakeEvents = Callable[..., list[Event]]


def _log_store(
    events: Sequence[Event],
    n_items: int,
    by: str = "time",
    share: float = 0.2,
    rated: bool = False,
    **labels: Any,
) -> Store:
    rows = sorted(events, key=lambda event: (event[0], event[2]))
    users, items, days, ratings = (np.array([row[i] for row in rows]) for i in range(4))
    times = (1_000_000_000 + days * 86_400).astype(np.int64)
    log = Log(users.astype(np.int32), items.astype(np.int32), times, ratings.astype(np.float32) if rated else None)
    settings = SplitSettings.model_validate({"by": by, "valid": share, "test": share})
    how = LabelSettings(**labels)
    drafts = split_events(log, settings, how.at_least is not None)
    names = [f"user {number}" for number in range(int(users.max(initial=0)) + 1)]
    records = event_records(log, drafts, how, 0, names, n_items)
    card: dict[str, Any] = {"split": {"by": by, **drafts.card}}
    if how.negatives:
        card["labels"] = {"source": "sampled"}
    kept = log.kept(drafts.kept)
    ids = [str(number) for number in range(n_items)]
    splits = {str(name): part for name, part in records.items()}
    return cast("Store", ToyStore("interactions", ids, [f"红色 item {i}" for i in ids], card, kept, splits))


@pytest.fixture(scope="session")
def log_store() -> MakeLog:
    """(events, n_items, by, share, rated, labels...) -> prepared interactions."""
    return _log_store


@pytest.fixture(scope="session")
def shop() -> Store:
    """Twenty users, twelve items, a year of baskets with ratings, divided by time."""
    return _log_store(_toy_events(), 12, rated=True)


def _toy_events(seed: int = 0, n_users: int = 20, n_items: int = 12, n_events: int = 400) -> list[Event]:
    """Users of two tastes who take up to three items at a time, and some of them again."""
    random = np.random.default_rng(seed)
    users = random.integers(0, n_users, n_events)
    half = n_items // 2
    own = users % 2 * half + random.integers(0, max(half, 1), n_events)
    items = np.where(random.random(n_events) < 0.8, own, random.integers(0, n_items, n_events))
    days = random.integers(0, 120, n_events) * 3
    ratings = np.clip(np.round(3 + (items % 3) - 1 + random.normal(0, 0.7, n_events)), 1, 5)
    found = {(int(u), int(i), float(d)): float(r) for u, i, d, r in zip(users, items, days, ratings, strict=True)}
    return [(*key, rating) for key, rating in found.items()]


@pytest.fixture(scope="session")
def toy_events() -> MakeEvents:
    """(seed, n_users, n_items, n_events) -> events."""
    return _toy_events


def _text_store(table: Table, splits: dict[str, list[tuple[str, int]]], labels: list[str]) -> Store:
    def records(rows: list[tuple[str, int]]) -> Records:
        texts = [text for text, _ in rows]
        items = np.array([label for _, label in rows], np.int32)
        places = np.arange(len(rows) + 1)
        return Records(texts, texts, None, None, None, None, places, items, np.ones(len(rows), np.float32))

    parts = {name: records(rows) for name, rows in splits.items()}
    return cast("Store", ToyStore(table, labels, labels, {"split": {"by": "query"}}, None, parts))


@pytest.fixture(scope="session")
def text_store() -> MakeTexts:
    """(table, split -> (text, label number) rows, labels) -> prepared texts or queries."""
    return _text_store


@pytest.fixture
def other_targets() -> Callable[[Store, str], Store]:
    """(store, split) -> the same store with other targets in that split: items moved on by one, grades turned."""

    def changed(store: Store, split: str) -> Store:
        part = store.records(cast("Split", split))
        items = ((part.items + 1) % len(store.item_ids)).astype(np.int32)
        toy = cast("ToyStore", store)
        moved = replace(part, items=items, grades=1 - part.grades)
        return cast("Store", replace(toy, splits={**toy.splits, split: moved}))

    return changed
