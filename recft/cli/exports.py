"""`recft exports`: the formats a tuned model can be served in."""

from __future__ import annotations

from recft import registry
from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet

__all__ = ["MEMBER"]


def run(_quiet: Quiet = False, json: JsonFile = None) -> None:
    """List the export targets."""
    members = {name: registry.load("recft.exports", name) for name in registry.names("recft.exports")}
    found = {
        name: {"summary": target.summary, "needs": list(target.needs), "extra": target.extra}
        for name, target in members.items()
    }
    sheet = Sheet(
        columns=("target", "", "needs", "install"),
        rows=[
            (
                name,
                target["summary"],
                ", ".join(target["needs"]) or "-",
                f'pip install "recft[{target["extra"]}]"' if target["extra"] else "-",
            )
            for name, target in found.items()
        ],
        left=4,
    )
    deliver(found, json, sheet)


MEMBER = Command(run, "recft exports", place=9)
