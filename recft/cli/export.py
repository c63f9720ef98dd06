"""`recft export`: a servable artefact, with its certificate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from recft import registry
from recft.cli._base import Command
from recft.cli._options import ExportOverrides, Force, JsonFile, Quiet, RunFolderPath, TaskName
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.reports.certificates import certificate
from recft.reports.sheets import Sheet

__all__ = ["MEMBER", "certificate_sheets"]


class Onto(StrEnum):
    """Which base weights an adapter is merged into."""

    auto = "auto"
    original = "original"
    dequantized = "dequantized"


def _known(target: str) -> str:
    """The target, if there is one of that name."""
    known = registry.names("recft.exports")
    key = target.replace("_", "-")
    if key not in known:
        raise typer.BadParameter(f"there is no '{target}'.{registry.suggestion(key, known)} One of {', '.join(known)}.")
    return key


def run(
    folder: RunFolderPath,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="TARGET",
            callback=_known,
            autocompletion=lambda: registry.names("recft.exports"),
            help="The format; `recft exports` lists them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to make.")],
    onto: Annotated[
        Onto,
        typer.Option(
            "--onto",
            help="Base weights: original, dequantized, or the better one on validation (auto).",
        ),
    ] = Onto.auto,
    task: TaskName = None,
    rows: Annotated[
        bool,
        typer.Option(
            "--rows/--no-rows",
            help="Whether held-out rows and the catalogue travel along; without them `verify` wants --run, "
            "`recommend` --items.",
        ),
    ] = True,
    overrides: ExportOverrides = None,
    force: Force = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Write a servable model, certified against the tuned one."""
    import recft

    with listening(quiet) as listen:
        written = recft.export(
            folder,
            to=to,
            out=out,
            onto=onto.value,
            force=force,
            task=task,
            rows=rows,
            overrides=overrides or (),
            listen=listen,
        )
    deliver(written, json, *certificate_sheets(written), f"export: {out}")


def certificate_sheets(written: dict[str, Any]) -> list[Sheet]:
    """The certificate of an export folder's `recft-export.json`."""
    return [certificate(written["certificate"], written.get("onto"))]


MEMBER = Command(run, "recft export runs/chorus --to merged --out exports/chorus", place=3)
