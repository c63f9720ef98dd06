"""The interaction log: read in batches, narrowed to numbers at once, sorted, and freed of duplicates."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, moment, moments, number
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift, torn
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
    numbers = catalogue.numbers
    users = _numbering("user")
    kept = {name: _numbering(f"kept_{place}") for place, name in enumerate(dict.fromkeys(table.columns))}
    parts: list[pl.DataFrame] = []
    rows_read = 0
    columns = [table.user, table.item, table.time, *filter(None, [table.rating, table.event]), *kept]
    for batch in batches(path, columns, "data.interactions", table.separator):
        sound = _checked(batch, table, rules, numbers, ledger, path.name)
        users = _with_new(users, sound["user"])
        kept = {name: _with_new(values, sound[values.columns[0]]) for name, values in kept.items()}
        parts.append(_narrow(sound, users, kept.values()))
        rows_read += batch.height
        listen("stage", {"stage": "interactions", "rows": rows_read})
    ids = users["user"]
    log, rows, codes = _sorted(parts, table.rating is not None, len(kept))
    if not len(log):
        ledger.settle()
        raise DataError(problem("data.interactions", f"{path.name} has no row", "at least one event", "check the file"))
    found = [(part.start, *_repeats(log, part)) for part in log.chunks()]
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
    del rows
    if len(later):
        mask = np.ones(len(log), bool)
        mask[later] = False
        log = log.kept(mask)
        codes = [code[mask] for code in codes]
    values = (frame.to_series(0).to_list() for frame in kept.values())
    return log, ids.to_list(), dict(zip(kept, map(Kept, values, codes), strict=True))


def _rules(table: InteractionsTable) -> list[Rule]:
    """What must not hold of an event, cheapest and plainest first."""
    latest = int(time.time()) + _FUTURE_SECONDS
    names = [table.user, table.item]
    rules = [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in names]
    rules += [
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


def _checked(
    batch: pl.DataFrame, table: InteractionsTable, rules: list[Rule], numbers: pl.DataFrame, ledger: Ledger, file: str
) -> pl.DataFrame:
    """The sound rows of one batch: row, user, item_number, moment, value."""
    if table.event is not None and table.keep_events is not None:
        # A row that is broken as such has no event to go by; it is told, not dropped.
        kept = batch.filter(pl.col(table.event).is_in(table.keep_events) | pl.col("flaw").is_not_null())
        ledger.dropped["events of other kinds"] += batch.height - kept.height
        batch = kept
    batch = batch.join(numbers, left_on=table.item, right_on="id", how="left", maintain_order="left")
    value = number(table.rating) if table.rating is not None else pl.lit(None, dtype=pl.Float64)
    batch = batch.with_columns(moments(table.time, table.time_format).alias("__moment"), value.alias("__value"))
    sound = sift(batch, [*torn(batch), *rules], ledger, file)
    kept = sound.filter(pl.col("__item") >= 0)
    ledger.dropped["events of items without text"] += sound.height - kept.height
    columns = [
        pl.col(name).fill_null("").alias(f"kept_{place}") for place, name in enumerate(dict.fromkeys(table.columns))
    ]
    return kept.select("row", pl.col(table.user).alias("user"), "__item", "__moment", "__value", *columns)


def _numbering(name: str) -> pl.DataFrame:
    """The values of a column as they first appear, and their numbers: none yet."""
    return pl.DataFrame(schema={name: pl.String, f"{name}_number": pl.Int32})


def _with_new(known: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """The known values with those of a batch that are new, numbered on."""
    name, number_ = known.columns
    fresh = seen.unique(maintain_order=True).to_frame(name).join(known, on=name, how="anti", maintain_order="left")
    count = known.height
    added = fresh.with_columns(pl.int_range(count, count + fresh.height, dtype=pl.Int32, eager=True).alias(number_))
    return pl.concat([known, added])


def _narrow(sound: pl.DataFrame, users: pl.DataFrame, kept: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """A batch as numbers only: 24 bytes an event, and 4 for each column that is kept."""
    for values in (users, *kept):
        sound = sound.join(values, on=values.columns[0], how="left", maintain_order="left")
    return sound.select(
        pl.col("user_number").alias("user"),
        pl.col("__item").alias("item"),
        pl.col("__moment").alias("time"),
        pl.col("__value").cast(pl.Float32).alias("rating"),
        pl.col("row").cast(pl.UInt32),
        *(f"{values.columns[0]}_number" for values in kept),
    )


def _sorted(
    parts: list[pl.DataFrame], rated: bool, kept: int
) -> tuple[Log, NDArray[np.uint32], list[NDArray[np.int32]]]:
    """The batches as one log in order of user, time and file, each event's row in the file, and what is kept of it.

    The batches are taken from the list one column at a time: the log is held once, and one column twice.
    """
    keys = [np.concatenate([part[name].to_numpy() for part in parts]) for name in ("time", "user")]
    # Stable, so that events of one moment stay in the file's order; three times as quick as sorting the frame.
    order = np.lexsort(keys)
    del keys

    def column(name: str) -> Any:
        values = np.concatenate([part[name].to_numpy() for part in parts])
        for place, part in enumerate(parts):
            parts[place] = part.drop(name)
        return values[order]

    log = Log(column("user"), column("item"), column("time"), column("rating") if rated else None)
    return log, column("row"), [column(f"kept_{place}_number") for place in range(kept)]


def _repeats(log: Log, part: slice) -> tuple[Places, Places]:
    """Places in a part that repeat an earlier event of the same user, time and item, and the place of that one."""
    user, moment_, item = log.users[part], log.times[part], log.items[part]
    fresh = np.ones(len(user), bool)
    fresh[1:] = (user[1:] != user[:-1]) | (moment_[1:] != moment_[:-1])
    basket = np.cumsum(fresh) - 1
    # Sorted by item within each basket; `stable` keeps the file's order among equals.
    key = basket * (int(item.max()) + 1) + item
    order = np.argsort(key, kind="stable")
    key = key[order]
    again = np.zeros(len(key), bool)
    again[1:] = key[1:] == key[:-1]
    leader = np.maximum.accumulate(np.where(again, 0, np.arange(len(key))))
    return order[again], order[leader[again]]


def _note_clashes(
    log: Log,
    later: Places,
    first: Places,
    rows: NDArray[np.uint32],
    users: pl.Series,
    items: pl.Series,
    column: str,
    file: str,
    ledger: Ledger,
) -> None:
    """Tells of events that were rated again, differently, at the same moment."""
    if log.ratings is None:
        return
    ratings = log.ratings

    def told(place: int) -> tuple[int, str, str, str]:
        event, before = int(later[place]), int(first[place])
        who = f"user {users[int(log.users[event])]}, item {items[int(log.items[event])]}"
        return int(rows[event]), column, f"{ratings[event]:g} after {ratings[before]:g}, {who}", _CONFLICT

    ledger.note(file, (told(place) for place in np.argsort(rows[later], kind="stable").tolist()))
