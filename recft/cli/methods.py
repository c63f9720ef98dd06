"""`recft methods`: what there is, and what works with what."""

from __future__ import annotations

from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet

__all__ = ["MEMBER"]


def run(_quiet: Quiet = False, json: JsonFile = None) -> None:
    """List the tuning methods, and what works with what."""
    from recft.reports.matrix import matrix, matrix_sheet

    found = matrix()
    listed = Sheet(
        columns=("method", "", "merges"),
        rows=[
            (name, method["summary"], "yes" if method["mergeable"] else "no")
            for name, method in found["methods"].items()
        ],
        left=3,
    )
    deliver(found, json, listed, matrix_sheet(found))


MEMBER = Command(run, "recft methods", place=7)
