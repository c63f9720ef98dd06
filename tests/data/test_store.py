"""What is written is read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recft.data import store as module
from recft.data.store import Log, Records, Store, write_records
from recft.errors import DataError
from recft.run import write_json


def a_folder(folder: Path, records: Records, table: str) -> Store:
    for split in ("train", "valid", "test"):
        write_records(folder / "records" / f"{split}.parquet", records)
    items = pl.DataFrame({"id": ["a", "b", "c"], "text": ["A", "B", "C"], "title": ["A", "B", "C"]})
    items.write_parquet(folder / "items.parquet")
    if table == "interactions":
        pl.DataFrame({"id": ["u", "v"], "text": ["", "老客户"]}).write_parquet(folder / "users.parquet")
        log = {"user": [0, 0, 0, 1, 1], "item": [0, 1, 2, 2, 0]}
        pl.DataFrame(log, schema={"user": pl.Int32, "item": pl.Int32}).with_columns(
            pl.Series("time", [1, 2, 3, 1, 2], pl.Int64), pl.Series("rating", [1, 2, 3, 4, 5], pl.Float32)
        ).write_parquet(folder / "interactions.parquet")
    write_json(folder / "card.json", {"table": table})
    return Store.open(folder)


def test_events_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECORDS_A_CHUNK", 1)
    users, starts, cuts = np.array([0, 1], np.int32), np.array([0, 3]), np.array([2, 4])
    pairs, grades = np.array([2, 1, 0], np.int32), np.array([1, 0, 1], np.float32)
    records = Records(["u", "v"], None, users, starts, cuts, np.array([3, 2]), np.array([0, 2, 3]), pairs, grades)
    store = a_folder(tmp_path, records, "interactions")
    back = store.records("valid")
    assert back.keys == ["u", "v"] and back.queries is None and len(back) == 2
    for name in ("users", "starts", "cuts", "times", "offsets", "items", "grades"):
        found, written = getattr(back, name), getattr(records, name)
        assert found.dtype == written.dtype and np.array_equal(found, written)
    assert back.history(0).tolist() == [0, 1]
    assert back.history(0, last=1).tolist() == [1]
    assert back.history(1).tolist() == [2]
    assert back.log_ratings is not None and back.log_ratings.tolist() == [1, 2, 3, 4, 5]
    assert store.records("train").log_items is back.log_items  # the log is loaded once
    assert (store.item_ids, store.item_texts, store.user_ids) == (["a", "b", "c"], ["A", "B", "C"], ["u", "v"])


def test_queries_come_back_and_so_does_nothing(tmp_path: Path) -> None:
    pairs, grades = np.array([2, 1], np.int32), np.array([3, 0], np.float32)
    records = Records(["红 椅子"], ["红　椅子"], None, None, None, None, np.array([0, 2]), pairs, grades)
    back = a_folder(tmp_path / "one", records, "queries").records("test")
    assert (back.keys, back.queries, back.items.tolist(), back.grades.tolist()) == (
        ["红 椅子"],
        ["红　椅子"],
        [2, 1],
        [3, 0],
    )
    assert back.history(0).tolist() == []
    none = Records([], [], None, None, None, None, np.zeros(1, np.int64), pairs[:0], grades[:0])
    back = a_folder(tmp_path / "none", none, "queries").records("test")
    assert len(back) == 0 and back.items.dtype == np.int32 and back.grades.dtype == np.float32


def test_columns_kept_for_slices_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RECORDS_A_CHUNK", 1)
    pairs, grades = np.array([2, 1], np.int32), np.array([1, 1], np.float32)
    columns = {"语言": ["zh", ""], "query": ["a", "b"]}
    records = Records(["x", "y"], ["X", "Y"], None, None, None, None, np.arange(3), pairs, grades, columns=columns)
    back = a_folder(tmp_path / "texts", records, "texts")
    assert back.table == "texts" and back.log is None and back.user_texts == []
    assert back.records("test").columns == columns and back.records("test").queries == ["X", "Y"]
    assert back.item_columns == back.user_columns == {}
    users, starts, cuts = np.array([0, 1], np.int32), np.array([0, 3]), np.array([2, 4])
    of_events = Records(["u", "v"], None, users, starts, cuts, np.array([3, 2]), np.arange(3), pairs, grades)
    store = a_folder(tmp_path / "events", replace(of_events, columns=columns), "interactions")
    assert store.records("train").columns == columns and store.user_texts == ["", "老客户"]
    items = pl.read_parquet(tmp_path / "events" / "items.parquet")
    items.with_columns(pl.lit("ＡＣＭＥ").alias("column:brand")).write_parquet(tmp_path / "events" / "items.parquet")
    assert Store.open(tmp_path / "events").item_columns == {"brand": ["ＡＣＭＥ"] * 3}


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="recft prepare"):
        Store.open(tmp_path)
    none = Records(
        [], [], None, None, None, None, np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
    )
    store = a_folder(tmp_path, none, "queries")
    with pytest.raises(DataError, match="one of train, valid, test"):
        store.records("dev")  # type: ignore[arg-type]
    (tmp_path / "records" / "valid.parquet").unlink()
    with pytest.raises(DataError, match=r"misses records/valid\.parquet"):
        Store.open(tmp_path)


def test_chunks_never_divide_a_user() -> None:
    users = np.repeat(np.arange(5, dtype=np.int32), [3, 1, 9, 2, 4])
    log = Log(users, users, users.astype(np.int64), None)
    parts = [log.users[part].tolist() for part in log.chunks(4)]
    assert [user for part in parts for user in part] == users.tolist()
    assert all(not set(one) & set(other) for n, one in enumerate(parts) for other in parts[n + 1 :])
