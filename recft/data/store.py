"""The prepared data as it lies on disk, and reading it back.

items.parquet           id, text, title; the row number is the item number
users.parquet           id, text; the row number is the user number (table "interactions")
interactions.parquet    user, item, time (unix seconds), rating; sorted by user, time, then file order
records/<split>.parquet train, valid, test: one row a record, its candidate pairs as list columns
card.json               counts, hashes, shares, lengths
quarantine.jsonl        rows that were set aside, where there were any

Columns that the recipe keeps for slices stand beside these, each as `column:<the file's own name>`.

In the table "texts" the items are the different labels, with the label itself as id, or the different replies, r0, r1
and so on; a record's query is its text, or the messages before the answer as a JSON list of {role, content}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from recft.data.order import Rows, without
from recft.errors import DataError, problem
from recft.run import read_json

__all__ = [
    "SPLITS",
    "Log",
    "Named",
    "Records",
    "Split",
    "Store",
    "Table",
    "kept_columns",
    "kept_in",
    "with_columns",
    "write_log",
    "write_records",
]

Split = Literal["train", "valid", "test"]
Table = Literal["queries", "interactions", "texts"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

# So many rows are made and written at a time.
_RECORDS_A_CHUNK = 500_000
_COLUMN = "column:"


@dataclass(frozen=True)
class Log:
    """The interaction log as arrays, sorted by user, time, then file order: E events.

    Attributes:
        users: (E,) int32 user numbers.
        items: (E,) int32 item numbers.
        times: (E,) int64 unix seconds.
        ratings: (E,) float32, or None where the log has none.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    ratings: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.items)

    def chunks(self, rows: int = 2_000_000) -> Iterator[slice]:
        """The log in parts of about so many rows, no user divided: what is counted by user needs no more at once."""
        start = 0
        while start < len(self):
            stop = min(start + rows, len(self))
            stop = int(np.searchsorted(self.users, self.users[stop - 1], side="right"))
            yield slice(start, stop)
            start = stop

    def without(self, places: NDArray[np.int64]) -> Log:
        """The log without the events at these places, which ascend; this one's own arrays are spent."""
        ratings = None if self.ratings is None else without(self.ratings, places)
        return Log(without(self.users, places), without(self.items, places), without(self.times, places), ratings)

    def kept(self, mask: NDArray[np.bool_]) -> Log:
        """The events where `mask` holds, in the same order."""
        ratings = None if self.ratings is None else self.ratings[mask]
        return Log(self.users[mask], self.items[mask], self.times[mask], ratings)


@dataclass(frozen=True)
class Named(Sequence[str]):
    """Names by number, as a sequence of names: millions of records of a log need no list of them."""

    names: Sequence[str]
    numbers: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Named: ...
    def __getitem__(self, place: int | slice) -> str | Named:
        if isinstance(place, slice):
            return Named(self.names, self.numbers[place])
        return self.names[int(self.numbers[place])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Records:
    """R records: a context each, and graded items; record r owns `offsets[r]:offsets[r + 1]` of the P pairs.

    Attributes:
        keys: (R,) user id, normalised query or text, or the text's group: the bootstrap's cluster.
        queries: (R,) raw query (table "queries"), or text or messages (table "texts").
        users: (R,) int32 user number (table "interactions").
        starts: (R,); the history of record r is `log_items[starts[r]:cuts[r]]`, oldest first.
        cuts: (R,).
        times: (R,) int64, unix seconds of the (first) target.
        offsets: (R + 1,) int64 into items and grades.
        items: (P,) int32 item numbers of the candidate pairs.
        grades: (P,) float32: relevance grade; next item 1; yes or no as 1 and 0; right or chosen 1, rejected 0.
        log_items: (E,) int32, the whole log's items, shared by the splits.
        log_times: (E,) int64, unix seconds.
        log_ratings: (E,) float32, where the log has ratings.
        columns: the file's own name of a column kept for slices -> (R,) its values, "" where there is none.
        profiles: the text of every user, by number, where the recipe maps profiles.
    """

    keys: Sequence[str]
    queries: list[str] | None
    users: NDArray[np.int32] | None
    starts: Rows | None
    cuts: Rows | None
    times: NDArray[np.int64] | None
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    grades: NDArray[np.float32]
    log_items: NDArray[np.int32] | None = None
    log_times: NDArray[np.int64] | None = None
    log_ratings: NDArray[np.float32] | None = None
    columns: dict[str, list[str]] = field(default_factory=dict)
    profiles: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def history(self, record: int, last: int | None = None) -> NDArray[np.int32]:
        """The item numbers that came before a record's target, oldest first; the `last` ones where that is given."""
        if self.starts is None or self.cuts is None or self.log_items is None:
            return np.empty(0, np.int32)
        start, cut = int(self.starts[record]), int(self.cuts[record])
        if last is not None:
            start = max(start, cut - last)
        return self.log_items[start:cut]

    def profile(self, record: int) -> str:
        """What is known of a record's user, as text; empty where nothing is."""
        if self.profiles is None or self.users is None:
            return ""
        return self.profiles[int(self.users[record])]

    def take(self, rows: NDArray[Any]) -> Records:
        """The records `rows`, in that order."""
        rows = np.asarray(rows, np.int64)
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        pairs = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)

        def of(values: Any) -> Any:
            return None if values is None else values[rows]

        return replace(
            self,
            keys=[self.keys[row] for row in rows],
            queries=None if self.queries is None else [self.queries[row] for row in rows],
            users=of(self.users),
            starts=of(self.starts),
            cuts=of(self.cuts),
            times=of(self.times),
            offsets=offsets,
            items=self.items[pairs],
            grades=self.grades[pairs],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )

    def with_every(self, n_items: int) -> Records:
        """The same records with every item of the catalogue as a candidate, graded 0."""
        return replace(
            self,
            offsets=np.arange(len(self) + 1, dtype=np.int64) * n_items,
            items=np.tile(np.arange(n_items, dtype=np.int32), len(self)),
            grades=np.zeros(len(self) * n_items, np.float32),
        )


@dataclass(frozen=True)
class Store:
    """Prepared data, opened: the catalogue in memory, records on demand.

    Attributes:
        folder: where it lies.
        item_ids: (N,) and so are texts and titles; table "texts": labels, or r0, r1 and so on for replies.
        item_texts: what models read of an item.
        item_titles: what people read of it.
        user_ids: (U,), table "interactions".
        card: the data card.
        table: where the records come from.
        user_texts: (U,) profiles, "" where there is none.
        item_columns: name of a column kept for slices -> (N,) values, "" where there is none.
        user_columns: the same of users, (U,).
    """

    folder: Path
    item_ids: list[str]
    item_texts: list[str]
    item_titles: list[str]
    user_ids: list[str]
    card: dict[str, Any]
    table: Table
    user_texts: list[str] = field(default_factory=list)
    item_columns: dict[str, list[str]] = field(default_factory=dict)
    user_columns: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str) -> Store:
        """The prepared data in a folder.

        Raises:
            DataError: the folder is missing, or not whole.
        """
        folder = Path(folder)
        if not (folder / "card.json").is_file():
            raise DataError(
                problem(str(folder), "holds no card.json", "a folder of prepared data", "run `recft prepare` first")
            )
        card = read_json(folder / "card.json")
        needed = ["items.parquet", *(f"records/{split}.parquet" for split in SPLITS)]
        if card.get("table") == "interactions":
            needed += ["users.parquet", "interactions.parquet"]
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise DataError(
                problem(
                    str(folder),
                    f"misses {', '.join(missing)}",
                    "all files of the card",
                    "prepare it again with --force",
                )
            )
        items = pl.read_parquet(folder / "items.parquet")
        path = folder / "users.parquet"
        users = pl.read_parquet(path) if path.is_file() else pl.DataFrame(schema={"id": pl.String, "text": pl.String})
        return cls(
            folder,
            items["id"].to_list(),
            items["text"].to_list(),
            items["title"].to_list(),
            users["id"].to_list(),
            card,
            card["table"],
            users["text"].to_list(),
            kept_columns(items),
            kept_columns(users),
        )

    @cached_property
    def log(self) -> Log | None:
        """The interaction log, read once; None for tables without one."""
        if self.table != "interactions":
            return None
        frame = pl.read_parquet(self.folder / "interactions.parquet")
        return Log(
            frame["user"].to_numpy(),
            frame["item"].to_numpy(),
            frame["time"].to_numpy(),
            frame["rating"].to_numpy() if "rating" in frame.columns else None,
        )

    def records(self, split: Split) -> Records:
        """The records of one split.

        Raises:
            DataError: there is no such split.
        """
        if split not in SPLITS:
            raise DataError(problem("split", f"'{split}'", f"one of {', '.join(SPLITS)}", "correct the name"))
        frame = pl.read_parquet(self.folder / "records" / f"{split}.parquet")
        offsets = np.zeros(frame.height + 1, np.int64)
        np.cumsum(frame["items"].list.len().to_numpy(), out=offsets[1:])
        pairs = frame["items"].explode().to_numpy() if frame.height else np.empty(0, np.int32)
        grades = frame["grades"].explode().to_numpy() if frame.height else np.empty(0, np.float32)
        log = self.log
        if log is None:
            keys, queries = frame["key"].to_list(), frame["query"].to_list()
            return Records(keys, queries, None, None, None, None, offsets, pairs, grades, columns=kept_columns(frame))
        users = frame["user"].to_numpy()
        keys = [self.user_ids[user] for user in users.tolist()]
        starts, cuts, times = (frame[name].to_numpy() for name in ("start", "cut", "time"))
        profiles = self.user_texts if any(self.user_texts) else None
        shared = (log.items, log.times, log.ratings, kept_columns(frame), profiles)
        return Records(keys, None, users, starts, cuts, times, offsets, pairs, grades, *shared)


def kept_columns(frame: pl.DataFrame) -> dict[str, list[str]]:
    """The columns of a frame that are kept for slices, by the file's own names."""
    return {name.removeprefix(_COLUMN): frame[name].to_list() for name in kept_in(frame)}


def kept_in(frame: pl.DataFrame) -> list[str]:
    """The names that a frame's columns kept for slices have in it."""
    return [name for name in frame.columns if name.startswith(_COLUMN)]


def with_columns(names: Iterable[str]) -> list[pl.Expr]:
    """A table's columns as they are kept for slices: under `column:<name>`, nothing as ""."""
    return [pl.col(name).fill_null("").alias(f"{_COLUMN}{name}") for name in dict.fromkeys(names)]


def write_log(path: Path, log: Log) -> None:
    """Writes a log; `Store.log` reads it back."""

    def part(start: int, stop: int) -> pl.DataFrame:
        named: dict[str, NDArray[Any] | None] = {"user": log.users, "item": log.items, "time": log.times}
        named["rating"] = log.ratings
        return pl.DataFrame({name: values[start:stop] for name, values in named.items() if values is not None})

    _write_parts(path, len(log), part)


def write_records(path: Path, records: Records) -> None:
    """Writes one split's records; `Store.records` reads them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_parts(path, len(records), lambda start, stop: _chunk(records, start, stop))


def _write_parts(path: Path, height: int, part: Callable[[int, int], pl.DataFrame]) -> None:
    """Writes a Parquet file of `part(start, stop)` for all its rows; few parts are held at any time."""

    def parts(*_: object) -> Iterator[pl.DataFrame]:
        for start in range(0, max(1, height), _RECORDS_A_CHUNK):
            yield part(start, min(start + _RECORDS_A_CHUNK, height))

    rows = register_io_source(parts, schema=part(0, 0).schema)
    # Level 1 writes these columns a third faster than the default, and no larger.
    rows.sink_parquet(path, compression_level=1, statistics=False, row_group_size=_RECORDS_A_CHUNK)


def _chunk(records: Records, start: int, stop: int) -> pl.DataFrame:
    """The records from `start` to `stop` as a frame with list columns."""
    here = slice(start, stop)
    if records.queries is not None:
        columns = {
            "key": pl.Series(records.keys[here], dtype=pl.String),
            "query": pl.Series(records.queries[here], dtype=pl.String),
        }
    else:
        named = {"user": records.users, "start": records.starts, "cut": records.cuts, "time": records.times}
        columns = {name: pl.Series(values[here]) for name, values in named.items() if values is not None}
        columns |= {name: columns[name].cast(pl.Int64) for name in ("start", "cut")}
    for name, kept in records.columns.items():
        columns[f"{_COLUMN}{name}"] = pl.Series(kept[here], dtype=pl.String)
    bounds = records.offsets[start : stop + 1]
    # Polars groups what is known to be sorted by slices, without looking anything up.
    record = pl.Series(np.repeat(np.arange(stop - start, dtype=np.int32), np.diff(bounds))).set_sorted()
    flat = pl.DataFrame(
        {
            "record": record,
            "items": records.items[bounds[0] : bounds[-1]],
            "grades": records.grades[bounds[0] : bounds[-1]],
        }
    )
    lists = flat.group_by("record", maintain_order=True).agg("items", "grades").drop("record")
    return pl.DataFrame(columns).hstack(lists)
