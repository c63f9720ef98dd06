"""The catalogue: every item once, with the text that models read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recft.data.columns import HAS_NUL, one_line
from recft.data.ledger import Ledger, Rule, sift
from recft.data.tables import batches
from recft.errors import DataError, problem
from recft.schema import DataSettings, ItemsTable

__all__ = ["Catalogue", "read_items"]

SEPARATOR = ", "
_NEEDS_ID = "every item needs an id"
_NEEDS_TEXT = "every item needs text in one of its text columns"
_ONE_ROW = "an id stands once; exact repeats are dropped"


@dataclass(frozen=True)
class Catalogue:
    """The items, and what is needed to read tables that name them.

    Attributes:
        frame: id, text, title, and one column `field_<n>` for each text column; the row number is the item number.
        fields: the file's names of the text columns.
        skipped: ids left out for want of text, where the recipe says so, and of bad rows where the run will stop at
            them: events of such items are no mistakes of their own.
    """

    frame: pl.DataFrame
    fields: tuple[str, ...]
    skipped: pl.Series

    @property
    def numbers(self) -> pl.DataFrame:
        """Item ids and item number; skipped items have the number -1."""
        known = self.frame.select("id").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("item_number"))
        skipped = pl.DataFrame({"id": self.skipped}).with_columns(pl.lit(-1, dtype=pl.Int32).alias("item_number"))
        return pl.concat([known, skipped])


def read_items(settings: DataSettings, ledger: Ledger) -> Catalogue:
    """The checked catalogue; bad rows go to the ledger.

    Raises:
        DataError: the file or a column is missing, or no item is left.
    """
    table = settings.items
    path = Path(table.path)
    names = list(dict.fromkeys([table.id, *table.text, *([table.title] if table.title else [])]))
    parts, named = [], []
    for batch in batches(path, names, "data.items", table.separator):
        parts.append(_checked(batch, table, names, ledger, path.name))
        if parts[-1].height < batch.height and ledger.keeps_bad_rows:
            named.append(batch[table.id].rename("id"))
    rows = _once(pl.concat(parts), table, ledger, path.name)
    named.append(rows["id"])
    texts = [pl.col(f"text_{name}") for name in table.text]
    empty = pl.all_horizontal(column.is_null() for column in texts)
    if settings.on_missing_text == "skip":
        skipped = rows.filter(empty)["id"]
        rows = rows.filter(~empty)
        ledger.dropped["items without text"] += len(skipped)
        named.append(skipped)
    else:
        rows = sift(rows, [Rule(SEPARATOR.join(table.text), _NEEDS_TEXT, empty)], ledger, path.name)
        skipped = rows["id"][:0]
    if not rows.height:
        ledger.settle()
        raise DataError(
            problem("data.items", f"{path.name} has no item", "at least one row with an id and text", "check the file")
        )
    if ledger.keeps_bad_rows and ledger.by_rule:
        skipped = pl.concat(named).drop_nulls().unique()
        skipped = skipped.filter(~skipped.is_in(rows["id"].implode()))
    title = pl.coalesce(pl.col(f"text_{table.title or table.text[0]}"), *texts)
    frame = rows.select(
        pl.col("id"),
        pl.concat_str(*texts, separator=SEPARATOR, ignore_nulls=True).alias("text"),
        title.alias("title"),
        *[column.alias(f"field_{number}") for number, column in enumerate(texts)],
    )
    return Catalogue(frame, table.text, skipped)


def _checked(batch: pl.DataFrame, table: ItemsTable, names: list[str], ledger: Ledger, file: str) -> pl.DataFrame:
    """The sound rows of one batch as row, id and `text_<column>`."""
    rules = [Rule("(row)", flaw, pl.col("flaw") == flaw, "flaw_value") for flaw in _flaws(batch)]
    rules += [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in names]
    rules.append(Rule(table.id, _NEEDS_ID, pl.col(table.id).is_null()))
    sound = sift(batch, rules, ledger, file)
    columns = dict.fromkeys([*table.text, *([table.title] if table.title else [])])
    return sound.select(
        pl.col("row").cast(pl.UInt32),
        pl.col(table.id).alias("id"),
        *[one_line(name).alias(f"text_{name}") for name in columns],
    )


def _flaws(batch: pl.DataFrame) -> list[str]:
    return batch["flaw"].drop_nulls().unique(maintain_order=True).to_list()


def _once(rows: pl.DataFrame, table: ItemsTable, ledger: Ledger, file: str) -> pl.DataFrame:
    """The first row of each id; exact repeats are counted, others are bad rows."""
    content = [name for name in rows.columns if name != "row"]
    before = rows.height
    rows = rows.unique(content, keep="first", maintain_order=True)
    ledger.dropped["exact duplicates of items"] += before - rows.height
    return sift(rows, [Rule(table.id, _ONE_ROW, ~pl.col("id").is_first_distinct(), "id")], ledger, file)
