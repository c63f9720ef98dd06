"""Profiles stand in the order of the log's users, empty where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recft.data.ledger import Ledger
from recft.data.users import read_users
from recft.errors import DataError
from recft.schema import UsersTable


def read(tmp_path: Path, rows: str | bytes, on_error: Any = "stop", **table: Any) -> Any:
    path = tmp_path / "users.csv"
    path.write_bytes(b"id,age,city\n" + (rows if isinstance(rows, bytes) else rows.encode()))
    settings = UsersTable.model_validate({"path": str(path), "id": "id", "text": ["age", "city"], **table})
    with Ledger(on_error, tmp_path / "quarantine.jsonl") as ledger:
        frame, card = read_users(settings, ["u", "v", "w"], ledger)
    return frame, card, ledger


def test_profiles_and_columns_by_user(tmp_path: Path) -> None:
    frame, card, ledger = read(tmp_path, "w,,北京 🏙\nx,9,Rome\nu,30,New  York\nu,30,New  York\n", columns=["city"])
    assert frame["id"].to_list() == ["u", "v", "w"]
    assert frame["text"].to_list() == ["30, New York", "", "北京 🏙"]
    assert frame["column:city"].to_list() == ["New  York", "", "北京 🏙"]
    assert card == {"profiles": 3, "users_without_profile": 1, "profiles_without_events": 1, "with_text": 2}
    assert ledger.dropped["exact duplicates of profiles"] == 1


def test_columns_alone_and_no_table_at_all(tmp_path: Path) -> None:
    frame, card, _ = read(tmp_path, "u,30,Rome\n", text=[], columns=["age"])
    assert frame["text"].to_list() == ["", "", ""] and card["with_text"] == 0
    assert frame["column:age"].to_list() == ["30", "", ""]
    with Ledger("stop", tmp_path / "q") as ledger:
        frame, card = read_users(None, ["u", "v"], ledger)
    assert frame.to_dict(as_series=False) == {"id": ["u", "v"], "text": ["", ""]} and card is None


@pytest.mark.parametrize(
    ("row", "value", "rule"),
    [
        (b",30,Rome", "(empty)", "every profile needs an id"),
        (b"v,31,Rome", "'v'", "an id stands once"),
        (b"u,30,caf\xe9", "caf", "text is UTF-8"),
        (b"u,30,nul\0", "nul", "no NUL"),
        (b"u,30,Rome,x", "4 fields for 3 columns", "no more fields"),
    ],
)
def test_a_bad_profile_is_told_or_set_aside(tmp_path: Path, row: bytes, value: str, rule: str) -> None:
    _, _, ledger = read(tmp_path, b"v,30,Rome\n" + row + b"\n")
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert "users.csv row 3" in str(error.value) and value in str(error.value) and rule in str(error.value)
    frame, _, ledger = read(tmp_path, b"v,30,Rome\n" + row + b"\n", on_error="quarantine")
    ledger.settle()
    assert frame["text"].to_list() == ["", "30, Rome", ""]
