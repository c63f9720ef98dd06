"""Numbers for ids: each different value of a column by a small integer, batch by batch.

Whole numbers are looked up in a table by themselves; texts by two hashes of 64 bits with seeds of their own, which tell
even 10^9 different texts apart but for one chance in 10^20. "7" as a number and as a text are one id.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["Numbering"]

_MOST_IN_TABLE = 1 << 25
"""Whole numbers from here on are looked up as texts: the table has a place for every number below the largest."""

_SEEDS = (0, 0x5DEECE66D)
_SLOTS_A_TEXT = 4

Numbers = NDArray[np.int32]
Hashes = NDArray[np.uint64]


class Numbering:
    """The different values of a column in the order in which they first appear.

    Args:
        known: values that have numbers from the start, all different.
    """

    def __init__(self, known: pl.Series | None = None) -> None:
        self._parts: list[pl.Series] = []
        self._count = 0
        self._table: Numbers | None = np.full(1024, -1, np.int32)
        self._texts = _Texts()
        if known is not None:
            self._parts, self._count = [known.cast(pl.String)], len(known)
            self._begin(known)

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> pl.Series:
        """The values as texts; a value's place is its number."""
        return pl.concat([pl.Series([], dtype=pl.String), *self._parts])

    def coded(self, seen: pl.Series) -> pl.Series:
        """The column in the form in which it is looked up fastest; several threads may ask at once."""
        return seen if self._table is not None and _fits(seen) else _hashed(seen)

    def find(self, coded: pl.Series) -> Numbers:
        """The number of each value of a column from `coded`, -1 for null and for values without one."""
        if coded.dtype == pl.Int64 and self._table is not None:
            return _in_table(self._table, coded)
        return self._texts.find(*_both(coded))

    def with_new(self, seen: pl.Series, coded: pl.Series) -> Numbers:
        """The number of each value, none of which is null; values without one are numbered on.

        Args:
            seen: the values.
            coded: what `coded` gave for them.
        """
        if self._table is not None and coded.dtype != pl.Int64:
            self._as_texts()
        if self._table is None and coded.dtype == pl.Int64:
            coded = _hashed(seen)
        found = self.find(coded)
        fresh = np.flatnonzero(found < 0)
        if len(fresh):
            keys = coded.to_numpy() if coded.dtype == pl.Int64 else _both(coded)[0]
            _, first = np.unique(keys[fresh], return_index=True)
            places = fresh[np.sort(first)]
            numbers = np.arange(self._count, self._count + len(places), dtype=np.int32)
            self._parts.append(seen.gather(places).cast(pl.String).rename(""))
            self._count += len(places)
            self._set(coded.gather(places), numbers)
            found[fresh] = self.find(coded.gather(fresh))
        return found

    def _begin(self, known: pl.Series) -> None:
        """Sets what is known: the whole numbers among it in the table, all of it among the texts."""
        numbers = np.arange(len(known), dtype=np.int32)
        whole = known.cast(pl.Int64, strict=False)
        # Only a number that is written as numbers are written is the same id as the number.
        same = (whole.cast(pl.String) == known).fill_null(False) & whole.is_between(0, _MOST_IN_TABLE - 1)
        mask = same.fill_null(False).to_numpy()
        self._set(whole.filter(pl.Series(mask)), numbers[mask])
        self._texts.add(*_both(_hashed(known)), numbers)

    def _set(self, coded: pl.Series, numbers: Numbers) -> None:
        """Gives the values, all different, these numbers."""
        if self._table is None:
            self._texts.add(*_both(coded), numbers)
            return
        places = coded.to_numpy()
        self._table = _grown(self._table, int(places.max(initial=-1)) + 1)
        self._table[places] = numbers

    def _as_texts(self) -> None:
        """From here on all values are looked up as texts."""
        self._table = None
        known = self.values
        self._texts.add(*_both(_hashed(known)), np.arange(len(known), dtype=np.int32))


class _Texts:
    """A table of hashes: a text's number stands in the slot that its first hash names, or in one of the next."""

    def __init__(self) -> None:
        self._slots = np.full(1024, -1, np.int32)
        self._hashes: tuple[Hashes, Hashes] = (np.empty(0, np.uint64), np.empty(0, np.uint64))

    def find(self, one: Hashes, other: Hashes) -> Numbers:
        """The number of each text, -1 where it has none."""
        found = np.full(len(one), -1, np.int32)
        open_ = np.arange(len(one))
        step = 0
        while len(open_):
            held = self._slots[self._slot(one[open_], step)]
            # An empty slot ends the search: the text would stand there.
            open_, held = open_[held >= 0], held[held >= 0]
            same = (self._hashes[0][held] == one[open_]) & (self._hashes[1][held] == other[open_])
            found[open_[same]] = held[same]
            open_ = open_[~same]
            step += 1
        return found

    def add(self, one: Hashes, other: Hashes, numbers: Numbers) -> None:
        """Adds texts that are all different and new; numbers go on from those there are."""
        self._hashes = np.concatenate([self._hashes[0], one]), np.concatenate([self._hashes[1], other])
        if len(self._hashes[0]) * _SLOTS_A_TEXT > len(self._slots):
            size = 1 << (len(self._hashes[0]) * _SLOTS_A_TEXT * 2 - 1).bit_length()
            self._slots = np.full(size, -1, np.int32)
            one, numbers = self._hashes[0], np.arange(len(self._hashes[0]), dtype=np.int32)
        step = 0
        while len(numbers):
            slots = self._slot(one, step)
            free = self._slots[slots] < 0
            self._slots[slots[free]] = numbers[free]  # of several that want a slot one gets it
            out = self._slots[slots] != numbers
            one, numbers = one[out], numbers[out]
            step += 1

    def _slot(self, hashes: Hashes, step: int) -> NDArray[np.int64]:
        return ((hashes & np.uint64(len(self._slots) - 1)).astype(np.int64) + step) & (len(self._slots) - 1)


def _hashed(seen: pl.Series) -> pl.Series:
    """Two hashes of each value as a text."""
    texts = seen.cast(pl.String)
    return pl.DataFrame({"one": texts.hash(_SEEDS[0]), "other": texts.hash(_SEEDS[1])}).to_struct()


def _both(hashed: pl.Series) -> tuple[Hashes, Hashes]:
    return hashed.struct.field("one").to_numpy(), hashed.struct.field("other").to_numpy()


def _in_table(table: Numbers, seen: pl.Series) -> Numbers:
    places = seen.fill_null(-1).to_numpy()
    found: Numbers
    if len(places) and int(places.min()) >= 0 and int(places.max()) < len(table):
        found = table[places]
        return found
    inside = (places >= 0) & (places < len(table))
    found = np.where(inside, table[np.where(inside, places, 0)], np.int32(-1))
    return found


def _fits(seen: pl.Series) -> bool:
    """Whether a column's whole numbers have places in a table."""
    if seen.dtype != pl.Int64:
        return False
    low, high = seen.min(), seen.max()
    return not isinstance(low, int) or not isinstance(high, int) or (low >= 0 and high < _MOST_IN_TABLE)


def _grown(table: Numbers, size: int) -> Numbers:
    """The table with at least `size` places."""
    if size <= len(table):
        return table
    return np.concatenate([table, np.full(max(size, 2 * len(table)) - len(table), -1, np.int32)])
