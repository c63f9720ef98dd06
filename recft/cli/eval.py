"""`recft eval`: scores with intervals, and gates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command, is_first_process
from recft.cli._options import JsonFile, Quiet, RunFolderPath, Split
from recft.cli._progress import listening
from recft.cli._shell import deliver, say
from recft.errors import RecftError
from recft.reports.tables import Sheet, of_report

__all__ = ["MEMBER", "report_sheets"]

_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def run(
    folder: RunFolderPath,
    split: Annotated[Split, typer.Option("--split", help="Which records are scored.")] = Split.test,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="EXPR",
            help="A condition, such as 'ndcg@10 >= base + 0.01', 'ece <= 0.05', 'ndcg@10[cold_item] >= 0.1' or"
            " 'ndcg@10 not worse than reference'; exit code 3 where one does not hold. Repeatable.",
        ),
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option("--gates", metavar="FILE", help="A file of conditions, one a line; # begins a comment."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="FILE",
            help="An earlier eval/<split>.json, which gates call `reference`; its predictions lie beside it.",
        ),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML.")] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            "--summary",
            metavar="FILE",
            help=f"Write tables and gates as Markdown, which is appended to ${_STEP_SUMMARY} too where that is set.",
        ),
    ] = None,
    _schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            help="Show the JSON Schema of eval/<split>.json and leave.",
            is_eager=True,
            callback=lambda asked: _show_schema(asked),
        ),
    ] = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Score the base, the tuned model and the baselines; check gates."""
    import recft

    failure: RecftError | None = None
    with listening(quiet) as listen:
        try:
            report = recft.evaluate(
                folder,
                split=split.value,
                gates=tuple(gate or ()),
                reference=reference,
                gates_file=gates,
                listen=listen,
            )
        except RecftError as error:
            # The verb hands the report over with an error of its gates: what failed is shown like what passed.
            failure, report = error, getattr(error, "report", {})
            if not report:
                raise
    if is_first_process():
        _write(report, junit, summary)
    deliver(report, json, *report_sheets(report))
    if failure is not None:
        raise failure


def _write(report: dict[str, Any], junit: Path | None, summary: Path | None) -> None:
    """Writes what CI systems read."""
    from recft.reports.junit import junit as as_xml
    from recft.reports.summary import summary as as_markdown
    from recft.run import write_text

    if junit is not None:
        write_text(junit, as_xml(report))
    if summary is not None:
        write_text(summary, as_markdown(report))
    shared = os.environ.get(_STEP_SUMMARY)
    if shared:
        try:
            with Path(shared).open("a", encoding="utf-8") as file:
                file.write(as_markdown(report) + "\n")
        except OSError as error:
            # The step's page is an extra: its fault must not hide a gate's exit code.
            say(f"warning: {_STEP_SUMMARY}: nothing was appended to {shared} ({error.strerror})")


def _show_schema(asked: bool) -> None:
    if not asked:
        return
    from importlib.resources import files

    typer.echo(files("recft.reports").joinpath("report_schema.json").read_text(encoding="utf-8"), nl=False)
    raise typer.Exit


def report_sheets(report: dict[str, Any]) -> list[Sheet]:
    """The tables of a report, and its gates."""
    return of_report(report)


MEMBER = Command(
    run, 'recft eval runs/chorus --reference main/test.json --gate "ndcg@10 not worse than reference"', place=2
)
