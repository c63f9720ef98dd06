"""Ids by number: in order of appearance, and the same for a number and its text."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from recft.data.numbering import Numbering

WHOLE = st.lists(st.integers(0, 60), min_size=1, max_size=12).map(lambda ids: pl.Series(ids, dtype=pl.Int64))
WIDE = st.lists(st.integers(-5, 2**40), min_size=1, max_size=12).map(lambda ids: pl.Series(ids, dtype=pl.Int64))
TEXTS = st.lists(st.sampled_from(["7", "007", "+7", "杯子", "☕", "12", ""]), min_size=1, max_size=12).map(pl.Series)


@settings(deadline=None)
@given(st.lists(st.one_of(WHOLE, WIDE, TEXTS), min_size=1, max_size=6))
def test_values_are_numbered_as_they_appear(batches: list[pl.Series]) -> None:
    numbering, known = Numbering(), dict[str, int]()
    for batch in batches:
        wanted = [known.setdefault(str(value), len(known)) for value in batch.to_list()]
        assert numbering.with_new(batch, numbering.coded(batch)).tolist() == wanted
    assert numbering.values.to_list() == list(known) and len(numbering) == len(known)


def test_known_values_are_found_as_numbers_and_as_texts() -> None:
    numbering = Numbering(pl.Series(["5", "05", "杯子", "99999999999", "-3"]))

    def found(values: list[object]) -> list[int]:
        numbers: list[int] = numbering.find(numbering.coded(pl.Series(values))).tolist()
        return numbers

    assert found([5, 6, None, 0]) == [0, -1, -1, -1]
    assert found([5, 99999999999, -3, None]) == [0, 3, 4, -1]
    assert found(["05", "杯子", None, "5", "005"]) == [1, 2, -1, 0, -1]
    assert numbering.find(pl.Series([], dtype=pl.Int64)).dtype == np.int32


def test_many_texts_share_slots_and_stay_apart() -> None:
    numbering = Numbering()
    texts = [f"用户 {number}" for number in range(20_000)]
    for start in range(0, 20_000, 700):
        # Each batch brings back some of the one before, and every value twice.
        seen = pl.Series(texts[max(0, start - 300) : start + 700] * 2)
        wanted = [int(text.split()[1]) for text in seen]
        assert numbering.with_new(seen, numbering.coded(seen)).tolist() == wanted
    assert numbering.values.to_list() == texts
