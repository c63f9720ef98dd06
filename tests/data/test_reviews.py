"""Reviews: so many an item, the newest where they are dated, none from after training, cut at a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recft.data import tables
from recft.data.items import Catalogue
from recft.data.ledger import Ledger
from recft.data.reviews import with_reviews
from recft.errors import DataError
from recft.schema import ReviewsTable

Told = Callable[..., tuple[list[str | None], dict[str, Any], Ledger]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """What reviews, as CSV lines of item, text and time, add to the items a, b and (without text) c."""

    def of(rows: str | bytes, until: int | None = None, on_error: Any = "stop", **table: Any) -> Any:
        path = tmp_path / "reviews.csv"
        path.write_bytes(b"i,x,t\n" + (rows if isinstance(rows, bytes) else rows.encode()))
        text = pl.Series(["A", "B"])
        frame = pl.DataFrame({"id": ["a", "b"], "text": text, "title": text, "field_0": text})
        with Ledger(on_error, tmp_path / "quarantine.jsonl") as ledger:
            made, card = with_reviews(
                Catalogue(frame, ("title",), pl.Series(["c"])),
                ReviewsTable(path=str(path), item="i", text="x", **table),
                until,
                ledger,
            )
        assert made.fields == ("title", "data.reviews")
        return made.frame["field_1"].to_list(), card, ledger

    return of


def test_the_first_of_each_item_where_they_have_no_time(told: Told) -> None:
    texts, card, _ = told(
        "a,Great!,\nb,很好 👍,\na,Broke  soon,\na,Great!,\na,third,\nz,what,\nc,hm,\nb,,\n", per_item=2
    )
    assert texts == ["Great!; Broke soon", "很好 👍"]
    assert (card["used"], card["items_with"], card["of_unknown_items"], card["without_text"]) == (3, 2, 2, 1)
    assert "after" in card["leakage"] and "until" not in card


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_newest_of_each_item_and_none_from_after_training(
    told: Told, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", batch)
    # The quote hands over to the reader that reads in batches of rows.
    rows = '"a",one,1\na,five,5\na,three,3\na,later,9\na,alike,3\nb,late,7\n'
    texts, card, _ = told(rows, until=6, time="t", time_format="seconds", per_item=3)
    assert texts == ["five; three; alike", None]
    assert (card["until"], card["after_training"], card["order"]) == (6, 2, "newest first")
    assert "leakage" not in card
    texts, card, _ = told(rows, time="t", time_format="seconds", per_item=2)
    assert texts == ["later; five", "late"]
    assert "leakage" in card


def test_the_budget_cuts_at_a_word(told: Told) -> None:
    rows = "a,very good indeed,\na,bought twice,\nb,红色连衣裙很好看,\n"
    texts, card, _ = told(rows, max_words=4)
    assert texts == ["very good indeed; bought", "红色连衣裙"]
    assert card["items_cut_at_max_words"] == 2
    assert told(rows, max_words=7)[1]["items_cut_at_max_words"] == 0
    texts, card, _ = told(rows, max_words=3)
    assert texts[0] == "very good indeed" and card["items_cut_at_max_words"] == 2


@pytest.mark.parametrize(
    ("row", "value", "rule"),
    [
        (b",good,5", "(empty)", "every review needs an item"),
        (b"a,good,soon", "'soon'", "a time (seconds)"),
        (b"a,good,", "(empty)", "a time (seconds)"),
        (b"a,caf\xe9,5", "caf", "text is UTF-8"),
        (b"a,nul\0,5", "nul", "no NUL"),
    ],
)
def test_a_bad_review_is_told_or_set_aside(told: Told, row: bytes, value: str, rule: str) -> None:
    table = {"time": "t", "time_format": "seconds"}
    _, _, ledger = told(b"b,fine,5\n" + row + b"\n", **table)
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert "reviews.csv row 3" in str(error.value) and value in str(error.value) and rule in str(error.value)
    texts, _, ledger = told(b"b,fine,5\n" + row + b"\n", on_error="quarantine", **table)
    ledger.settle()
    assert texts == [None, "fine"]


def test_no_review_and_one_of_a_million_characters(told: Told) -> None:
    texts, card, _ = told("")
    assert texts == [None, None] and card["used"] == 0
    texts, _, _ = told(f"a,{'字' * 1_000_000},\nb,{'x' * 1_000_000},\n", max_words=5)
    assert texts == ["字" * 6, "x" * 1_000_000]
