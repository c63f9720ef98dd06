"""`recft compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet, differences, number

__all__ = ["MEMBER"]


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `recft eval` has scored.")],
    _quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Put the scores of several runs side by side."""
    import recft

    found = recft.compare(runs)
    deliver(found, json, *_sheets(found))


def _sheets(found: dict[str, Any]) -> list[Sheet]:
    rows = found["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row["scores"]))
    table = Sheet(
        columns=("run", *columns),
        rows=[(str(row["run"]), *(number(row["scores"].get(column)) for column in columns)) for row in rows],
    )
    return [table, differences(found["paired"])] if found.get("paired") else [table]


MEMBER = Command(run, "recft compare runs/chorus-lora runs/chorus-adalora", place=6)
