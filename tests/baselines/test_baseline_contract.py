"""What every classic row promises, member by member."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from recft import registry
from recft.baselines._base import known

if TYPE_CHECKING:
    from recft.data.store import Store
    from tests.baselines.conftest import MakeEvents, MakeLog, MakeTexts, ToyStore

FAMILY = "recft.baselines"
MEMBERS = registry.names(FAMILY)
OUTPUTS = {"ranking", "labels", "values", "classes", "likelihood"}
TEXTS = {
    "train": [("red dress 红色连衣裙", 0), ("blue shirt 蓝色衬衫", 1), ("", 2), ("☕ tea", 2), ("red 裙子", 0)],
    "valid": [("blue 衬衫", 1), ("红色", 0)],
    "test": [("tea", 2), ("nothing known 茶", 1), ("", 0)],
}


@pytest.fixture(params=MEMBERS)
def member(request: pytest.FixtureRequest) -> Any:
    return registry.load(FAMILY, request.param)


def quick(member: Any) -> dict[str, Any]:
    """The first settings, with fewer passes where there are passes."""
    settings = dict(member.grid[0])
    return settings | ({"epochs": 1} if "epochs" in settings else {})


@pytest.fixture
def store(member: Any, shop: Store, text_store: MakeTexts) -> Store:
    if "interactions" in member.tables:
        return shop
    texts: Store = text_store(member.tables[0], TEXTS, ["dress 连衣裙", "shirt 衬衫", "tea"])
    return texts


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_says_what_it_is_for(member: Any) -> None:
    assert set(member.tables) <= {"queries", "interactions", "texts"}
    assert member.tables
    assert set(member.outputs) <= OUTPUTS
    assert member.outputs
    assert 1 <= len(member.grid) <= 6
    assert all(settings.keys() == member.grid[0].keys() for settings in member.grid)
    assert len({tuple(settings.values()) for settings in member.grid}) == len(member.grid)
    assert isinstance(member.probabilities, bool)


def test_scores_every_item_the_same_each_time(member: Any, store: Store) -> None:
    for split in ("valid", "test"):
        before = known(store, cast("Any", split))
        arrays = member.fit(before, quick(member))
        same(arrays, member.fit(before, quick(member)))
        records = store.records(cast("Any", split))
        everything = np.arange(len(records))
        scores = member.scores(arrays, store, records, everything)
        assert scores.shape == (len(records), len(store.item_ids))
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        some = everything[::-2]
        np.testing.assert_allclose(member.scores(arrays, store, records, some), scores[some], rtol=1e-4, atol=1e-5)
        assert member.scores(arrays, store, records, everything[:0]).shape == (0, len(store.item_ids))
        if member.probabilities:
            assert ((scores >= 0) & (scores <= 1)).all()
            if "classes" in member.outputs:
                np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_every_setting_of_the_grid_can_be_fitted(member: Any, store: Store) -> None:
    before, records = known(store, "valid"), store.records("valid")
    for settings in member.grid:
        few = dict(settings) | ({"epochs": 1} if "epochs" in settings else {})
        assert np.isfinite(member.scores(member.fit(before, few), store, records, np.arange(len(records)))).all()


def test_arrays_survive_a_file_without_pickle(member: Any, store: Store) -> None:
    arrays = member.fit(known(store, "valid"), quick(member))
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        back = {name: loaded[name] for name in loaded.files}
    same(arrays, back)
    records = store.records("valid")
    rows = np.arange(len(records))
    ours, theirs = (member.scores(found, store, records, rows) for found in (arrays, back))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("by", ["time", "leave_one_out", "user", "cold_items"])
def test_what_is_scored_is_never_read(
    member: Any,
    by: str,
    log_store: MakeLog,
    text_store: MakeTexts,
    toy_events: MakeEvents,
    other_targets: Callable[[Store, str], Store],
) -> None:
    """Other targets in the scored split, and other events after its cuts, change neither the fit nor a score."""
    if "interactions" in member.tables:
        store = log_store(toy_events(), 12, by, rated=True)
    else:
        store = text_store(member.tables[0], TEXTS, ["dress", "shirt", "tea"])
    changed = other_targets(store, "test")
    toy = cast("ToyStore", changed)
    before = known(store, "test")
    if store.log is not None and toy.log is not None and before.log is not None:
        # Events that are not known, rewritten in the log itself.
        width = len(store.item_ids)
        keys = [
            (log.users.astype(np.int64) * width + log.items) * (1 << 32) + log.times for log in (toy.log, before.log)
        ]
        moved = (toy.log.items + 3) % width
        items: np.ndarray = np.where(np.isin(keys[0], keys[1]), toy.log.items, moved)
        items = np.asarray(items, np.int32)
        log = replace(toy.log, items=items)
        splits = {name: replace(part, log_items=items) for name, part in toy.splits.items()}
        changed = cast("Store", replace(toy, log=log, splits=splits))
    arrays = member.fit(before, quick(member))
    same(arrays, member.fit(known(changed, "test"), quick(member)))
    rows = np.arange(len(store.records("test")))
    ours, theirs = (member.scores(arrays, one, one.records("test"), rows) for one in (store, changed))
    np.testing.assert_array_equal(ours, theirs)


def test_valid_is_known_when_test_is_scored(
    member: Any, store: Store, other_targets: Callable[[Store, str], Store]
) -> None:
    first, second = (known(one, "valid") for one in (store, other_targets(store, "valid")))
    same(member.fit(first, quick(member)), member.fit(second, quick(member)))


def test_the_smallest_input(member: Any, log_store: MakeLog, text_store: MakeTexts) -> None:
    """One user and one item; then records without any history."""
    if "interactions" not in member.tables:
        rows = {"train": [("茶", 0)], "valid": [("", 0)], "test": [("☕", 0)]}
        store = text_store(member.tables[0], rows, ["茶"])
    else:
        store = log_store([(0, 0, float(day), 4.0) for day in range(5)], 1, "leave_one_out", rated=True)
    arrays = member.fit(known(store, "test"), quick(member))
    records = store.records("test")
    scores = member.scores(arrays, store, records, np.arange(len(records)))
    assert scores.shape == (1, 1)
    assert np.isfinite(scores).all()
    if records.starts is not None and records.cuts is not None:
        bare = replace(records, cuts=records.starts)
        assert np.isfinite(member.scores(arrays, store, bare, np.array([0]))).all()


def test_nothing_known(member: Any, store: Store) -> None:
    """No record and no event before the split: all items alike, and no warning."""
    before = known(store, "valid")
    records = before.records
    nothing = replace(
        before,
        log=None if before.log is None else before.log.kept(np.zeros(len(before.log), bool)),
        records=replace(
            records,
            keys=[],
            queries=None if records.queries is None else [],
            users=None if records.users is None else records.users[:0],
            starts=None if records.starts is None else records.starts[:0],
            cuts=None if records.cuts is None else records.cuts[:0],
            times=None if records.times is None else records.times[:0],
            offsets=records.offsets[:1],
            items=records.items[:0],
            grades=records.grades[:0],
        ),
        now=None,
    )
    valid = store.records("valid")
    scores = member.scores(member.fit(nothing, quick(member)), store, valid, np.arange(len(valid)))
    assert np.isfinite(scores).all()
