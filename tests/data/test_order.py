"""Packed sorting beside numpy's own, which it must equal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from recft.data import order
from recft.data.order import by_user_and_time, different, first_meetings, firsts, kth, taken, without

KEYS = st.one_of(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 2**62), max_size=40))
EVENTS = st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=60)


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups, so that what happens at their edges is seen."""
    monkeypatch.setattr(order, "CACHED_ROWS", 8)


@given(KEYS)
def test_firsts_are_those_of_unique(keys: list[int]) -> None:
    values = np.array(keys, np.int64)
    for found, wanted in zip(firsts(values), np.unique(values, return_index=True), strict=True):
        np.testing.assert_array_equal(found, wanted)


def in_order(users: Any, times: Any, rest: Any, cuts: list[int]) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {
        "user": np.array(users, np.int32),
        "time": np.array(times, np.int64),
        "rest": np.array(rest, np.uint32),
    }
    parts = [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(users)], strict=True)]
    return by_user_and_time([{name: values[part] for name, values in columns.items()} for part in parts])


@settings(deadline=None)
@given(EVENTS, st.data())
def test_a_log_is_sorted_as_by_lexsort(events: list[tuple[int, int, int]], data: st.DataObject) -> None:
    users, times, _ = zip(*events, strict=True)
    cut = data.draw(st.integers(0, len(events)))
    scale = data.draw(st.sampled_from([1, 10**9, 2**60]))  # the widest does not fit beside users and places
    times = tuple(time * scale for time in times)
    found = in_order(users, times, range(len(events)), [cut, cut])
    wanted = np.lexsort((times, users))
    np.testing.assert_array_equal(found["rest"], wanted)
    np.testing.assert_array_equal(found["user"], np.array(users)[wanted])
    np.testing.assert_array_equal(found["time"], np.array(times)[wanted])
    assert [found[name].dtype for name in ("user", "time", "rest")] == [np.int32, np.int64, np.uint32]


@settings(deadline=None)
@given(EVENTS)
def test_first_meetings_and_different_keys_beside_a_slow_count(events: list[tuple[int, int, int]]) -> None:
    events = sorted(events, key=lambda event: event[0])
    users, items = (np.array([event[place] for event in events], np.int32) for place in (0, 2))
    edges = [0, *np.flatnonzero(np.diff(users)) + 1, len(users)]
    parts = [slice(int(start), int(stop)) for start, stop in pairwise(edges)]
    met: dict[tuple[int, int], int] = {}
    pairs = zip(users.tolist(), items.tolist(), strict=True)
    wanted = [met.setdefault(pair, row) for row, pair in enumerate(pairs)]
    assert first_meetings(users, items, parts).tolist() == wanted
    assert different(parts, lambda part: users[part].astype(np.int64) * 9 + items[part]) == len(met)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=50), st.floats(0, 1))
def test_the_kth_value_is_the_lower_quantile(values: list[int], share: float) -> None:
    array = np.array(values, np.int64)
    place = int((len(values) - 1) * share)
    assert kth(array, [place, 0]) == [np.quantile(array, share, method="lower"), min(values)]


@given(st.lists(st.booleans(), max_size=60))
def test_places_are_left_out_in_place(dropped: list[bool]) -> None:
    values = np.arange(len(dropped), dtype=np.int32)
    wanted = values[~np.array(dropped, bool)].copy()
    np.testing.assert_array_equal(without(values, np.flatnonzero(dropped)), wanted)


@given(st.lists(st.integers(0, 4), max_size=30))
def test_taken_is_indexing(rows: list[int]) -> None:
    values, chosen = np.array([7, -1, 5, 3, 9], np.int32), np.array(rows, np.int32)
    found = taken(values, chosen)
    assert found.dtype == values.dtype and found.tolist() == values[chosen].tolist()
