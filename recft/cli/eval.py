"""`recft eval`: scores with intervals, and gates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet, RunFolderPath, Split
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.errors import GateError
from recft.reports.tables import Sheet, differences, gates, scores

__all__ = ["MEMBER", "report_sheets"]


def run(
    folder: RunFolderPath,
    split: Annotated[Split, typer.Option("--split", help="Which records are scored.")] = Split.test,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            metavar="EXPR",
            help="A condition, such as 'ndcg@10 >= base + 0.01'; exit code 3 where it does not hold. Repeatable.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="FILE", help="An earlier eval/<split>.json, which gates call `reference`."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the gates as JUnit XML.")] = None,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Score the base, the tuned model and the baselines; check gates."""
    import recft

    failure: GateError | None = None
    with listening(quiet) as listen:
        try:
            report = recft.evaluate(
                folder, split=split.value, gates=tuple(gate or ()), reference=reference, listen=listen
            )
        except GateError as error:
            # The verb hands the report over with the error: what failed is shown like what passed.
            failure, report = error, getattr(error, "report", {})
    if junit is not None:
        from recft.reports.junit import junit as as_xml
        from recft.run import write_text

        write_text(junit, as_xml(report))
    deliver(report, json, *report_sheets(report))
    if failure is not None:
        raise failure


def report_sheets(report: dict[str, Any]) -> list[Sheet]:
    """The table, the paired differences and the gates of a report."""
    sheets = [scores(report)]
    sheets += [differences(report["paired"])] if report.get("paired") else []
    sheets += [gates(report["gates"])] if report.get("gates") else []
    return sheets


MEMBER = Command(run, 'recft eval runs/chorus --gate "ndcg@10 >= base + 0.01" --junit gates.xml', place=2)
