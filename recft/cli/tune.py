"""`recft tune`: prepared data to a tuned adapter."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from recft.cli._base import Command, resumable
from recft.cli._options import Force, JsonFile, Overrides, Quiet, RecipeFile
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.reports.tables import facts
from recft.run import RunFolder

__all__ = ["MEMBER", "resume_hint"]

_HIDDEN = frozenset({"versions", "hardware", "hashes", "exit_status", "started"})
"""Parts of the manifest that stay in its file."""


def run(
    recipe: RecipeFile,
    folder: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="The run folder; runs/<name> where absent.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run folder.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Tune an adapter, preparing the data first where needed."""
    import recft

    if resume and force:
        raise typer.BadParameter("--resume goes on with a run and --force begins it anew: give one of them")
    loaded = recft.Recipe.load(recipe, overrides or ())
    place = folder or Path("runs") / loaded.name
    with resumable(lambda: resume_hint(RunFolder(place), recipe, folder, overrides or ())), listening(quiet) as listen:
        summary = recft.tune(loaded, run=place, resume=resume, force=force, listen=listen)
    shown = {key: value for key, value in summary.items() if key not in _HIDDEN}
    deliver(
        summary,
        json,
        facts("run", shown),
        f"adapter: {RunFolder(place).adapter}",
        f"next: recft eval {shlex.quote(str(place))}",
    )


def resume_hint(run: RunFolder, recipe: Path, folder: Path | None, overrides: Sequence[str] = ()) -> str:
    """How to go on after a signal; `folder` is what --run was given."""
    words = ["recft", "tune", str(recipe)]
    words += ["--run", str(folder)] if folder else []
    words += [word for override in overrides for word in ("--set", override)]
    if run.checkpoints.is_dir() and any(run.checkpoints.iterdir()):
        return f"state saved; resume with: {shlex.join([*words, '--resume'])}"
    if run.recipe.is_file():
        return f"no step was finished yet; go on with: {shlex.join([*words, '--resume'])}"
    return f"nothing was begun; run again: {shlex.join(words)}"


MEMBER = Command(run, "recft tune recipes/retrieval/chorus.yaml --run runs/chorus --set tune.epochs=1", place=1)
