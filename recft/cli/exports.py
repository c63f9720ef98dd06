"""`recft exports`: the formats a tuned model can be served in."""

from __future__ import annotations

from recft import registry
from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet

__all__ = ["MEMBER"]


def run(_quiet: Quiet = False, json: JsonFile = None) -> None:
    """List the export targets, their dtypes and settings."""
    members = {name: registry.load("recft.exports", name) for name in registry.names("recft.exports")}
    found = {
        name: {
            "summary": target.summary,
            "needs": list(target.needs),
            "extra": target.extra,
            "dtypes": list(target.dtypes),
            "settings": {
                f"export.targets.{name}.{key}": field.description or ""
                for key, field in target.Config.model_fields.items()
            },
        }
        for name, target in members.items()
    }
    sheet = Sheet(
        columns=("target", "", "export.dtype", "install"),
        rows=[
            (
                name,
                target["summary"],
                " ".join(target["dtypes"]),
                f'pip install "recft[{target["extra"]}]"' if target["extra"] else "-",
            )
            for name, target in found.items()
        ],
        notes=[
            f"{key}: {words}" if words else key
            for target in found.values()
            for key, words in target["settings"].items()
        ],
        left=4,
    )
    deliver(found, json, sheet)


MEMBER = Command(run, "recft exports", place=9)
