"""Gates judged: all of them, each with a line; what cannot be judged is told apart from what is broken.

A verb calls, in this order: `read` (gates.py), `open_reference` and `foresee` before anything is scored, `judge` once
the predictions are written, `insist` once the report is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recft.errors import DataError, GateError, RecftError, RecipeError, problem
from recft.reports.evidence import Comparison, Evidence, compare, gather
from recft.reports.gates import Gate, check
from recft.reports.sides import Side, known_row, right_side, score_of, slice_part, spelling, task_part
from recft.run import read_json

__all__ = ["SAME", "SIGNIFICANT", "Prospect", "foresee", "insist", "judge", "open_reference"]

SIGNIFICANT = 0.05

SAME = (
    *("data", "split", "split_by", "candidates", "n_candidates", "sampled", "history_masked", "gain", "decoding"),
    "subset",
)
"""What two protocols must share before a figure of one bounds a figure of the other."""


def open_reference(path: Path | None, gates: Sequence[Gate]) -> Evidence | None:
    """The reference, with the predictions that gates need of it; None where no file is named.

    Raises:
        RecipeError: a gate names a reference, and there is none.
        DataError: the file is missing, is no report, or its predictions are missing or are others.
    """
    named = [gate for gate in gates if gate.row == "reference"]
    if path is None:
        for gate in named[:1]:
            right_side(gate, {}, None)
        return None
    try:
        report = read_json(path)
    except (RecftError, OSError) as error:
        raise DataError(f"--reference: {error}") from error
    if not isinstance(report, dict) or not isinstance(report.get("tuned"), dict) or "protocol" not in report:
        raise DataError(
            problem(
                "--reference", f"{path} is no report", "an eval/<split>.json that recft eval wrote", "check the path"
            )
        )
    return gather(path, report, [gate for gate in named if gate.is_test], "reference")


@dataclass(frozen=True)
class Prospect:
    """What is known of a task's report before anything is scored.

    Attributes:
        task: its name.
        metrics: as they will be written.
        rows: base, baselines and whatever else will have scores, without the tuned row.
        protocol: as far as it is known: `data` and `split` at least.
        slices: the names of the parts that will be scored by themselves.
    """

    task: str
    metrics: Sequence[str]
    rows: Sequence[str]
    protocol: Mapping[str, Any]
    slices: Sequence[str] = ()

    @property
    def report(self) -> dict[str, Any]:
        """A report without figures."""
        tuned = dict.fromkeys(self.metrics)
        slices = {name: {"rows": {"tuned": tuned}} for name in self.slices}
        return {"task": self.task, "tuned": tuned, "slices": slices, "protocol": self.protocol, "names": self.rows}


def foresee(gates: Sequence[Gate], reference: Evidence | None, prospects: Sequence[Prospect]) -> None:
    """Nothing, where each gate can be judged as far as is known before anything is scored.

    Args:
        gates: all gates.
        reference: what `reference` names.
        prospects: one a task; gates without a task mean the first.

    Raises:
        RecipeError: the message has a line for each gate that cannot be judged.
    """
    report = prospects[0].report
    if len(prospects) > 1:
        report["tasks"] = {one.task: one.report for one in prospects}
    wrong = []
    for gate in gates:
        try:
            _foresee(gate, reference, report)
        except RecftError as error:
            wrong.append(str(error))
    if wrong:
        raise RecipeError("\n".join(wrong))


def _foresee(gate: Gate, reference: Evidence | None, report: Mapping[str, Any]) -> None:
    ours = Side(report, "tuned", "tuned")
    part = task_part(gate, ours)
    spelling(gate, slice_part(gate, ours).get("rows", part)["tuned"], "tuned")
    if gate.row == "reference" and reference is not None:
        _refuse_other(gate, reference, report, [name for name in SAME if name in part["protocol"]])
        score_of(gate, Side(reference.report, "tuned", "reference"))
    elif gate.row is not None and gate.row != "reference":
        known_row(gate, part["names"])


def _refuse_other(gate: Gate, reference: Evidence, ours: Mapping[str, Any], names: Sequence[str]) -> None:
    """Nothing, where the reference was scored under the same protocol.

    Args:
        gate: which is told.
        reference: the other report.
        ours: this report, or what is known of it.
        names: the parts of the protocol to compare.

    Raises:
        DataError: it was not.
    """
    sides = {"here": ours, "there": reference.report}
    protocols = {
        where: {"task": report.get("task"), **(task_part(gate, Side(report, "tuned", where)).get("protocol") or {})}
        for where, report in sides.items()
    }
    for name in ("task", *names):
        here, there = (protocols[where].get(name) for where in sides)
        if here != there:
            raise DataError(
                problem(
                    gate.place,
                    f"{reference.path} was scored with {name} {str(there)[:24]}, this run with {str(here)[:24]}",
                    "a reference is another run scored on the same data, split and candidates",
                    "score the reference run again on this data with this recipe's eval, or gate with a number",
                )
            )


def judge(
    gates: Sequence[Gate], report: Mapping[str, Any], path: Path, reference: Evidence | None = None
) -> list[dict[str, Any]]:
    """What becomes of each gate: `{"gate", "passed", "line"}`, of a test also `mean`, `ci`, `n` and `p`.

    A gate that cannot be judged has not passed, and has `"error": true`.

    Args:
        gates: all gates.
        report: what was scored; its predictions are written.
        path: where the report lies or will lie.
        reference: what `reference` names.
    """
    found: list[dict[str, Any]] = []
    for gate in gates:
        try:
            if gate.row == "reference" and reference is not None:
                _refuse_other(gate, reference, report, SAME)
            if gate.is_test:
                found.append(_tested(gate, gather(path, report, [gate], "tuned"), reference))
            else:
                passed, line = check(gate, report, reference.report if reference else None)
                found.append({"gate": gate.expression, "passed": passed, "line": line})
        except RecftError as error:
            found.append({"gate": gate.expression, "passed": False, "line": str(error), "error": True})
    return found


def _tested(gate: Gate, ours: Evidence, reference: Evidence | None) -> dict[str, Any]:
    """What becomes of a test."""
    right = right_side(gate, ours.report, reference.report if reference else None)
    theirs = reference if reference is not None and gate.row == "reference" else ours
    found = compare(gate, ours, theirs, right)
    passed = not found.p < SIGNIFICANT
    scores = [score_of(gate, side) for side in (Side(ours.report, "tuned", "tuned"), right)]
    line = _line(gate, passed, found, [float(score) for score in scores])
    evidence = {"mean": found.mean, "ci": list(found.interval) if found.interval else None, "n": found.n, "p": found.p}
    return {"gate": gate.expression, "passed": passed, "line": line, **evidence}


def _line(gate: Gate, passed: bool, found: Comparison, scores: Sequence[float]) -> str:
    """A test in one line."""
    ours, theirs = (f"{score:.4f}" for score in scores)
    margin = f" by more than {gate.shift}" if gate.shift else ""
    interval = f" [{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]" if found.interval else ""
    verdict = "is not shown to be worse than" if passed else "is worse than"
    bound = f"p = {found.p:.4f} {'>=' if passed else '<'} {SIGNIFICANT}"
    difference = f"difference {found.mean:+.4f}{interval}, n = {found.n:,}"
    return f"{gate.score} = {ours} {verdict} {gate.row} = {theirs}{margin}: {difference}, {bound}"


def insist(report: dict[str, Any]) -> None:
    """Nothing, where every gate of the report has passed.

    Raises:
        RecipeError: a gate could not be judged.
        GateError: a gate is broken. Either has a line for each such gate, and carries the report as `report`.
    """
    failed = [gate for gate in report.get("gates", ()) if not gate["passed"]]
    if not failed:
        return
    unjudged = any(gate.get("error") for gate in failed)
    error: RecftError = (RecipeError if unjudged else GateError)("\n".join(gate["line"] for gate in failed))
    error.report = report  # type: ignore[attr-defined]  # the command line still shows the table
    raise error
