"""What a text column means: a number, a moment in time, an id. Each is an expression; what cannot be read is null."""

from __future__ import annotations

import polars as pl

from recft.errors import DataError, problem

__all__ = ["HAS_NUL", "is_numeric", "moment", "moments", "number", "one_line", "whole_moments"]

HAS_NUL = "text holds no NUL character"

# By magnitude: 1e11 seconds is the year 5138, 1e11 milliseconds the year 1973.
_MILLISECONDS_FROM, _MICROSECONDS_FROM, _NANOSECONDS_FROM = 1e11, 1e14, 1e17
_DAY_SECONDS = 86_400
_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?<hour>\d{2}):(?<minute>\d{2})(?::(?<second>\d{2})(?:[.,]\d+)?)?"
    r" ?(?:Z|UTC|(?<sign>[+-])(?<ahead>\d{2}):?(?<past>\d{2})?)?)?$"
)


def number(column: str) -> pl.Expr:
    """A column's finite numbers as float64; NaN, infinity and other text become null."""
    value = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def one_line(column: str) -> pl.Expr:
    """A column's text with every run of white space as one space."""
    return pl.col(column).str.replace_all(r"\s+", " ")


def is_numeric(time_format: str) -> bool:
    """Whether a time may be a number in this format: then a column of whole numbers is read as such."""
    return time_format in ("auto", "seconds", "milliseconds")


def moments(column: str, time_format: str) -> pl.Expr:
    """A column's times as int64 unix seconds; a fraction of a second is dropped, what is no time becomes null.

    time_format: auto (numbers by magnitude, otherwise ISO 8601), seconds, milliseconds, iso, or a strftime pattern.
    """
    if time_format == "seconds":
        return _whole(number(column))
    if time_format == "milliseconds":
        return _whole(number(column) / 1e3)
    if time_format == "iso":
        return _iso(column)
    if time_format == "auto":
        return pl.coalesce(_by_magnitude(number(column)), _iso(column))
    kind = pl.Datetime("us", "UTC") if "%z" in time_format or "%:z" in time_format else pl.Datetime("us")
    exact = pl.col(column).str.strptime(kind, time_format, strict=False)
    return exact.dt.epoch("s")


def whole_moments(values: pl.Series, time_format: str) -> pl.Series:
    """The same of a column of whole numbers, where the format is one of numbers."""
    low, high = values.min(), values.max()
    if not isinstance(low, int) or not isinstance(high, int):
        return values
    if low > -_MILLISECONDS_FROM and high < _MILLISECONDS_FROM and time_format != "milliseconds":
        return values
    frame = values.to_frame("t")
    return frame.select(_by_magnitude(number("t")) if time_format == "auto" else moments("t", time_format)).to_series()


def moment(text: str, place: str) -> int:
    """One time of a recipe, in unix seconds.

    Raises:
        DataError: it is none.
    """
    value = pl.DataFrame({"t": [text]}).select(moments("t", "auto")).item()
    if value is None:
        raise DataError(problem(place, repr(text), "a date, an ISO time or unix seconds", "write it as '2011-11-20'"))
    return int(value)


def _whole(seconds: pl.Expr) -> pl.Expr:
    return seconds.floor().cast(pl.Int64, strict=False)


def _by_magnitude(value: pl.Expr) -> pl.Expr:
    size = value.abs()
    return _whole(
        pl.when(size >= _NANOSECONDS_FROM)
        .then(value / 1e9)
        .when(size >= _MICROSECONDS_FROM)
        .then(value / 1e6)
        .when(size >= _MILLISECONDS_FROM)
        .then(value / 1e3)
        .otherwise(value)
    )


def _iso(column: str) -> pl.Expr:
    parts = pl.col(column).str.extract_groups(_ISO).struct
    fields = {
        name: parts.field(name).cast(pl.Int64, strict=False).fill_null(0)
        for name in ("hour", "minute", "second", "ahead", "past")
    }
    days = parts.field("date").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
    # A leap second reads as the first second of the next minute.
    possible = (fields["hour"] < 24) & (fields["minute"] < 60) & (fields["second"] <= 60)
    ahead = fields["ahead"] * 3600 + fields["past"] * 60
    offset = pl.when(parts.field("sign") == "-").then(-ahead).otherwise(ahead)
    seconds = days * _DAY_SECONDS + fields["hour"] * 3600 + fields["minute"] * 60 + fields["second"] - offset
    return pl.when(possible).then(seconds)
