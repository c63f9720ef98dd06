"""Where the two sides of a gate stand in a report: its task's part, its slice, its row, its metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from recft import registry
from recft.errors import RecipeError, problem

if TYPE_CHECKING:
    from recft.reports.gates import Gate

__all__ = [
    "Side",
    "known_row",
    "respelled",
    "right_side",
    "score_of",
    "slice_name",
    "slice_part",
    "spelling",
    "task_part",
]


@dataclass(frozen=True)
class Side:
    """One side of a gate: a row of a report, and what the gate calls it."""

    report: Mapping[str, Any]
    row: str
    name: str


def right_side(gate: Gate, report: Mapping[str, Any], reference: Mapping[str, Any] | None) -> Side:
    """The report and the row in it that a gate's right side names.

    Raises:
        RecipeError: there is no such row, or no reference.
    """
    name = gate.row or ""
    if name == "reference":
        if reference is None:
            raise RecipeError(
                problem(gate.place, "there is no reference", "reference is an earlier report", "pass --reference FILE")
            )
        return Side(reference, "tuned", name)
    rows = {respelled(row): row for row in _rows(slice_part(gate, Side(report, name, "tuned"))) if row != "tuned"}
    return Side(report, rows[known_row(gate, list(rows.values()))], name)


def known_row(gate: Gate, rows: Sequence[str]) -> str:
    """The one spelling of the row that a gate names.

    Raises:
        RecipeError: it is none of `rows`.
    """
    wanted = respelled(gate.row or "")
    if wanted in map(respelled, rows):
        return wanted
    known = ["reference", *rows]
    raise RecipeError(
        problem(
            gate.place,
            f"there is no row '{gate.row}'.{registry.suggestion(wanted, known)}",
            f"one of {', '.join(known)}",
            "correct the name, or add it to eval.baselines",
        )
    )


def spelling(gate: Gate, scores: Mapping[str, Any], name: str) -> str:
    """The gate's metric as a report spells it.

    Raises:
        RecipeError: it was not measured.
    """
    spelled = {respelled(key): key for key in scores}
    if respelled(gate.metric) in spelled:
        return spelled[respelled(gate.metric)]
    raise RecipeError(
        problem(
            gate.place,
            f"{gate.score} of {name} was not measured.{registry.suggestion(respelled(gate.metric), spelled)}",
            f"one of {', '.join(scores) or 'none'}",
            "correct the metric, or add it to eval.metrics and score again",
        )
    )


def score_of(gate: Gate, side: Side) -> Decimal:
    """The score of the task, metric and slice that a gate names.

    Raises:
        RecipeError: it was not measured, or is no number.
    """
    scores: Mapping[str, Any] = _rows(slice_part(gate, side)).get(side.row) or {}
    value = scores[spelling(gate, scores, side.name)]
    # `float` turns numpy's numbers into those whose text is the number alone.
    number = Decimal(str(float(value))) if isinstance(value, int | float) else Decimal("nan")
    if not number.is_finite():
        raise RecipeError(
            problem(
                gate.place,
                f"{gate.score} of {side.name} is {value}",
                "a gate compares numbers",
                "check that the split has a record, or both labels, to score",
            )
        )
    return number


def task_part(gate: Gate, side: Side) -> Mapping[str, Any]:
    """The report of the task that a gate names.

    Raises:
        RecipeError: there is no such task.
    """
    tasks = {respelled(name): part for name, part in (side.report.get("tasks") or {}).items()}
    if not gate.task and tasks and not side.report.get("tuned"):
        raise RecipeError(
            problem(
                gate.place,
                f"{_whose(side)} has several tasks",
                f"one of {', '.join(side.report['tasks'])}",
                f"name it before a colon, as in {next(iter(side.report['tasks']))}:{gate.metric}",
            )
        )
    if not gate.task or (not tasks and respelled(gate.task) == respelled(str(side.report.get("task", "")))):
        return side.report
    if respelled(gate.task) in tasks:
        part: Mapping[str, Any] = tasks[respelled(gate.task)]
        return part
    known = list(side.report.get("tasks") or [side.report.get("task", "none")])
    raise RecipeError(
        problem(
            gate.place,
            f"there is no task '{gate.task}' in {_whose(side)}.{registry.suggestion(respelled(gate.task), known)}",
            f"one of {', '.join(map(str, known))}",
            "correct the word before the colon, or leave it out",
        )
    )


def slice_part(gate: Gate, side: Side) -> Mapping[str, Any]:
    """The task's report, or its slice, that a gate names.

    Raises:
        RecipeError: there is no such task or slice.
    """
    part = task_part(gate, side)
    name = slice_name(gate, side)
    found: Mapping[str, Any] = part["slices"][name] if name else part
    return found


def slice_name(gate: Gate, side: Side) -> str:
    """The gate's slice as a report spells it; empty where it names none.

    Raises:
        RecipeError: there is no such task or slice.
    """
    slices: Mapping[str, Any] = task_part(gate, side).get("slices") or {}
    spelled = {respelled(name): name for name in slices}
    if not gate.slice or gate.slice in slices:
        return gate.slice
    if respelled(gate.slice) in spelled:
        return spelled[respelled(gate.slice)]
    raise RecipeError(
        problem(
            gate.place,
            f"there is no slice '{gate.slice}' in {_whose(side)}."
            f"{registry.suggestion(respelled(gate.slice), list(slices))}",
            f"one of {', '.join([*slices][:20]) or 'none'}",
            "correct the name, or add its family or column to eval.slices and score again",
        )
    )


def _rows(part: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of a report or of a slice, by name."""
    if "rows" in part:
        return dict(part["rows"])
    own = {row: part[row] for row in ("base", "tuned", "fused", "fused_without_model") if part.get(row) is not None}
    return own | dict(part.get("baselines") or {})


def _whose(side: Side) -> str:
    return "the reference" if side.name == "reference" else "this report"


def respelled(name: str) -> str:
    """One spelling for `log_loss` and `log-loss`."""
    return name.replace("_", "-")
