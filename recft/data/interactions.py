"""The interaction log: read in batches, narrowed to numbers at once, sorted, and freed of duplicates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, is_numeric, moment, moments, number, whole_moments
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.numbering import Numbering
from recft.data.order import CACHED_ROWS, Columns, by_user_and_time, threads, without
from recft.data.sources import ahead
from recft.data.store import Log
from recft.data.tables import batches
from recft.errors import DataError, problem
from recft.run import Listener
from recft.schema import InteractionsTable

__all__ = ["Kept", "read_interactions"]

# Clocks of a log may be hours ahead of this machine's zone; a day is not a mistake of the log.
_FUTURE_SECONDS = 86_400
Places = NDArray[np.int64]

_CONFLICT = "one rating for the same user, item and time"


@dataclass(frozen=True)
class Kept:
    """A column kept for slices.

    Attributes:
        values: its different values.
        codes: (E,) int32, the place of each event's value among them.
    """

    values: list[str]
    codes: NDArray[np.int32]


def read_interactions(
    table: InteractionsTable, catalogue: Catalogue, ledger: Ledger, listen: Listener
) -> tuple[Log, list[str], dict[str, Kept]]:
    """The checked log, sorted by user, time, then file order, the user ids by number, and columns kept for slices.

    Users are numbered as they first appear. Exact duplicates are dropped and counted.

    Raises:
        DataError: the file or a column is missing, or no row is left.
    """
    path = Path(table.path)
    rules = _rules(table)
    items, users = Numbering(catalogue.numbers["id"]), Numbering()
    kept = {name: Numbering() for name in dict.fromkeys(table.columns)}
    parts: list[Columns] = []
    rows_read = 0
    columns = [table.user, table.item, table.time, *filter(None, [table.rating, table.event]), *kept]
    read = batches(path, columns, "data.interactions", table.separator, whole=_may_be_whole(table))
    # What is meant by each batch is worked out while the one before is counted.
    for batch, meant in ahead(read, lambda batch: _meant(batch, table, items, users, catalogue.frame.height)):
        sound = _checked(batch, meant, table, rules, ledger, path.name)
        parts.append(_narrow(sound, table, users, kept))
        rows_read += batch.height
        listen("stage", {"stage": "interactions", "rows": rows_read})
    ids = users.values
    if not any(len(part["user"]) for part in parts):
        ledger.settle()
        raise DataError(problem("data.interactions", f"{path.name} has no row", "at least one event", "check the file"))
    log, rows, codes = _sorted(parts, len(kept))
    with threads() as pool:
        found = list(pool.map(lambda part: (part.start, *_repeats(log, part)), log.chunks(CACHED_ROWS)))
    later = np.concatenate([start + places for start, places, _ in found])
    first = np.concatenate([start + places for start, _, places in found])
    if log.ratings is not None:
        clash = log.ratings[later] != log.ratings[first]
        _note_clashes(
            log, later[clash], first[clash], rows, ids, catalogue.frame["id"], str(table.rating), path.name, ledger
        )
        ledger.dropped["exact duplicates of events"] += int((~clash).sum())
    else:
        ledger.dropped["exact duplicates of events"] += len(later)
    if len(later):
        later.sort()
        log, codes = log.without(later), [without(code, later) for code in codes]
    values = (numbering.values.to_list() for numbering in kept.values())
    return log, ids.to_list(), dict(zip(kept, map(Kept, values, codes), strict=True))


def _may_be_whole(table: InteractionsTable) -> set[str]:
    """The columns that may be read as whole numbers."""
    whole = {table.user, table.item, *filter(None, [table.rating])}
    whole |= {table.time} if is_numeric(table.time_format) else set()
    return whole - {table.event, *table.columns}


def _rules(table: InteractionsTable) -> list[Rule]:
    """What must not hold of an event, cheapest and plainest first."""
    latest = int(time.time()) + _FUTURE_SECONDS
    rules = [
        Rule(table.user, "every event needs a user", pl.col(table.user).is_null()),
        Rule(table.item, "every event needs an item", pl.col(table.item).is_null()),
        Rule(table.item, "an item of data.items", pl.col("__item").is_null()),
        Rule(table.time, f"a time ({table.time_format})", pl.col("__moment").is_null()),
        Rule(table.time, "a time that is not in the future", pl.col("__moment") > latest),
    ]
    if table.time_range is not None:
        first, last = (moment(text, "data.interactions.time_range") for text in table.time_range)
        if first > last:
            raise DataError(
                problem(
                    "data.interactions.time_range",
                    f"{table.time_range}",
                    "the first is not after the last",
                    "swap them",
                )
            )
        outside = ~pl.col("__moment").is_between(first, last)
        rules.append(Rule(table.time, f"a time within {' to '.join(table.time_range)}", outside))
    if table.rating is not None:
        rules.append(Rule(table.rating, "a finite number", pl.col("__value").is_null()))
        if table.rating_range is not None:
            low, high = table.rating_range
            outside = ~pl.col("__value").is_between(low, high)
            rules.append(Rule(table.rating, f"a rating within {low:g} to {high:g}", outside))
    return rules


def _meant(
    batch: pl.DataFrame, table: InteractionsTable, items: Numbering, users: Numbering, n_items: int
) -> pl.DataFrame:
    """What a batch's columns say: __user, __item, __moment, __value; null where that cannot be read.

    __item is -1 for an item that was left out of the catalogue.
    """
    found = pl.Series("__item", items.find(items.coded(batch[table.item])))
    if len(found) and (found.min() < 0 or found.max() >= n_items):  # type: ignore[operator]
        found = found.to_frame().select(pl.when(found >= n_items).then(-1).when(found >= 0).then(found)).to_series()
    times = batch[table.time]
    whole = times.dtype == pl.Int64
    return batch.select(
        users.coded(batch[table.user]).alias("__user"),
        found.cast(pl.Int32).alias("__item"),
        __moment=whole_moments(times, table.time_format) if whole else moments(table.time, table.time_format),
        __value=number(table.rating) if table.rating is not None else pl.lit(None),
    )


def _checked(
    batch: pl.DataFrame, meant: pl.DataFrame, table: InteractionsTable, rules: list[Rule], ledger: Ledger, file: str
) -> pl.DataFrame:
    """The sound rows of one batch: row, __user, __item, __moment, __value, and what is kept."""
    texts = [name for name in (table.user, table.item) if batch[name].dtype == pl.String]
    told = [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in texts]
    batch = batch.hstack(meant)
    if table.event is not None and table.keep_events is not None:
        # A row that is broken as such has no event to go by; it is told, not dropped.
        kept = batch.filter(pl.col(table.event).is_in(table.keep_events) | pl.col("flaw").is_not_null())
        ledger.dropped["events of other kinds"] += batch.height - kept.height
        batch = kept
    sound = sift(batch, [*torn(batch), *told, *rules], ledger, file)
    if (sound["__item"] < 0).any():
        kept = sound.filter(pl.col("__item") >= 0)
        ledger.dropped["events of items without text"] += sound.height - kept.height
        sound = kept
    return sound.select("row", *meant.columns, *dict.fromkeys([table.user, *table.columns]))


def _narrow(sound: pl.DataFrame, table: InteractionsTable, users: Numbering, kept: Mapping[str, Numbering]) -> Columns:
    """A batch as numbers only: 16 bytes an event, 8 more with ratings, and 4 for each column that is kept."""
    columns: Columns = {
        "user": users.with_new(sound[table.user], sound["__user"]),
        # Copies: what Polars holds can be used for the next batch.
        "item": sound["__item"].to_numpy(writable=True),
        "time": sound["__moment"].to_numpy(writable=True),
    }
    if table.rating is not None:
        columns |= {
            "rating": sound["__value"].cast(pl.Float32).to_numpy(writable=True),
            "row": sound["row"].cast(pl.UInt32).to_numpy(writable=True),
        }
    for place, (name, numbering) in enumerate(kept.items()):
        values = sound[name].fill_null("")
        columns[f"kept_{place}"] = numbering.with_new(values, numbering.coded(values))
    return columns


def _sorted(parts: list[Columns], kept: int) -> tuple[Log, NDArray[np.uint32] | None, list[NDArray[np.int32]]]:
    """The batches as one log in order of user, time and file, rated events' rows in the file, and what is kept."""
    whole = by_user_and_time(parts)
    log = Log(whole["user"], whole["item"], whole["time"], whole.get("rating"))
    return log, whole.get("row"), [whole[f"kept_{place}"] for place in range(kept)]


def _repeats(log: Log, part: slice) -> tuple[Places, Places]:
    """Places in a part that repeat an earlier event of the same user, time and item, and the place of that one."""
    user, moment_, item = log.users[part], log.times[part], log.items[part]
    fresh = np.ones(len(user) + 1, bool)
    fresh[1:-1] = (user[1:] != user[:-1]) | (moment_[1:] != moment_[:-1])
    # Only where several events share a moment can one repeat another.
    shared = np.flatnonzero(~(fresh[:-1] & fresh[1:]))
    if not len(shared):
        return shared, shared
    basket = np.cumsum(fresh[shared]) - 1
    # Sorted by item within each basket; `stable` keeps the file's order among equals.
    key = basket * (int(item.max()) + 1) + item[shared]
    order = np.argsort(key, kind="stable")
    key = key[order]
    again = np.zeros(len(key), bool)
    again[1:] = key[1:] == key[:-1]
    leader = np.maximum.accumulate(np.where(again, 0, np.arange(len(key))))
    return shared[order[again]], shared[order[leader[again]]]


def _note_clashes(
    log: Log,
    later: Places,
    first: Places,
    rows: NDArray[np.uint32] | None,
    users: pl.Series,
    items: pl.Series,
    column: str,
    file: str,
    ledger: Ledger,
) -> None:
    """Tells of events that were rated again, differently, at the same moment."""
    if log.ratings is None or rows is None:
        return
    ratings = log.ratings

    def told(place: int) -> tuple[int, str, str, str]:
        event, before = int(later[place]), int(first[place])
        who = f"user {users[int(log.users[event])]}, item {items[int(log.items[event])]}"
        return int(rows[event]), column, f"{ratings[event]:g} after {ratings[before]:g}, {who}", _CONFLICT

    ledger.note(file, (told(place) for place in np.argsort(rows[later], kind="stable").tolist()))
