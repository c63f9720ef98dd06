"""`recft tasks`: what a model can be tuned for."""

from __future__ import annotations

from recft import registry
from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet

__all__ = ["MEMBER"]


def run(_quiet: Quiet = False, json: JsonFile = None) -> None:
    """List the tasks: what each reads, and how it is scored."""
    members = {name: registry.load("recft.tasks", name) for name in registry.names("recft.tasks")}
    found = {
        name: {
            "summary": task.summary,
            "table": task.table,
            "output": task.output,
            "bases": dict(task.heads),
            "metrics": list(task.metrics),
            "monitor": task.monitor,
            "refusals": [refusal.reason for refusal in task.refusals],
        }
        for name, task in members.items()
    }
    sheet = Sheet(
        columns=("task", "", "reads", "bases", "metrics"),
        rows=[
            (name, task["summary"], f"data.{task['table']}", ", ".join(task["bases"]), ", ".join(task["metrics"]))
            for name, task in found.items()
        ],
        left=5,
    )
    deliver(found, json, sheet)


MEMBER = Command(run, "recft tasks", place=8)
