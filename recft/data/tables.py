"""Any table as batches of text columns: CSV, TSV, JSONL and Parquet, each row with the number that a reader counts.

Every value comes as text, stripped of white space at both ends, null where empty; what it means is decided by the
rules of its table. A batch has the asked columns, `row`, and `flaw` and `flaw_value` where a row is broken as such.
Columns that may come as whole numbers do so in batches where that says just what the text says (see `plain`).
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from recft.data.plain import Plain
from recft.data.sources import ahead, blocks, existing, form_of
from recft.errors import DataError, problem
from recft.registry import suggestion

__all__ = ["BAD_UTF8", "batches"]

BAD_UTF8 = "text is UTF-8"
RAGGED = "a row has no more fields than the header"
NOT_JSON = "each line is one JSON object"
_TAKEN = ("row", "flaw", "flaw_value")
_BATCH_ROWS = 200_000
_PARQUET_ROWS = 1_000_000
_WITHIN_INT64 = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)

_Loose = tuple[pl.DataFrame, Sequence[str]]
"""A batch, and its columns of text as it stands in the file, with white space around it."""

# Bytes that are no UTF-8 are read as this character, which Unicode keeps free for such inner use, and their value.
_MARK = "\ufdd0"


def _marked(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"{_MARK}\\x{byte:02x}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("recft.mark", _marked)


def batches(
    path: Path,
    columns: Sequence[str],
    place: str,
    separator: str | None = None,
    nested: Sequence[str] = (),
    whole: Collection[str] = (),
) -> Iterator[pl.DataFrame]:
    """The asked columns of a file, batch by batch, in the file's order.

    Args:
        path: csv, tsv, jsonl or ndjson, plain or .gz, .zst, .bz2, .xz, or parquet.
        columns: the file's own names.
        place: the table's key in the recipe, for messages.
        separator: one character; by the ending where absent.
        nested: columns whose lists and objects come as JSON, not as a person would write them.
        whole: columns that may come as int64, batch by batch: where each value is a whole number, and written so.

    Raises:
        DataError: the file or a column is missing, or the file cannot be read at all.
    """
    taken = [name for name in columns if name in _TAKEN or name.startswith("__")]
    if taken:
        ours = f"{', '.join(_TAKEN)} and __… are names of recft's own"
        raise DataError(problem(place, f"{path.name} has a column '{taken[0]}'", ours, "rename the column in the file"))
    path = existing(path, place)
    form = form_of(path, place, separator)
    names = list(dict.fromkeys(columns))
    if form == "parquet":
        frames = _parquet(path, names, place, nested, whole)
    elif form == "jsonl":
        frames = _jsonl(path, names, place, nested)
    else:
        endings = [ending.lower() for ending in path.suffixes]
        character = separator or ("\t" if ".tsv" in endings else ",")
        if len(character) != 1 or character in '"\r\n':
            raise DataError(
                problem(
                    f"{place}.separator", repr(character), "one character", "rewrite the file with one, such as a tab"
                )
            )
        frames = _csv(path, names, place, character, whole)
    for frame, loose in frames:
        yield _tidy(frame, names, loose)


def _tidy(frame: pl.DataFrame, names: Sequence[str], loose: Sequence[str]) -> pl.DataFrame:
    """Values of the `loose` columns stripped, empty ones null, and rows without any value left out: blank lines."""
    frame = frame.with_columns(pl.col(name).str.strip_chars().replace("", None) for name in loose)
    if "flaw" not in frame.columns:
        # Without a type: a column of nothing takes no memory so.
        frame = frame.with_columns(flaw=pl.lit(None), flaw_value=pl.lit(None))
    if not all(frame[name].null_count() for name in names):
        return frame
    return frame.filter(~pl.all_horizontal(pl.col(*names, "flaw").is_null()))


def _require(names: Sequence[str], found: Sequence[str], path: Path, place: str) -> None:
    """Raises where a mapped column is missing or stands twice."""
    lines = []
    for name in names:
        if name not in found:
            value = f"{path.name} has no column '{name}'.{suggestion(name, found)}"
            there = f"one of its columns: {', '.join(map(repr, found)) or 'none'}"
            lines.append(problem(place, value, there, "correct the name in the recipe"))
        elif list(found).count(name) > 1:
            lines.append(problem(place, f"{path.name} has two columns '{name}'", "names differ", "rename one"))
    if lines:
        raise DataError("\n".join(lines))


def _empty(path: Path, place: str) -> DataError:
    return DataError(problem(f"{place}.path", f"{path.name} is empty", "a header and rows", "check the file"))


def _csv(path: Path, names: list[str], place: str, separator: str, whole: Collection[str]) -> Iterator[_Loose]:
    """Quick while nothing in the text is quoted, torn or wrongly encoded; from the first block that is, careful."""
    stream = blocks(path, place)
    block = next(stream, b"")
    if not block.strip():
        raise _empty(path, place)
    end = block.find(b"\n") + 1 or len(block)
    header = block[:end]
    if not _is_plain(header) or not header.strip():
        yield from _careful_csv(itertools.chain([block], stream), names, path, place, separator)
        return
    found = header.decode().rstrip("\r\n").split(separator)
    found = [name.strip() for name in found]
    _require(names, found, path, place)
    row = 2
    plain = Plain(found, names, separator, whole)

    def read(body: bytes) -> _Loose | None:
        if not _is_plain(body):
            return None
        frame = plain.read(body)
        if frame is not None:
            return frame, plain.loose(frame, body)
        frame = _quick(body, found, names, separator)
        return None if frame is None else (frame, names)

    bodies = ahead(itertools.chain([block[end:]], stream), read)
    for body, quick in bodies:
        if quick is None:
            rest = itertools.chain([header, body], (later for later, _ in bodies))
            yield from _careful_csv(rest, names, path, place, separator, first_row=row)
            return
        frame, loose = quick
        yield frame.with_row_index("row", offset=row), loose
        row += frame.height


def _is_plain(block: bytes) -> bool:
    """Whether lines and fields are what they look like: no quotes, no lone carriage returns, valid UTF-8."""
    if b'"' in block or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
        return False
    if block.isascii():
        return True
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True


def _quick(body: bytes, found: list[str], names: list[str], separator: str) -> pl.DataFrame | None:
    """The rows of a plain block, or None where Polars finds it torn."""
    if not body:
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    positions = {f"c{position}": name for position, name in enumerate(found)}
    wanted = [key for key, name in positions.items() if name in names]
    head = separator.join(positions).encode() + b"\n"
    try:
        frame = pl.read_csv(head + body, columns=wanted, separator=separator, quote_char=None, infer_schema=False)
    except pl.exceptions.PolarsError:
        return None
    return frame.rename(positions, strict=False)


def _careful_csv(
    stream: Iterator[bytes], names: list[str], path: Path, place: str, separator: str, first_row: int = 2
) -> Iterator[_Loose]:
    """The same through Python's reader: quotes, torn rows and wrong bytes, row by row."""
    csv.field_size_limit(sys.maxsize)  # the default refuses fields over 128 KB
    decoder = codecs.getincrementaldecoder("utf-8")("recft.mark")
    lines = (line for block in stream for line in io.StringIO(decoder.decode(block), newline=""))
    reader = csv.reader(lines, delimiter=separator)
    found = [name.strip() for name in next((fields for fields in reader if fields), [])]
    if not found:
        raise _empty(path, place)
    _require(names, found, path, place)
    places = [found.index(name) for name in names]
    numbered = enumerate(reader, start=first_row)
    while chunk := list(itertools.islice(numbered, _BATCH_ROWS)):
        rows = [(row, *_fields(fields, places, len(found))) for row, fields in chunk]
        schema = {"row": pl.UInt32, "flaw": pl.String, "flaw_value": pl.String, **dict.fromkeys(names, pl.String)}
        yield pl.DataFrame(rows, schema=schema, orient="row"), names


def _fields(fields: list[str], places: list[int], width: int) -> list[str | None]:
    """The flaw, its value, and the wanted fields of one row."""
    values = [fields[place] if place < len(fields) else None for place in places]
    if len(fields) > width:
        return [RAGGED, f"{len(fields)} fields for {width} columns: {fields[width]}", *values]
    torn = next((value for value in values if value is not None and _MARK in value), None)
    if torn is not None:
        return [BAD_UTF8, torn.replace(_MARK, ""), *values]
    return [None, None, *values]


def _jsonl(path: Path, names: list[str], place: str, nested: Sequence[str]) -> Iterator[_Loose]:
    lines = (line for block in blocks(path, place) for line in io.BytesIO(block))
    found: dict[str, None] = {}
    rows: list[list[Any]] = []
    schema = {"row": pl.UInt32, "flaw": pl.String, "flaw_value": pl.String, **dict.fromkeys(names, pl.String)}
    row = 0
    for row, line in enumerate(lines, start=1):
        if line.strip():
            rows.append([row, *_object(line, names, found, nested)])
        if row % _BATCH_ROWS == 0:
            # A column that many lines lack may be optional; one that none has is missing.
            _require([name for name in names if found], list(found) or names, path, place)
            yield pl.DataFrame(rows, schema=schema, orient="row"), names
            rows = []
    if not row:
        raise _empty(path, place)
    _require(names if found else [], list(found), path, place)
    yield pl.DataFrame(rows, schema=schema, orient="row"), names


def _object(line: bytes, names: list[str], found: dict[str, None], nested: Sequence[str]) -> list[str | None]:
    """The flaw, its value, and the wanted values of one JSON line."""
    nothing: list[str | None] = [None] * len(names)
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return [BAD_UTF8, line.decode("utf-8", "backslashreplace").strip(), *nothing]
    except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
        return [NOT_JSON, line.decode().strip(), *nothing]
    if not isinstance(value, dict):
        return [NOT_JSON, line.decode().strip(), *nothing]
    found.update(dict.fromkeys(value))
    values = [(_json if name in nested else _text)(value.get(name)) for name in names]
    if any(text is not None and not _encodable(text) for text in values):
        return [BAD_UTF8, line.decode().strip(), *nothing]
    return [None, None, *values]


def _json(value: object) -> str | None:
    """A list or an object as compact JSON, any other value as text."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _text(value)


def _encodable(text: str) -> bool:
    """Whether a text has no lone surrogate, which JSON's escapes can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: object) -> str | None:
    """A JSON value as a person would write it in a cell: lists joined by commas, whole numbers without a point."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, list):
        return ", ".join(text for part in value if (text := _text(part)))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {text}" for key, part in value.items() if (text := _text(part)))
    return str(value)


def _parquet(
    path: Path, names: list[str], place: str, nested: Sequence[str], whole: Collection[str]
) -> Iterator[_Loose]:
    try:
        scan = pl.scan_parquet(path)
        schema = scan.collect_schema()
        height = scan.select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as error:
        detail = str(error).splitlines()[0]
        raise DataError(
            problem(
                f"{place}.path", f"{path.name} is no Parquet file ({detail})", "a whole Parquet file", "write it anew"
            )
        ) from error
    _require(names, schema.names(), path, place)
    inner = [name for name in names if name in nested and schema[name].is_nested()]
    numbers = [name for name in names if name in whole and schema[name] in _WITHIN_INT64]
    kinds = {name: pl.col(name) for name in inner} | {name: pl.col(name).cast(pl.Int64) for name in numbers}
    wanted = scan.select(kinds[name] if name in kinds else _as_text(name, schema[name]) for name in names)
    for start in range(0, max(height, 1), _PARQUET_ROWS):
        part = wanted.slice(start, _PARQUET_ROWS).collect()
        written = [pl.Series(name, [_json(value) for value in part[name].to_list()], pl.String) for name in inner]
        loose = [name for name in names if name not in numbers]
        yield part.with_columns(written).with_row_index("row", offset=start + 1), loose


def _as_text(name: str, kind: pl.DataType) -> pl.Expr:
    """A Parquet column as text, written as the other formats would."""
    column = pl.col(name)
    if isinstance(kind, pl.Float32 | pl.Float64):
        whole = (column == column.floor()) & (column.abs() < 2**53)
        return (
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .otherwise(column.cast(pl.String))
            .alias(name)
        )
    if isinstance(kind, pl.Datetime):
        utc = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None) if kind.time_zone else column
        return utc.dt.strftime("%Y-%m-%d %H:%M:%S%.6f").alias(name)
    if isinstance(kind, pl.List | pl.Array):
        parts = column.arr.to_list() if isinstance(kind, pl.Array) else column
        return parts.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True).alias(name)
    if isinstance(kind, pl.Struct):
        return column.struct.json_encode().alias(name)
    if isinstance(kind, pl.Binary):
        return column.cast(pl.String, strict=False).alias(name)
    return column.cast(pl.String).alias(name)
