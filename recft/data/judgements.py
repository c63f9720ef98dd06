"""Queries and relevance grades: one row a judgement, from one table or from two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, number, one_line
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.store import kept_columns, kept_in, with_columns
from recft.data.tables import batches
from recft.data.text import normalise
from recft.errors import DataError, RecipeError, problem
from recft.registry import suggestion
from recft.schema import DataSettings, GradesTable, QueriesTable

__all__ = ["Judgements", "read_judgements"]

_NEEDS_TEXT = "every query needs text"
# Words for which the nearest known one is looked up: a wrong column has as many as rows.
_HINTS = 1000
_CONFLICT = "one grade for the same query and item"


@dataclass(frozen=True)
class Judgements:
    """Every judged (query, item) once, grouped by query.

    Attributes:
        keys: (Q,) normalised queries, in order of first appearance.
        queries: (Q,) each query as it was first written.
        offsets: (Q + 1,) int64 into items and grades.
        items: (P,) int32 item numbers, in the file's order within a query.
        grades: (P,) float32.
        columns: columns kept for slices, (Q,) each; a query's first row counts.
    """

    keys: list[str]
    queries: list[str]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    grades: NDArray[np.float32]
    columns: dict[str, list[str]] = field(default_factory=dict)


def read_judgements(settings: DataSettings, catalogue: Catalogue, ledger: Ledger) -> Judgements:
    """The checked judgements; bad rows go to the ledger.

    Raises:
        RecipeError: the tables cannot be joined as mapped.
        DataError: a file or a column is missing, or no judgement is left.
    """
    table = settings.queries
    if table is None:
        raise RecipeError(problem("data.queries", "missing", "grades belong to queries", "add data.queries"))
    if table.item is not None:
        if settings.grades is not None:
            raise RecipeError(
                problem("data.grades", "given beside data.queries.item", "judgements stand in one table", "remove one")
            )
        rows = _one_table(table, catalogue, ledger)
    elif settings.grades is not None:
        rows = _two_tables(table, settings.grades, catalogue, ledger)
    else:
        raise RecipeError(
            problem("data.queries.item", "missing", "queries need judged items", "add item (and grade), or data.grades")
        )
    rows = _once(rows, settings, ledger)
    if not rows.height:
        ledger.settle()
        raise DataError(
            problem("data.queries", "no judgement", "at least one query with a judged item", "check the files")
        )
    first = pl.col("query", *kept_in(rows)).first()
    groups = rows.group_by("key", maintain_order=True).agg(first, "__item", "grade")
    offsets = np.zeros(groups.height + 1, np.int64)
    np.cumsum(groups["__item"].list.len().to_numpy(), out=offsets[1:])
    flat = groups.explode("__item", "grade") if groups.height else rows
    return Judgements(
        groups["key"].to_list(),
        groups["query"].to_list(),
        offsets,
        flat["__item"].to_numpy().astype(np.int32),
        flat["grade"].to_numpy().astype(np.float32),
        kept_columns(groups),
    )


def _one_table(table: QueriesTable, catalogue: Catalogue, ledger: Ledger) -> pl.DataFrame:
    """row, file, key, query, item_number, grade of a table whose rows are judgements."""
    path, item = Path(table.path), str(table.item)
    names = [table.query, item, *([table.grade] if table.grade else []), *table.columns]
    parts = []
    for batch in batches(path, names, "data.queries", table.separator):
        batch = batch.with_columns(with_columns(table.columns))
        graded = _with_grades(batch, item, table.grade, table.grade_map, catalogue)
        rules = [*torn(graded), *_query_rules(table.query), *_grade_rules(item, table)]
        parts.append(_named(sift(graded, rules, ledger, path.name), table.query, path.name, table.grade or item))
    return _normalised(_with_text(pl.concat(parts), ledger), table.query, ledger)


def _two_tables(table: QueriesTable, grades: GradesTable, catalogue: Catalogue, ledger: Ledger) -> pl.DataFrame:
    """The same of queries by id and grades that name them."""
    if table.id is None:
        raise RecipeError(
            problem(
                "data.queries.id", "missing", "data.grades names queries by id", "name the id column of the queries"
            )
        )
    path = Path(table.path)
    parts = []
    for batch in batches(path, [table.id, table.query, *table.columns], "data.queries", table.separator):
        needs = Rule(table.id, "every query needs an id", pl.col(table.id).is_null())
        sound = sift(batch, [*torn(batch), needs, *_query_rules(table.query)], ledger, path.name)
        named = pl.col(table.id).alias("id"), one_line(table.query).alias("query")
        parts.append(sound.select("row", *named, *with_columns(table.columns)))
    queries = pl.concat(parts)
    height = queries.height
    queries = queries.unique(["id", "query"], keep="first", maintain_order=True)
    ledger.dropped["exact duplicates of queries"] += height - queries.height
    repeated = Rule(table.id, "an id stands once; exact repeats are dropped", ~pl.col("id").is_first_distinct(), "id")
    queries = sift(queries, [repeated], ledger, path.name).drop("row")
    path = Path(grades.path)
    parts = []
    for batch in batches(path, [grades.query, grades.item, grades.grade], "data.grades", grades.separator):
        graded = _with_grades(batch, grades.item, grades.grade, grades.grade_map, catalogue)
        graded = graded.join(
            queries, left_on=grades.query, right_on="id", how="left", maintain_order="left", suffix="_text"
        )
        text = "query_text" if grades.query == "query" else "query"
        rules = [
            *torn(graded),
            Rule(grades.query, "every judgement needs a query", pl.col(grades.query).is_null()),
            Rule(grades.query, "a query of data.queries", pl.col(text).is_null()),
            *_grade_rules(grades.item, grades),
        ]
        parts.append(_named(sift(graded, rules, ledger, path.name), text, path.name, grades.grade))
    rows = _normalised(_with_text(pl.concat(parts), ledger), grades.query, ledger)
    ledger.dropped["queries without a judgement"] += queries["query"].n_unique() - rows["query"].n_unique()
    return rows


def _with_grades(
    batch: pl.DataFrame, item: str, grade: str | None, words: Mapping[str, float] | None, catalogue: Catalogue
) -> pl.DataFrame:
    """The batch with `item_number`, `value` and `told`, the grade as a message shows it.

    Without a grade column every row is a grade of 1; with `words` a grade is the number of its word.
    """
    value = number(grade) if grade else pl.lit(1.0)
    told = pl.col(grade) if grade else pl.lit(None, pl.String)
    if grade and words:
        value = pl.col(grade).replace_strict(words, default=None, return_dtype=pl.Float64)
        wrong = [word for word in batch[grade].drop_nulls().unique(maintain_order=True) if word not in words]
        told = pl.col(grade).replace({word: f"{word}.{suggestion(word, words)}" for word in wrong[:_HINTS]})
    batch = batch.join(catalogue.numbers, left_on=item, right_on="id", how="left", maintain_order="left")
    return batch.with_columns(value.alias("__value"), told.alias("__told"))


def _query_rules(query: str) -> list[Rule]:
    return [
        Rule(query, _NEEDS_TEXT, pl.col(query).is_null()),
        Rule(query, HAS_NUL, pl.col(query).str.contains("\0", literal=True)),
    ]


def _grade_rules(item: str, table: QueriesTable | GradesTable) -> list[Rule]:
    grade, span = table.grade, table.grade_range
    rules = [
        Rule(item, "every judgement needs an item", pl.col(item).is_null()),
        Rule(item, "an item of data.items", pl.col("__item").is_null()),
    ]
    if grade is not None:
        rule = f"a word of grade_map: {', '.join(table.grade_map)}" if table.grade_map else "a finite number"
        rules.append(Rule(grade, rule, pl.col("__value").is_null(), "__told"))
        if span is None:
            # A gain below zero has no meaning in any ranking metric.
            rules.append(Rule(grade, "a grade of 0 or more", pl.col("__value") < 0))
        else:
            outside = ~pl.col("__value").is_between(*span)
            rules.append(Rule(grade, f"a grade within {span[0]:g} to {span[1]:g}", outside))
    return rules


def _named(sound: pl.DataFrame, query: str, file: str, column: str) -> pl.DataFrame:
    return sound.select(
        "row",
        pl.lit(file).alias("file"),
        pl.lit(column).alias("column"),
        one_line(query).alias("query"),
        "__item",
        pl.col("__value").alias("grade"),
        *kept_in(sound),
    )


def _with_text(rows: pl.DataFrame, ledger: Ledger) -> pl.DataFrame:
    """Without the judgements of items that the recipe skips."""
    kept = rows.filter(pl.col("__item") >= 0)
    ledger.dropped["judgements of items without text"] += rows.height - kept.height
    return kept


def _normalised(rows: pl.DataFrame, column: str, ledger: Ledger) -> pl.DataFrame:
    """Every query with its key; each different text is normalised once, and one of invisible characters is none."""
    texts = rows["query"].unique(maintain_order=True)
    keys = pl.DataFrame({"query": texts, "key": pl.Series([normalise(text) for text in texts], dtype=pl.String)})
    rows = rows.join(keys, on="query", how="left", maintain_order="left")
    if not rows.height:
        return rows
    return sift(rows, [Rule(column, _NEEDS_TEXT, pl.col("key") == "", "query")], ledger, rows["file"][0])


def _once(rows: pl.DataFrame, settings: DataSettings, ledger: Ledger) -> pl.DataFrame:
    """The first judgement of each query and item."""
    height = rows.height
    rows = rows.unique(["key", "__item", "grade"], keep="first", maintain_order=True)
    ledger.dropped["exact duplicates of judgements"] += height - rows.height
    later = ~pl.struct("key", "__item").is_first_distinct()
    if settings.on_duplicate == "first":
        height = rows.height
        rows = rows.filter(~later)
        ledger.dropped["later judgements of the same query and item"] += height - rows.height
        return rows
    if not rows.height:
        return rows
    file, column = rows["file"][0], rows["column"][0]
    return sift(rows, [Rule(column, _CONFLICT, later, "grade")], ledger, file)
