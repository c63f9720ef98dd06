"""Which tables a recipe maps, and whether they go together: told before any file is read, all mistakes at once."""

from __future__ import annotations

from collections.abc import Sequence

from recft.data.store import Table
from recft.errors import RecipeError, problem
from recft.schema import DataSettings, TextsTable

__all__ = ["TARGETS", "table_of", "target_of"]

TABLES: tuple[Table, ...] = ("interactions", "queries", "texts")
TARGETS = ("label", "reply", "chosen", "messages")


def table_of(data: DataSettings, task: str, readable: Sequence[str] | None) -> Table:
    """Which table the records come from.

    Args:
        data: the settings.
        task: its name, for messages.
        readable: the tables that the task reads; None where it is not known.

    Raises:
        RecipeError: with every mistake in how tables are mapped.
    """
    mapped = [table for table in TABLES if getattr(data, table) is not None]
    if len(mapped) != 1:
        state = f"{' and '.join(mapped)} are given" if mapped else "none of interactions, queries and texts is given"
        raise RecipeError(problem("data", state, "records come from one of the three", "map exactly one"))
    table = mapped[0]
    mistakes = [] if table == "texts" else _without_texts(data)
    if readable is not None and table not in readable:
        wanted = " or ".join(f"data.{name}" for name in readable)
        mistakes.append(
            problem(
                f"data.{table}",
                f"task {task} reads {' or '.join(readable)}",
                f"map {wanted}",
                "change the task or the data",
            )
        )
    if table != "interactions":
        mistakes += _without_events(data, table)
    if data.grades is not None and table != "queries":
        mistakes.append(
            problem("data.grades", "given without data.queries", "grades belong to queries", "map data.queries")
        )
    if data.users is not None and not data.users.text and not data.users.columns:
        mistakes.append(
            problem("data.users", "neither text nor columns", "a profile is text or columns", "name one, or remove it")
        )
    if data.queries is not None and data.queries.grade_map is not None and data.queries.grade is None:
        mistakes.append(
            problem("data.queries.grade_map", "given without grade", "it reads grades", "name data.queries.grade")
        )
    if data.texts is not None:
        mistakes += _of_texts(data, data.texts)
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return table


def target_of(table: TextsTable) -> str:
    """What the texts are to be answered with: label, reply, chosen or messages."""
    return next(name for name in TARGETS if getattr(table, name) is not None)


def _without_texts(data: DataSettings) -> list[str]:
    if data.items is not None:
        return []
    return [problem("data.items", "is missing", "events and judgements name items", "map the catalogue")]


def _without_events(data: DataSettings, table: Table) -> list[str]:
    """What has no meaning without an interaction log."""
    mistakes = []
    if data.labels.at_least is not None or data.labels.negatives is not None:
        mistakes.append(problem("data.labels", f"given with {table}", "labels are made from interactions", "remove it"))
    if data.users is not None:
        mistakes.append(
            problem("data.users", f"given with {table}", "profiles belong to interactions", "remove data.users")
        )
    return mistakes


def _of_texts(data: DataSettings, table: TextsTable) -> list[str]:
    """What is wrong with data.texts and what stands beside it."""
    place = "data.texts"
    mistakes = [
        problem(f"data.{name}", "given beside data.texts", "texts have no catalogue", f"remove data.{name}")
        for name in ("items", "triples", "reviews")
        if getattr(data, name) is not None
    ]
    named = [name for name in TARGETS if getattr(table, name) is not None]
    if len(named) != 1:
        value = f"{' and '.join(named)} are given" if named else "no target is given"
        rule = "exactly one of label, reply, chosen with rejected, and messages"
        mistakes.append(problem(place, value, rule, "keep one" if named else "name its column"))
    if (table.messages is None) == (not table.text):
        value = "text and messages are given" if table.text else "neither text nor messages is given"
        mistakes.append(problem(place, value, "a text is made of columns or of messages", "name one of the two"))
    if (table.chosen is None) != (not table.rejected):
        missing = "chosen" if table.rejected else "rejected"
        mistakes.append(problem(f"{place}.{missing}", "is missing", "a preference has both sides", "name its column"))
    if table.messages is None and table.turns == "all":
        mistakes.append(problem(f"{place}.turns", "'all'", "turns are of messages", "remove it"))
    return mistakes + _of_splits(data, table)


def _of_splits(data: DataSettings, table: TextsTable) -> list[str]:
    """What is wrong with how texts are to be split."""
    by, own = data.split.by, [name for name in ("valid", "test") if getattr(table, name) is not None]
    if by not in (None, "query", "file"):
        return [problem("data.split.by", f"'{by}'", "texts have no users, items or times", "query or file")]
    if by == "file" and not own:
        return [problem("data.split.by", "'file'", "a split has a file of its own", "name data.texts.valid or .test")]
    if by == "query" and own:
        files = " and ".join(f"data.texts.{name}" for name in own)
        return [problem("data.split.by", f"'query' beside {files}", "a given file is its split", "remove one")]
    if own and data.split.folds is not None:
        return [problem("data.split.folds", f"{data.split.folds}", "given files are not cut", "remove it")]
    if data.split.folds is not None and data.split.fold >= data.split.folds:
        return [
            problem(
                "data.split.fold",
                f"fold {data.split.fold} of {data.split.folds}",
                "folds are counted from 0",
                f"a fold from 0 to {data.split.folds - 1}",
            )
        ]
    return []
