"""Numbers and times as people and machines write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data.columns import moment, moments, number
from recft.errors import DataError

NOON = 1_321_790_400  # 2011-11-20 12:00 UTC


def times(*texts: str, time_format: str = "auto") -> list[int | None]:
    return pl.DataFrame({"t": texts}).select(moments("t", time_format)).to_series().to_list()


def test_auto_reads_numbers_by_magnitude_and_iso_text() -> None:
    assert times(f"{NOON}", f"{NOON}000", f"{NOON}000000", f"{NOON}000000000", f"{NOON}.9", f"{NOON}.0") == [NOON] * 6
    assert (
        times("2011-11-20 12:00", "2011-11-20T12:00:00Z", "2011-11-20T20:00:00+08:00", "2011-11-20 07:00:00.250-0500")
        == [NOON] * 4
    )
    assert times("2011-11-20") == [NOON - 12 * 3600]


@pytest.mark.parametrize(
    "text", ["", "nan", "inf", "yesterday", "2011-02-30", "2011-11-20 24:10", "2011-13-01", "20/11/2011", "12:00"]
)
def test_what_is_no_time_is_null(text: str) -> None:
    assert times(text) == [None]


def test_named_formats() -> None:
    assert times("1321790400", time_format="seconds") == [NOON]
    assert times("1321790400123", time_format="milliseconds") == [NOON]
    assert times("1321790400", time_format="iso") == [None]
    assert times("20/11/2011 12:00", "2011-11-20", time_format="%d/%m/%Y %H:%M") == [NOON, None]
    assert times("20.11.2011", time_format="%d.%m.%Y") == [NOON - 12 * 3600]
    assert times("2011-11-20 20:00 +0800", time_format="%Y-%m-%d %H:%M %z") == [NOON]


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 4, 14 * 4))
def test_iso_agrees_with_the_standard_library(when: datetime, quarters: int) -> None:
    aware = when.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=15 * quarters)))
    expected = int((aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    assert times(aware.isoformat(), aware.isoformat(" ")) == [expected] * 2


def test_numbers_are_finite() -> None:
    texts = ["1", " 2.5", "-3e2", "nan", "inf", "-inf", "1,5", "x", "", "１"]
    found = pl.DataFrame({"n": [text.strip() for text in texts]}).select(number("n")).to_series().to_list()
    assert found == [1.0, 2.5, -300.0, *[None] * 7]


def test_a_recipes_time_is_one_or_an_error() -> None:
    assert moment("2011-11-20", "data.interactions.time_range") == NOON - 12 * 3600
    with pytest.raises(DataError, match=r"data\.interactions\.time_range: 'soon'"):
        moment("soon", "data.interactions.time_range")
