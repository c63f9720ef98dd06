"""Profiles: what is known of the users of a log besides what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from recft.data.columns import HAS_NUL, one_line
from recft.data.items import SEPARATOR
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.store import kept_in, with_columns
from recft.data.tables import batches
from recft.schema import UsersTable

__all__ = ["read_users"]


def read_users(
    table: UsersTable | None, user_ids: list[str], ledger: Ledger
) -> tuple[pl.DataFrame, dict[str, Any] | None]:
    """id, text and kept columns of the users in the log's order, and what the card says; bad rows go to the ledger.

    A user without a profile has an empty one.

    Raises:
        DataError: the file or a column is missing.
    """
    ids = pl.DataFrame({"id": pl.Series(user_ids, dtype=pl.String)})
    if table is None:
        return ids.with_columns(pl.lit("").alias("text")), None
    path = Path(table.path)
    used = [table.id, *table.text]
    parts = []
    for batch in batches(path, [*used, *table.columns], "data.users", table.separator):
        rules = torn(batch)
        rules += [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in dict.fromkeys(used)]
        rules.append(Rule(table.id, "every profile needs an id", pl.col(table.id).is_null()))
        sound = sift(batch, rules, ledger, path.name)
        fields = [one_line(name) for name in table.text]
        text = pl.concat_str(*fields, separator=SEPARATOR, ignore_nulls=True) if fields else pl.lit("")
        parts.append(
            sound.select(
                "row", pl.col(table.id).alias("id"), text.fill_null("").alias("text"), *with_columns(table.columns)
            )
        )
    rows = pl.concat(parts)
    height = rows.height
    rows = rows.unique([name for name in rows.columns if name != "row"], keep="first", maintain_order=True)
    ledger.dropped["exact duplicates of profiles"] += height - rows.height
    repeated = Rule(table.id, "an id stands once; exact repeats are dropped", ~pl.col("id").is_first_distinct(), "id")
    rows = sift(rows, [repeated], ledger, path.name).drop("row")
    joined = ids.join(rows.with_columns(pl.lit(True).alias("known")), on="id", how="left", maintain_order="left")
    with_profile = joined["known"].sum()
    card = {
        "profiles": rows.height,
        "users_without_profile": joined.height - with_profile,
        "profiles_without_events": rows.height - with_profile,
        "with_text": int((joined["text"].fill_null("") != "").sum()),
    }
    return joined.select("id", pl.col("text", *kept_in(joined)).fill_null("")), card
