"""Slices: every pair told by hand, from the training records alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recft.data.slices import FAMILIES, Slice, families, slices
from recft.data.store import Records, Store, Table, write_records
from recft.errors import RecipeError
from recft.run import write_json

# Two users' events; the training records end at rows 3 and 8, all later rows are test.
LOG = {
    "user": [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2],
    "item": [0, 0, 1, 0, 4, 0, 1, 2, 0, 3, 3],
    "time": [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 2],
}
BRANDS = ["acme", "acme", "红牌", "", "🪑"]


def events(users: list[int], starts: list[int], cuts: list[int], items: list[list[int]]) -> Records:
    flat = np.array([item for own in items for item in own], np.int32)
    n = len(users)
    return Records(
        keys=["uvw"[user] for user in users],
        queries=None,
        users=np.array(users, np.int32),
        starts=np.array(starts, np.int64),
        cuts=np.array(cuts, np.int64),
        times=np.zeros(n, np.int64),
        offsets=np.cumsum([0, *map(len, items)]).astype(np.int64),
        items=flat,
        grades=np.ones(len(flat), np.float32),
        columns={"season": ["winter", "summer", "winter", "summer"][:n]},
    )


TRAIN = events([0, 0, 1, 1], [0, 0, 5, 5], [1, 2, 6, 7], [[0], [1], [1], [2]])
TEST = events([0, 1, 2], [0, 5, 9], [4, 8, 10], [[4], [0, 4], [3]])
QUERIES = Records(
    ["椅子", "desk"], ["椅子", "desk"], None, None, None, None, np.array([0, 2, 3]), np.array([0, 1, 2], np.int32),
    np.array([3, 0, 1], np.float32), columns={"device": ["phone", ""]},
)  # fmt: skip


def a_store(folder: Path, train: Records, test: Records, table: Table) -> Store:
    for split, records in (("train", train), ("valid", test), ("test", test)):
        write_records(folder / "records" / f"{split}.parquet", records)
    names = list("abcde")
    pl.DataFrame({"id": names, "text": names, "title": names, "column:brand": BRANDS}).write_parquet(
        folder / "items.parquet"
    )
    if table == "interactions":
        users = {"id": ["u", "v", "w"], "text": [""] * 3, "column:city": ["北京", "Bonn", "北京"]}
        pl.DataFrame(users).write_parquet(folder / "users.parquet")
        log = pl.DataFrame(LOG, schema={"user": pl.Int32, "item": pl.Int32, "time": pl.Int64})
        log.write_parquet(folder / "interactions.parquet")
    write_json(folder / "card.json", {"table": table})
    return Store.open(folder)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return a_store(tmp_path_factory.mktemp("shop"), TRAIN, TEST, "interactions")


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return a_store(tmp_path_factory.mktemp("search"), QUERIES, QUERIES, "queries")


def held(store: Store, records: Records, *names: str) -> dict[str, list[int]]:
    return {name: part.mask.astype(int).tolist() for name, part in slices(store, records, names).items()}


def test_item_popularity(shop: Store) -> None:
    # Training took item 0 three times, 1 twice, 2 once: half of 6 is item 0's, and with 1 it is 83%.
    assert held(shop, shop.records("test"), "item_popularity") == {
        "head_item": [0, 1, 0, 0],  # pairs: 4, 0, 4, 3
        "middle_item": [0, 0, 0, 0],
        "tail_item": [1, 0, 1, 1],
    }
    everything = replace(
        TEST, offsets=np.array([0, 5, 5, 5]), items=np.arange(5, dtype=np.int32), grades=np.ones(5, np.float32)
    )
    assert held(shop, everything, "item_popularity") == {
        "head_item": [1, 0, 0, 0, 0],
        "middle_item": [0, 1, 0, 0, 0],
        "tail_item": [0, 0, 1, 1, 1],
    }


def test_cold_items_users_and_repeats(shop: Store) -> None:
    records = shop.records("test")
    assert held(shop, records, "cold_item", "cold_user", "repeat") == {
        "cold_item": [1, 0, 1, 1],
        "warm_item": [0, 1, 0, 0],
        "cold_user": [0, 0, 0, 1],
        "warm_user": [1, 1, 1, 0],
        "repeat": [0, 1, 0, 1],  # user 1 had item 0 at first, user 2 had item 3
        "novel": [1, 0, 1, 0],
    }


def test_history_length(shop: Store) -> None:
    # Training histories are 1, 2, 1 and 2 long: thirds end at 1 and 2. Test's are 4, 3 (two pairs) and 1 long.
    assert held(shop, shop.records("test"), "history_length") == {
        "short_history": [0, 0, 0, 1],
        "middle_history": [0, 0, 0, 0],
        "long_history": [1, 1, 1, 0],
    }
    assert held(shop, shop.records("train"), "history_length")["middle_history"] == [0, 1, 0, 1]


def test_columns_of_items_users_and_records(shop: Store) -> None:
    found = slices(shop, shop.records("test"), ["brand", "city", "season"])
    assert {name: part.mask.astype(int).tolist() for name, part in found.items()} == {
        "brand=🪑": [1, 0, 1, 0],  # two targets
        "brand=(none)": [0, 0, 0, 1],
        "brand=acme": [0, 1, 0, 0],
        "city=北京": [1, 0, 0, 1],
        "city=Bonn": [0, 1, 1, 0],
        "season=winter": [1, 0, 0, 1],
        "season=summer": [0, 1, 1, 0],
    }
    assert [part.of for part in found.values()] == ["brand"] * 3 + ["city"] * 2 + ["season"] * 2


def test_rare_values_are_one_slice(shop: Store) -> None:
    n = 30
    values = [f"v{i % 12:02}" for i in range(n - 1)] + ["(other)"]
    records = replace(
        events([0] * n, [0] * n, [1] * n, [[0]] * n), columns={"page": values}, grades=np.ones(n, np.float32)
    )
    found = slices(shop, records, ["page"])
    assert list(found) == [f"page=v{i:02}" for i in range(10)] + ["page=(other)"]
    sizes = [int(part.mask.sum()) for part in found.values()]
    assert sizes == [3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 5]
    assert sum(sizes) == n


def test_values_are_counted_by_targets(shop: Store) -> None:
    records = replace(TEST, grades=np.array([0, 1, 0, 1], np.float32))
    assert next(iter(held(shop, records, "brand"))) == "brand=(none)"
    assert list(held(shop, replace(TEST, grades=np.zeros(4, np.float32)), "brand")) == [
        "brand=(none)",
        "brand=acme",
        "brand=🪑",
    ]


def test_queries_and_texts(search: Store, tmp_path: Path) -> None:
    everything = replace(
        QUERIES, offsets=np.array([0, 4, 5]), items=np.arange(5, dtype=np.int32), grades=np.ones(5, np.float32)
    )
    expected = {
        "cold_item": [0, 0, 0, 1, 1],  # item 1 was judged, though not relevant
        "warm_item": [1, 1, 1, 0, 0],
        "head_item": [1, 0, 1, 0, 0],
        "middle_item": [0, 0, 0, 0, 0],
        "tail_item": [0, 1, 0, 1, 1],
    }
    texts = a_store(tmp_path, QUERIES, QUERIES, "texts")
    for store in (search, texts):
        assert held(store, everything, "cold_item", "item_popularity") == expected
        assert held(store, everything, "device") == {"device=phone": [1, 1, 1, 1, 0], "device=(none)": [0, 0, 0, 0, 1]}


@pytest.mark.parametrize("name", ["cold_user", "history_length", "repeat"])
def test_what_makes_no_sense_for_a_table_is_refused(search: Store, name: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"^eval.slices: {name} on queries \(rule: it is for interactions; fix: leave"
    ):
        slices(search, QUERIES, [name])
    assert name not in families(search, QUERIES)


def test_unknown_names_are_refused(shop: Store) -> None:
    with pytest.raises(RecipeError) as caught:
        slices(shop, shop.records("test"), ["cold_item", "cold_itme"])
    assert str(caught.value) == (
        "eval.slices: there is no 'cold_itme'. Did you mean 'cold_item'? (rule: one of item_popularity, "
        "history_length, cold_item, cold_user, repeat, brand, season, city; fix: correct the name, or keep the column "
        "in prepare)"
    )
    twice = replace(shop.records("test"), columns={"brand": ["x", "y", "z"]})
    with pytest.raises(RecipeError, match=r"'brand' is a column of 2 tables \(rule: .*; fix: rename"):
        slices(shop, twice, ["brand"])


def test_nothing_asked_and_nothing_scored(shop: Store) -> None:
    assert slices(shop, shop.records("test"), []) == {}
    none = shop.records("test").take(np.empty(0, np.int64))
    found = slices(shop, none, [*FAMILIES, "brand"])
    assert len(found) == 12
    assert all(part.mask.shape == (0,) and part.mask.dtype == bool for part in found.values())
    assert found["repeat"].records(none.offsets).shape == (0,)


def test_training_without_records(tmp_path: Path) -> None:
    store = a_store(tmp_path, TRAIN.take(np.empty(0, np.int64)), TEST, "interactions")
    found = held(store, store.records("test"), *FAMILIES)
    assert found["cold_item"] == found["cold_user"] == found["tail_item"] == [1, 1, 1, 1]
    assert found["short_history"] == [0, 0, 0, 0] and found["long_history"] == [1, 1, 1, 1]


def test_records_of_a_slice() -> None:
    part = Slice("repeat", np.array([False, True, False, False]))
    assert part.records(np.array([0, 1, 1, 3, 4])).tolist() == [False, False, True, False]


def test_events_after_training_change_nothing(shop: Store, tmp_path: Path) -> None:
    later = {**LOG, "item": [0, 0, 1, 3, 3, 0, 1, 2, 3, 3, 3]}  # rows that no training record holds
    other = a_store(tmp_path, TRAIN, TEST, "interactions")
    log = pl.DataFrame(later, schema={"user": pl.Int32, "item": pl.Int32, "time": pl.Int64})
    log.write_parquet(tmp_path / "interactions.parquet")
    names = ("item_popularity", "cold_item", "cold_user", "history_length")
    assert held(Store.open(other.folder), TEST, *names) == held(shop, TEST, *names)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_family_divides_the_pairs(shop: Store, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, 2), max_size=5))
    records = shop.records("test").take(np.array(rows, np.int64))
    found = slices(shop, records, [*FAMILIES, "brand", "city", "season"])
    for of, n in Counter(part.of for part in found.values()).items():
        masks = [part.mask for part in found.values() if part.of == of]
        assert len(masks) == n
        assert np.sum(masks, axis=0).tolist() == [1] * len(records.items)
    for name, part in found.items():
        owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
        assert np.flatnonzero(part.records(records.offsets)).tolist() == sorted(set(owners[part.mask].tolist())), name
