"""The catalogue: every item once, with the text that models read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recft.data.columns import HAS_NUL, one_line
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.store import kept_in, with_columns
from recft.data.tables import batches
from recft.errors import DataError, RecipeError, problem
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
        frame: id, text, title, one column `field_<n>` for each part of the text, and `column:<name>` for what is kept
            for slices; the row number is the item number.
        fields: the parts' names: the file's names of text columns and attributes, and the tables that add to the text.
        skipped: ids left out for want of text, where the recipe says so, and of bad rows where the run will stop at
            them: events of such items are no mistakes of their own.
    """

    frame: pl.DataFrame
    fields: tuple[str, ...]
    skipped: pl.Series

    def with_field(self, name: str, texts: pl.Series) -> Catalogue:
        """The same items with one part more in their text; null where an item has none."""
        added = texts.cast(pl.String).alias(f"field_{len(self.fields)}")
        text = pl.concat_str("text", added, separator=SEPARATOR, ignore_nulls=True)
        return replace(self, frame=self.frame.with_columns(text, added), fields=(*self.fields, name))

    @property
    def numbers(self) -> pl.DataFrame:
        """Item ids and item number; skipped items have the number -1."""
        known = self.frame.select("id").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("__item"))
        skipped = pl.DataFrame({"id": self.skipped}).with_columns(pl.lit(-1, dtype=pl.Int32).alias("__item"))
        return pl.concat([known, skipped])


def read_items(settings: DataSettings, ledger: Ledger) -> Catalogue:
    """The checked catalogue; bad rows go to the ledger.

    Raises:
        DataError: the file or a column is missing, or no item is left.
    """
    table = settings.items
    if table is None:
        raise RecipeError(problem("data.items", "missing", "this table names items", "map the catalogue"))
    path = Path(table.path)
    names = list(dict.fromkeys([table.id, *_text_columns(table), *table.columns]))
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
    fields = texts + [pl.concat_str(pl.lit(f"{name}: "), f"text_{name}") for name in table.attributes]
    frame = rows.select(
        pl.col("id"),
        pl.concat_str(*fields, separator=SEPARATOR, ignore_nulls=True).alias("text"),
        title.alias("title"),
        *[column.alias(f"field_{number}") for number, column in enumerate(fields)],
        *kept_in(rows),
    )
    return Catalogue(frame, (*table.text, *table.attributes), skipped)


def _text_columns(table: ItemsTable) -> list[str]:
    return list(dict.fromkeys([*table.text, *([table.title] if table.title else []), *table.attributes]))


def _checked(batch: pl.DataFrame, table: ItemsTable, names: list[str], ledger: Ledger, file: str) -> pl.DataFrame:
    """The sound rows of one batch as row, id and `text_<column>`."""
    rules = torn(batch)
    rules += [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in names]
    rules.append(Rule(table.id, _NEEDS_ID, pl.col(table.id).is_null()))
    sound = sift(batch, rules, ledger, file)
    return sound.select(
        pl.col("row").cast(pl.UInt32),
        pl.col(table.id).alias("id"),
        *[one_line(name).alias(f"text_{name}") for name in _text_columns(table)],
        *with_columns(table.columns),
    )


def _once(rows: pl.DataFrame, table: ItemsTable, ledger: Ledger, file: str) -> pl.DataFrame:
    """The first row of each id; exact repeats are counted, others are bad rows."""
    content = [name for name in rows.columns if name != "row"]
    before = rows.height
    rows = rows.unique(content, keep="first", maintain_order=True)
    ledger.dropped["exact duplicates of items"] += before - rows.height
    return sift(rows, [Rule(table.id, _ONE_ROW, ~pl.col("id").is_first_distinct(), "id")], ledger, file)
