"""`recft tasks`: what a model can be tuned for."""

from __future__ import annotations

from recft import registry
from recft.cli._base import Command
from recft.cli._options import JsonFile, Quiet
from recft.cli._shell import deliver
from recft.reports.tables import Sheet

__all__ = ["MEMBER"]

KINDS = ("encoder", "causal")


def run(_quiet: Quiet = False, json: JsonFile = None) -> None:
    """List the tasks: what each reads, and how it is scored."""
    found = {}
    for name in registry.names("recft.tasks"):
        task = registry.load("recft.tasks", name)
        settings = task.Config(name=name)
        heads = {kind: task.head(settings, kind) for kind in KINDS}
        found[name] = {
            "summary": task.summary,
            "tables": list(task.tables),
            "output": task.output,
            "reads": task.reads(settings),
            "bases": {kind: head for kind, head in heads.items() if head is not None},
            "metrics": list(task.metrics),
            "monitor": task.monitor,
            "refusals": [refusal.reason for refusal in task.refusals],
        }
    sheet = Sheet(
        columns=("task", "", "reads", "gives", "bases", "metrics"),
        rows=[
            (
                name,
                task["summary"],
                ", ".join(f"data.{table}" for table in task["tables"]),
                task["output"],
                ", ".join(task["bases"]),
                ", ".join(task["metrics"]),
            )
            for name, task in found.items()
        ],
        left=6,
    )
    deliver(found, json, sheet)


MEMBER = Command(run, "recft tasks", place=8)
