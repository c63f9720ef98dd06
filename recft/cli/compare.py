"""`recft compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet, Split
from recft.cli._shell import deliver
from recft.reports.tables import Sheet, differences, number, with_interval

__all__ = ["MEMBER"]


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `recft eval` has scored.")],
    split: Annotated[Split, typer.Option("--split", help="Which report.")] = Split.test,
    _quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Put the scores of several runs side by side."""
    import recft

    found = recft.compare(runs, split=split.value)
    deliver(found, json, *_sheets(found))


def _sheets(found: dict[str, Any]) -> list[Sheet]:
    """The rows with their intervals, and the paired differences."""
    rows = found["rows"]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    table = Sheet(
        columns=("run", "runs", "n", *metrics),
        rows=[
            (
                str(row["run"]),
                number(row.get("runs")),
                number(row.get("n")),
                *(with_interval(row["scores"].get(metric), row.get("ci", {}).get(metric)) for metric in metrics),
            )
            for row in rows
        ],
        title=f"{found['split']} split",
        notes=["runs that differ in name, seed and fold alone are one row"],
    )
    return [table, differences(found["paired"])] if found.get("paired") else [table]


MEMBER = Command(run, "recft compare runs/chorus-lora runs/chorus-adalora", place=6)
