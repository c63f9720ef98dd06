"""Order by packing: small whole numbers side by side in one int64, which sorts many times faster than columns do.

Rows are first dealt into groups of neighbouring users, so that a group stays in the processor's cache and its users
need few bits; groups are sorted by several threads at once. Where the numbers do not fit into 63 bits, columns are
sorted as they are, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recft.models import machine

__all__ = [
    "CACHED_ROWS",
    "Columns",
    "Rows",
    "by_user_and_time",
    "different",
    "first_meetings",
    "firsts",
    "kth",
    "row_type",
    "taken",
    "threads",
    "without",
]

Ints = NDArray[np.int64]
Rows = NDArray[np.integer[Any]]
"""Numbers of rows: int32 where that is enough, for memory costs more than arithmetic."""
T = TypeVar("T", bound=np.generic)
Columns = dict[str, NDArray[Any]]

_BITS = 63
CACHED_ROWS = 1 << 17
"""About so many rows at a time stay in a core's cache while they are sorted."""


def threads() -> ThreadPoolExecutor:
    """A pool with as many threads as this process can run at once; numpy lets others run while it works."""
    return ThreadPoolExecutor(machine.threads())


def row_type(rows: int) -> type[np.integer[Any]]:
    """The type that numbers so many rows, and one past the last."""
    return np.int32 if rows < 1 << 31 else np.int64


def firsts(keys: Ints) -> tuple[Ints, Ints]:
    """The different keys, ascending, and the first place of each, as numpy's `unique(keys, return_index=True)`.

    keys: none is negative.
    """
    if not len(keys) or _too_wide(keys):
        found, place = np.unique(keys, return_index=True)
        return found, place
    bits = len(keys).bit_length()
    packed = keys << bits
    packed |= np.arange(len(keys))
    packed.sort()
    found = packed >> bits
    new = _new(found)
    return found[new], packed[new] & ((1 << bits) - 1)


def different(parts: Iterable[slice], keys: Callable[[slice], Ints]) -> int:
    """How many different keys there are in all parts, of which no two share one.

    keys: makes a new array of a part's keys.
    """

    def of(part: slice) -> int:
        found = keys(part)
        found.sort()
        return int(np.count_nonzero(_new(found)))

    with threads() as pool:
        return sum(pool.map(of, parts))


def first_meetings(users: NDArray[np.int32], items: NDArray[np.int32], parts: Iterable[slice]) -> Rows:
    """For each row the first row of the same user and item, (E,).

    parts: divide the rows; none divides a user.
    """
    width = int(items.max(initial=0)) + 1
    met: Rows = np.empty(len(users), row_type(len(users)))

    def of(part: slice) -> None:
        keys = (users[part].astype(np.int64) - users[part.start]) * width + items[part]
        order = np.argsort(keys, kind="stable") if _too_wide(keys) else None
        if order is None:
            bits = len(keys).bit_length()
            packed = keys << bits
            packed |= np.arange(len(keys))
            packed.sort()
            order, keys = packed & ((1 << bits) - 1), packed >> bits
        else:
            keys = keys[order]
        starts = np.flatnonzero(_new(keys))
        met[part][order] = np.repeat(order[starts], np.diff(np.r_[starts, len(keys)])) + part.start

    with threads() as pool:
        list(pool.map(of, parts))
    return met


def taken(values: NDArray[T], rows: Rows) -> NDArray[T]:
    """`values[rows]`, by several threads."""
    found = np.empty(len(rows), values.dtype)
    parts = [slice(start, start + CACHED_ROWS) for start in range(0, len(rows), CACHED_ROWS)]
    with threads() as pool:
        # `raise` would fill a copy first.
        list(pool.map(lambda part: np.take(values, rows[part], out=found[part], mode="clip"), parts))
    return found


def kth(values: Ints, places: Sequence[int]) -> list[int]:
    """The values that would stand at these places if the values were sorted, ascending."""
    low, high = int(values.min()), int(values.max())
    shift = max(0, (high - low).bit_length() - 16)
    parts = [values[start : start + CACHED_ROWS] for start in range(0, len(values), CACHED_ROWS)]
    with threads() as pool:
        counts = sum(pool.map(lambda part: np.bincount((part - low) >> shift, minlength=1 << 16), parts))
        before = np.r_[0, np.cumsum(counts)]

        def at(place: int) -> int:
            group = int(np.searchsorted(before, place, side="right")) - 1
            mine = np.concatenate(list(pool.map(lambda part: part[((part - low) >> shift) == group], parts)))
            return int(np.partition(mine, place - int(before[group]))[place - int(before[group])])

        return [at(place) for place in places]


def by_user_and_time(parts: list[Columns]) -> Columns:
    """The parts' columns as whole ones in order of `user`, `time`, then place; the parts' own are spent.

    parts: of each the columns `user` (int32, from 0) and `time` (int64) and any others, all of one length; one has a
        row.
    """
    n_rows = sum(len(part["user"]) for part in parts)
    filled = [part for part in parts if len(part["user"])]
    last_user = max(int(part["user"].max()) for part in filled)
    span = min(int(part["time"].min()) for part in filled), max(int(part["time"].max()) for part in filled)
    # So many users a group that it has about so many rows as are wanted.
    shift = max(0, last_user.bit_length() - max(1, n_rows // CACHED_ROWS).bit_length())
    n_groups = (last_user >> shift) + 1
    with threads() as pool:
        counts = np.stack(list(pool.map(lambda part: _deal(part, shift, n_groups), filled)))  # (parts, groups)
        ends = counts.cumsum(axis=1)
        bounds = np.r_[0, counts.sum(axis=0).cumsum()]
        whole = {name: np.empty(n_rows, values.dtype) for name, values in filled[0].items()}

        def fill(group: int) -> None:
            places = [
                slice(int(end - count), int(end)) for end, count in zip(ends[:, group], counts[:, group], strict=True)
            ]
            mine = {
                name: np.concatenate([part[name][place] for part, place in zip(filled, places, strict=True)])
                for name in whole
            }
            _sort_into(whole, slice(int(bounds[group]), int(bounds[group + 1])), mine, group << shift, span)

        list(pool.map(fill, range(n_groups)))
    return whole


def _deal(part: Columns, shift: int, n_groups: int) -> Ints:
    """Rows in each group, (groups,); the part's columns are put in order of groups, in which places stay in order."""
    group = part["user"] >> shift
    # numpy sorts 16 bits by counting.
    group = group.astype(np.uint16) if n_groups <= 1 << 16 else group
    order = np.argsort(group, kind="stable")
    for values in part.values():
        values[:] = values[order]
    return np.bincount(group, minlength=n_groups)


def _sort_into(whole: Columns, rows: slice, mine: Columns, first_user: int, span: tuple[int, int]) -> None:
    """Writes one group's columns into its rows of the whole ones, in order."""
    n_rows = len(mine["user"])
    if not n_rows:
        return
    users = mine["user"].astype(np.int64) - first_user
    place_bits, time_bits = n_rows.bit_length(), (span[1] - span[0]).bit_length()
    if int(users.max()).bit_length() + time_bits + place_bits > _BITS:
        order = np.lexsort((mine["time"], users))
    else:
        packed = users << (time_bits + place_bits)
        packed |= (mine["time"] - span[0]) << place_bits
        packed |= np.arange(n_rows)
        packed.sort()
        order = packed & ((1 << place_bits) - 1)
    for name, values in mine.items():
        np.take(values, order, out=whole[name][rows], mode="clip")  # `raise` would fill a copy first


def without(values: NDArray[T], places: Ints) -> NDArray[T]:
    """The values but for those at these places, which ascend: moved up within their own array, which is spent."""
    if not len(places):
        return values
    end = int(places[0])
    for start in range(end, len(values), CACHED_ROWS):
        part = values[start : start + CACHED_ROWS]
        first, last = np.searchsorted(places, [start, start + len(part)])
        left = np.delete(part, places[first:last] - start)
        values[end : end + len(left)] = left
        end += len(left)
    return values[:end]


def _too_wide(keys: Ints) -> bool:
    """Whether keys and places do not fit side by side."""
    return int(keys.max(initial=0)).bit_length() + len(keys).bit_length() > _BITS


def _new(ascending: Ints) -> NDArray[np.bool_]:
    """Where a value differs from the one before it."""
    new = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    return new
