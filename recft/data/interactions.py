"""The interaction log: read in batches, narrowed to numbers at once, sorted, and freed of duplicates."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, moment, moments, number
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift
from recft.data.store import Log
from recft.data.tables import batches
from recft.errors import DataError, problem
from recft.run import Listener
from recft.schema import InteractionsTable

__all__ = ["read_interactions"]

# Clocks of a log may be hours ahead of this machine's zone; a day is not a mistake of the log.
_FUTURE_SECONDS = 86_400
Places = NDArray[np.int64]

_CONFLICT = "one rating for the same user, item and time"


def read_interactions(
    table: InteractionsTable, catalogue: Catalogue, ledger: Ledger, listen: Listener
) -> tuple[Log, list[str]]:
    """The checked log, sorted by user, time, then file order, and the user ids by number.

    Users are numbered as they first appear. Exact duplicates are dropped and counted.

    Raises:
        DataError: the file or a column is missing, or no row is left.
    """
    path = Path(table.path)
    rules = _rules(table)
    numbers = catalogue.numbers
    users = pl.DataFrame(schema={"user": pl.String, "user_number": pl.Int32})
    parts: list[pl.DataFrame] = []
    rows_read = 0
    columns = [table.user, table.item, table.time, *filter(None, [table.rating, table.event])]
    for batch in batches(path, columns, "data.interactions", table.separator):
        sound = _checked(batch, table, rules, numbers, ledger, path.name)
        users = _with_new(users, sound["user"])
        parts.append(_narrow(sound, users))
        rows_read += batch.height
        listen("stage", {"stage": "interactions", "rows": rows_read})
    ids = users["user"]
    log, rows = _sorted(parts, table.rating is not None)
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
    return log, ids.to_list()


def _rules(table: InteractionsTable) -> list[Rule]:
    """What must not hold of an event, cheapest and plainest first."""
    latest = int(time.time()) + _FUTURE_SECONDS
    names = [table.user, table.item]
    rules = [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in names]
    rules += [
        Rule(table.user, "every event needs a user", pl.col(table.user).is_null()),
        Rule(table.item, "every event needs an item", pl.col(table.item).is_null()),
        Rule(table.item, "an item of data.items", pl.col("item_number").is_null()),
        Rule(table.time, f"a time ({table.time_format})", pl.col("moment").is_null()),
        Rule(table.time, "a time that is not in the future", pl.col("moment") > latest),
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
        outside = ~pl.col("moment").is_between(first, last)
        rules.append(Rule(table.time, f"a time within {' to '.join(table.time_range)}", outside))
    if table.rating is not None:
        rules.append(Rule(table.rating, "a finite number", pl.col("value").is_null()))
        if table.rating_range is not None:
            low, high = table.rating_range
            outside = ~pl.col("value").is_between(low, high)
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
    batch = batch.with_columns(moments(table.time, table.time_format).alias("moment"), value.alias("value"))
    flaws = batch["flaw"].drop_nulls().unique(maintain_order=True).to_list()
    torn = [Rule("(row)", flaw, pl.col("flaw") == flaw, "flaw_value") for flaw in flaws]
    sound = sift(batch, [*torn, *rules], ledger, file)
    kept = sound.filter(pl.col("item_number") >= 0)
    ledger.dropped["events of items without text"] += sound.height - kept.height
    return kept.select("row", pl.col(table.user).alias("user"), "item_number", "moment", "value")


def _with_new(users: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """The users with those of a batch that are new, numbered on."""
    fresh = seen.unique(maintain_order=True).to_frame("user").join(users, on="user", how="anti", maintain_order="left")
    count = users.height
    added = fresh.with_columns(
        pl.int_range(count, count + fresh.height, dtype=pl.Int32, eager=True).alias("user_number")
    )
    return pl.concat([users, added])


def _narrow(sound: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """A batch as numbers only: 24 bytes an event."""
    return sound.join(users, on="user", how="left", maintain_order="left").select(
        pl.col("user_number").alias("user"),
        pl.col("item_number").alias("item"),
        pl.col("moment").alias("time"),
        pl.col("value").cast(pl.Float32).alias("rating"),
        pl.col("row").cast(pl.UInt32),
    )


def _sorted(parts: list[pl.DataFrame], rated: bool) -> tuple[Log, NDArray[np.uint32]]:
    """The batches as one log in order of user, time and file, and each event's row in the file.

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
    return log, column("row")


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
