"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ExportOverrides",
    "Force",
    "JsonFile",
    "Overrides",
    "Quiet",
    "RecipeFile",
    "RunFolderPath",
    "Split",
    "TaskName",
    "Trust",
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages; errors and results stay.")]
JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write the result as JSON; - writes it to stdout in place of the table."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Lay a value over the recipe: a dotted key and YAML. Repeatable."),
]
ExportOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Lay a value over the run's recipe: export.dtype=bfloat16. Repeatable."
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run model code that lies in the export (target code)."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
RunFolderPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, made by `recft tune`.")]

TaskName = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="Which task of the run, where it has several.")
]


class Split(StrEnum):
    """Which records are scored."""

    valid = "valid"
    test = "test"
