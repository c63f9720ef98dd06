"""Blocks of CSV straight into narrow columns, where the text is so clean that nothing is lost on the way.

A column of whole numbers is read as int64 only if every cell of the block is either empty or a number as a program
would write it: "007", "+7" and " 7" are texts of their own, ids must keep them apart. That is proved by counting, not
by looking at cells: a number never needs more characters than the cell it was read from, so that if all numbers and
texts of a block together need as many as the block has, no cell has one too many.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

__all__ = ["Plain"]

_SAMPLE_BYTES = 1 << 16
_MOST = 10**18
"""Magnitudes from here on are left to the careful reader: their digits are counted by powers of ten within int64."""

_BLANKS = (b" ", b"\t", b"\v", b"\f", b"\x1c", b"\x1d", b"\x1e", b"\x1f")


class Plain:
    """Reads blocks of one file; what it cannot read for certain it leaves.

    Args:
        found: the file's column names, in order.
        names: those that are wanted.
        separator: one character.
        whole: those that may come as whole numbers.
    """

    def __init__(self, found: Sequence[str], names: Sequence[str], separator: str, whole: Collection[str]) -> None:
        self._separator = separator
        self._columns = {f"c{place}": name for place, name in enumerate(found)}
        self._names = names
        self._may_be_whole = [key for key, name in self._columns.items() if name in names and name in whole]
        self._schema: dict[str, pl.DataType] | None = None

    def read(self, body: bytes) -> pl.DataFrame | None:
        """The wanted columns of a block without quotes, as the careful reader has them; None where that is not sure.

        body: whole lines of valid UTF-8.
        """
        if not self._may_be_whole or len(self._separator.encode()) > 1:
            return None
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n")
        if self._schema is None:  # two threads may both look; what either finds is sound
            self._schema = self._kinds(body)
        if pl.Int64 not in self._schema.values():
            return None
        try:
            frame = pl.read_csv(body, has_header=False, schema=self._schema, separator=self._separator, quote_char=None)
        except pl.exceptions.PolarsError:
            return None
        if not self._is_exact(frame, body):
            return None
        keys = {name: key for key, name in self._columns.items() if name in self._names}
        return frame.select(pl.col(keys[name]).alias(name) for name in self._names)

    def loose(self, frame: pl.DataFrame, body: bytes) -> list[str]:
        """The columns of text that may have white space around them."""
        if body.isascii() and not any(blank in body for blank in _BLANKS if blank != self._separator.encode()):
            return []
        return [name for name, kind in frame.schema.items() if kind == pl.String]

    def _kinds(self, body: bytes) -> dict[str, pl.DataType]:
        """Whole numbers or text, column by column, from the first lines."""
        kinds: dict[str, pl.DataType] = dict.fromkeys(self._columns, pl.String())
        head = body[: body.rfind(b"\n", 0, _SAMPLE_BYTES) + 1] or body
        for key in self._may_be_whole:
            tried = kinds | {key: pl.Int64()}
            try:
                frame = pl.read_csv(head, has_header=False, schema=tried, separator=self._separator, quote_char=None)
            except pl.exceptions.PolarsError:
                continue
            if self._is_exact(frame, head):
                kinds = tried
        return kinds

    def _is_exact(self, frame: pl.DataFrame, body: bytes) -> bool:
        """Whether the columns need every byte of the block: one more or less for any cell is noticed."""
        open_end = not body.endswith(b"\n")
        n_separators, n_lines = frame.height * (frame.width - 1), frame.height
        # Where no cell is empty every line has all its separators. Elsewhere they are counted: a line has at most as
        # many as the schema allows, so that if none is missing in all, no line lacks one.
        if any(column.null_count() for column in frame.iter_columns()) and (
            _count(body, ord("\n")) + open_end != n_lines or _count(body, ord(self._separator)) != n_separators
        ):
            return False
        needed = n_separators + n_lines - open_end
        for column in frame.iter_columns():
            width = _digits(column) if column.dtype == pl.Int64 else int(column.str.len_bytes().sum())
            if width is None:
                return False
            needed += width
        return needed == len(body)


def _count(body: bytes, code: int) -> int:
    """How often a byte stands in a block: where every tenth is one, this is far quicker than `bytes.count`."""
    codes = np.frombuffer(body, np.uint8)
    parts = (codes[start : start + _SAMPLE_BYTES] for start in range(0, len(codes), _SAMPLE_BYTES))
    return sum(int(np.count_nonzero(part == code)) for part in parts)


def _digits(column: pl.Series) -> int | None:
    """The characters that the numbers of a column need, minus signs included; None where one is too large."""
    values = column.drop_nulls().to_numpy()
    if not len(values):
        return 0
    low, high = int(values.min()), int(values.max())
    if low <= -_MOST or high >= _MOST:
        return None
    negative = 0
    if low < 0:
        negative = int(np.count_nonzero(values < 0))
        values = np.abs(values)
        low, high = int(values.min()), int(values.max())
    # Every number has as many digits as the smallest one, and one more for each further power of ten that it reaches.
    powers = range(len(str(low)), len(str(high)))
    return negative + len(values) * len(str(low)) + sum(int(np.count_nonzero(values >= 10**n)) for n in powers)
