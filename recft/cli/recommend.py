"""`recft recommend`: a ranked list, or many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet, TaskName, Trust
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.reports.reasons import reasons
from recft.reports.tables import ranking

__all__ = ["MEMBER"]

EXPLAINED = 3
"""Places that `--explain` is about."""


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_EXPORT", help="A run folder or an exported one.")],
    query: Annotated[str | None, typer.Option("--query", metavar="TEXT", help="What a customer types.")] = None,
    history: Annotated[
        str | None,
        typer.Option("--history", metavar="ID[,ID...]", help="Items in the order they were met, oldest first."),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="ID", help="A user of the run's data.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Many: a table with a column query, history or user."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.parquet", help="Where the lists for --input go.")
    ] = None,
    top: Annotated[int, typer.Option("--top", metavar="K", min=1, help="How many places.")] = 10,
    task: TaskName = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what moves the first three scores most: words and history items.")
    ] = False,
    items: Annotated[
        Path | None,
        typer.Option("--items", metavar="FILE", help="The catalogue, of an export without one: id, text and title."),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Rank the catalogue for a query, a history or a user."""
    _one_of(query, history, user, input_file, out)
    if explain and input_file is not None:
        raise typer.BadParameter("--explain is for one list: give --query, --history or --user")
    import recft

    if input_file is not None and out is not None:
        from recft.recommend import recommend_file

        with listening(quiet) as listen:
            summary = recommend_file(
                source, input_file, out, top=top, task=task, items=items, trust=trust, listen=listen
            )
        deliver(summary, json, f"{summary['rows']:,} lists: {out}")
        return
    bought = [part.strip() for part in history.split(",") if part.strip()] if history is not None else None
    with listening(quiet) as listen:
        places = recft.recommend(
            source,
            query=query,
            history=bought,
            user=user,
            top=top,
            task=task,
            explain=EXPLAINED if explain else 0,
            items=items,
            trust=trust,
            listen=listen,
        )
    asked = query if query is not None else user if user is not None else ", ".join(bought or [])
    deliver(places, json, ranking(places, title=f"for: {asked}"), *reasons(places))


def _one_of(
    query: str | None, history: str | None, user: str | None, input_file: Path | None, out: Path | None
) -> None:
    """Nothing, where the options name one thing to rank for."""
    given = sum(option is not None for option in (query, history, user, input_file))
    if given != 1:
        raise typer.BadParameter("give exactly one of --query, --history, --user or --input")
    if (input_file is None) != (out is None):
        raise typer.BadParameter("--input FILE and --out FILE.parquet go together")


MEMBER = Command(run, 'recft recommend runs/chorus --query "wireless keyboard" --top 5', place=5)
