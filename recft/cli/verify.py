"""`recft verify`: an export's certificate, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet, Trust
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.cli.export import certificate_sheets

__all__ = ["MEMBER"]


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder made by `recft export`.")],
    source: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="The run it was made of, for an export made with --no-rows."),
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Certify an exported folder again, in the engine that serves it."""
    import recft

    with listening(quiet) as listen:
        found = recft.verify(folder, run=source, trust=trust, listen=listen)
    deliver(found, json, *certificate_sheets(found))


MEMBER = Command(run, "recft verify exports/chorus", place=4)
