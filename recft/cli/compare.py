"""`recft compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet, Split
from recft.cli._shell import deliver
from recft.reports.tables import Sheet, comparison, differences

__all__ = ["MEMBER"]


def run(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders that `recft eval` has scored.")],
    split: Annotated[Split, typer.Option("--split", help="Which report.")] = Split.test,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page that needs no network.")
    ] = None,
    _quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Put the scores of several runs side by side."""
    import recft

    found = recft.compare(runs, split=split.value)
    if html is not None:
        from recft.reports.page import comparison_page
        from recft.run import write_text

        write_text(html, comparison_page(found))
    deliver(found, json, *_sheets(found))


def _sheets(found: dict[str, Any]) -> list[Sheet]:
    """The rows with their intervals, and the paired differences."""
    return [comparison(found), differences(found["paired"])] if found.get("paired") else [comparison(found)]


MEMBER = Command(run, "recft compare runs/chorus-lora runs/chorus-adalora --html compare.html", place=6)
