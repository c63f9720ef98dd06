"""Reviews as part of an item's text: the newest or the first few of each item, within a budget of words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from recft.data.columns import HAS_NUL, moments, one_line
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.tables import batches
from recft.data.text import first_words, words
from recft.schema import ReviewsTable

__all__ = ["with_reviews"]

_SEPARATOR = "; "


def with_reviews(
    catalogue: Catalogue, table: ReviewsTable, until: int | None, ledger: Ledger
) -> tuple[Catalogue, dict[str, Any]]:
    """The catalogue with each item's reviews, and what the card says of them; bad rows go to the ledger.

    until: the last moment of training, in unix seconds, where the split is by time: reviews from after it are left out.

    Raises:
        DataError: the file or a column is missing.
    """
    kept, counts = _read(catalogue, table, until, ledger)
    texts: list[str | None] = [None] * catalogue.frame.height
    cut = 0
    for item, reviews in kept.group_by("__item", maintain_order=True).agg("text").iter_rows():
        texts[item], shortened = _within(reviews, table.max_words)
        cut += shortened
    card: dict[str, Any] = {
        **counts,
        "used": kept.height,
        "per_item": table.per_item,
        "max_words": table.max_words,
        "items_with": kept["__item"].n_unique(),
        "items_cut_at_max_words": cut,
        "order": "newest first" if table.time else "as in the file",
    }
    if table.time is not None and until is not None:
        card["until"] = until
    else:
        card["leakage"] = "reviews may have been written after the events and judgements that are held out"
    return catalogue.with_field("data.reviews", pl.Series(texts, dtype=pl.String)), card


def _read(
    catalogue: Catalogue, table: ReviewsTable, until: int | None, ledger: Ledger
) -> tuple[pl.DataFrame, dict[str, int]]:
    """item_number, text, moment of the reviews that are used; only so many an item are held at any time."""
    path = Path(table.path)
    numbers = catalogue.numbers
    names = [table.item, table.text, *([table.time] if table.time else [])]
    kept = pl.DataFrame(schema={"__item": pl.Int32, "text": pl.String, "__moment": pl.Int64})
    counts = {"of_unknown_items": 0, "without_text": 0}
    if table.time is not None and until is not None:
        counts["after_training"] = 0
    for batch in batches(path, names, "data.reviews", table.separator):
        sound = sift(batch.with_columns(_moment(table)), _rules(batch, table), ledger, path.name)
        rows = sound.select(pl.col(table.item).alias("id"), one_line(table.text).alias("text"), "__moment")
        rows = rows.join(numbers, on="id", how="left", maintain_order="left")
        known = rows.filter(pl.col("__item") >= 0)
        counts["of_unknown_items"] += rows.height - known.height
        written = known.filter(pl.col("text").is_not_null())
        counts["without_text"] += known.height - written.height
        if "after_training" in counts:
            before = written.filter(pl.col("__moment") <= until)
            counts["after_training"] += written.height - before.height
            written = before
        kept = pl.concat([kept, written.select(kept.columns)])
        if table.time is not None:
            kept = kept.sort("__moment", descending=True, maintain_order=True)
        kept = kept.unique(["__item", "text"], keep="first", maintain_order=True)
        kept = kept.group_by("__item", maintain_order=True).head(table.per_item)
    return kept, counts


def _moment(table: ReviewsTable) -> pl.Expr:
    moment = pl.lit(None, pl.Int64) if table.time is None else moments(table.time, table.time_format)
    return moment.alias("__moment")


def _rules(batch: pl.DataFrame, table: ReviewsTable) -> list[Rule]:
    rules = torn(batch)
    rules.append(Rule(table.item, "every review needs an item", pl.col(table.item).is_null()))
    rules.append(Rule(table.text, HAS_NUL, pl.col(table.text).str.contains("\0", literal=True)))
    if table.time is not None:
        rules.append(Rule(table.time, f"a time ({table.time_format})", pl.col("__moment").is_null()))
    return rules


def _within(reviews: list[str], max_words: int) -> tuple[str, bool]:
    """The reviews joined, cut where the words end; whether they were."""
    parts: list[str] = []
    left = max_words
    for review in reviews:
        part = first_words(review, left)
        if part:
            parts.append(part)
        if len(part) < len(review):
            return _SEPARATOR.join(parts), True
        left -= len(words(part))
    return _SEPARATOR.join(parts), False
