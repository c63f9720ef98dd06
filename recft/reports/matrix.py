"""What works with what, read off the members' own declarations.

Every combination of method, kind of base and quantization is put to the same refusals that verbs check before a
model is loaded, with every setting at its default and an embedding task. Refusals that need more than that to hold
(an architecture, a setting) are listed as conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from recft import registry
from recft.registry import Refusal
from recft.reports.tables import Sheet
from recft.schema import ModelSettings

__all__ = ["matrix", "matrix_sheet"]

# Tasks know which kinds there are, but they import numpy: listing must stay quick.
_KINDS = ("encoder", "causal")


def matrix(device: str = "cpu") -> dict[str, Any]:
    """`methods` by name, `cells` (one a method, kind and quantization, with its targets), and `conditions`."""
    members = {name: registry.load("recft.methods", name) for name in registry.names("recft.methods")}
    targets = {name: registry.load("recft.exports", name) for name in registry.names("recft.exports")}
    refusals = {id(refusal): ("", refusal) for member in members.values() for refusal in member.refusals}
    refusals |= {
        id(refusal): (f"to {name}, ", refusal) for name, target in targets.items() for refusal in target.refusals
    }
    cells: list[dict[str, Any]] = []
    used: set[int] = set()
    for facts in _combinations(members, device):
        name = str(facts["method.name"])
        cells.append(_cell(facts, members[name], targets, used))
    conditions = [
        {"when": where + _words(refusal), "reason": refusal.reason, "fix": refusal.fix}
        for key, (where, refusal) in refusals.items()
        if key not in used
    ]
    return {
        "methods": {
            name: {"summary": member.summary, "mergeable": member.mergeable} for name, member in members.items()
        },
        "targets": {name: target.summary for name, target in targets.items()},
        "cells": cells,
        "conditions": conditions,
    }


def _combinations(members: Mapping[str, Any], device: str) -> Iterator[dict[str, object]]:
    """The facts of every combination, settings at their defaults."""
    for name, member in members.items():
        settings = {f"method.{key}": value for key, value in member.Config(name=name).model_dump().items()}
        for kind in _KINDS:
            for quantization in get_args(ModelSettings.model_fields["quantization"].annotation):
                yield {
                    **settings,
                    "kind": kind,
                    "model.quantization": quantization,
                    "device": device,
                    "head": "embedding",
                    "mergeable": members[name].mergeable,
                }


def _cell(facts: Mapping[str, object], member: Any, targets: Mapping[str, Any], used: set[int]) -> dict[str, Any]:
    """Whether one combination works, and what each target says to it."""
    refusal = registry.refused(member.refusals, facts)
    used |= {id(refusal)} if refusal else set()
    carried: dict[str, Any] = {}
    for name, target in targets.items():
        said = registry.refused(target.refusals, {**facts, "target": name})
        used |= {id(said)} if said else set()
        if refusal:
            carried[name] = refusal.reason
        elif "merge" in target.needs and not member.mergeable:
            carried[name] = "this method has no weights to merge into the base's"
        elif "plain_lora" in target.needs and not member.mergeable:
            carried[name] = "this method is no plain LoRA"
        else:
            carried[name] = said.reason if said else None
    return {
        "method": facts["method.name"],
        "kind": facts["kind"],
        "quantization": facts["model.quantization"],
        "refused": refusal.reason if refusal else None,
        "targets": carried,
    }


def _words(refusal: Refusal) -> str:
    """A refusal's conditions as `key: value` words."""
    said = [f"{key}: {_values(value)}" for key, value in refusal.when.items()]
    lifted = [f"unless {key}: {_values(value)}" for key, value in refusal.unless.items()]
    return ", ".join(said + lifted)


def _values(value: object) -> str:
    if isinstance(value, tuple | frozenset):
        return " | ".join(sorted(str(part) for part in value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def matrix_sheet(found: Mapping[str, Any]) -> Sheet:
    """The matrix as a table: a row a method and kind, a column a quantization and a target; reasons as footnotes."""
    quantizations = list(dict.fromkeys(cell["quantization"] for cell in found["cells"]))
    targets = list(found["targets"])
    notes: dict[str, int] = {}

    def mark(reasons: list[str | None]) -> str:
        said = [reason for reason in dict.fromkeys(reasons) if reason]
        if not said:
            return "yes"
        numbers = ",".join(str(notes.setdefault(reason, len(notes) + 1)) for reason in said)
        return f"{'no' if all(reasons) else 'partly'} [{numbers}]"

    rows = []
    for method, kind in dict.fromkeys((cell["method"], cell["kind"]) for cell in found["cells"]):
        cells = [cell for cell in found["cells"] if (cell["method"], cell["kind"]) == (method, kind)]
        allowed = [cell for cell in cells if not cell["refused"]] or cells
        rows.append(
            (
                method,
                kind,
                *(mark([cell["refused"] for cell in cells if cell["quantization"] == one]) for one in quantizations),
                *(mark([cell["targets"][target] for cell in allowed]) for target in targets),
            )
        )
    conditions = [f"  {condition['when']}: {condition['reason']}" for condition in found["conditions"]]
    return Sheet(
        columns=("method", "base", *quantizations, *(f"to {target}" for target in targets)),
        rows=rows,
        title="On a CPU: bases and quantizations of each method, and the export targets that carry it",
        notes=[
            *(f"[{place}] {reason}" for reason, place in notes.items()),
            *(["Refused besides, whatever the cell says:", *conditions] if conditions else []),
        ],
        left=2 + len(quantizations) + len(targets),
    )
