"""Gates: a comparison of one score of the tuned model, written as people write it.

    gate  := metric operator bound          ndcg@10 >= base + 0.01
    bound := number | row [(+|-) number]    auc >= 0.7, log_loss <= base, mrr >= reference - 0.005
    row   := base | reference | a baseline's name

The left side is the tuned model's score. Numbers are compared as they are written, in decimal: 0.88 passes
`base + 0.01` over a base of 0.87, which binary fractions would not grant.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from recft import registry
from recft.errors import RecipeError, problem
from recft.metrics import _base as metrics

__all__ = ["Gate", "check", "parse"]

_OPERATORS: dict[str, Callable[[Decimal, Decimal], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# A hyphen belongs to a name only before a letter, so that `base-0.01` is a difference.
_NAME = r"[A-Za-z][A-Za-z0-9_]*(?:-[A-Za-z][A-Za-z0-9_]*)*"
_GATE = re.compile(
    rf"\s*(?P<metric>{_NAME}(?:@[0-9]+)?)\s*(?P<operator>>=|<=|==|>|<)\s*"
    rf"(?:(?P<number>[+-]?\s*{_NUMBER})|(?P<row>{_NAME})(?:\s*(?P<shift>[+-]\s*{_NUMBER}))?)\s*"
)
_FORM = "metric, then >=, >, <=, < or ==, then a number or base, reference or a baseline, + or - a number"
_EXAMPLE = "for example 'ndcg@10 >= base + 0.01' or 'auc >= 0.7'"


@dataclass(frozen=True)
class Gate:
    """One gate, read.

    Attributes:
        expression: as it was written.
        metric: as it was written, which names a registered metric.
        operator: one of `>=`, `>`, `<=`, `<`, `==`.
        row: whose score bounds it, or None where a number does.
        shift: the number, or what is added to the row's score.
    """

    expression: str
    metric: str
    operator: str
    row: str | None
    shift: Decimal

    @property
    def bound(self) -> str:
        """The right side, for people."""
        if self.row is None:
            return f"{self.shift}"
        return f"{self.row} {'-' if self.shift < 0 else '+'} {abs(self.shift)}" if self.shift else self.row


def parse(expression: str) -> Gate:
    """The gate that an expression writes.

    >>> parse("ndcg@10>=base-0.01").bound
    'base - 0.01'

    Raises:
        RecipeError: the form is wrong, or there is no such metric.
    """
    match = _GATE.fullmatch(expression)
    if match is None:
        raise RecipeError(problem("gate", f"'{expression}' is not understood", _FORM, _EXAMPLE))
    try:
        metrics.parse(match["metric"])
    except RecipeError as error:
        raise RecipeError(f"gate '{expression}': {error}") from error
    number = (match["number"] or match["shift"] or "0").replace(" ", "")
    return Gate(expression.strip(), match["metric"], match["operator"], match["row"], Decimal(number))


def check(gate: str | Gate, report: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> tuple[bool, str]:
    """Whether the tuned model passes, and one line that says so.

    Args:
        gate: read or as written.
        report: what `eval/<split>.json` holds.
        reference: an earlier report; its tuned row is what `reference` names.

    Raises:
        RecipeError: the gate is not understood, or a score that it names was not measured.
    """
    gate = parse(gate) if isinstance(gate, str) else gate
    place = f"gate '{gate.expression}'"
    score = _score(report.get("tuned"), gate.metric, place, "tuned")
    bound = gate.shift
    if gate.row is not None:
        bound += _score(_row(gate.row, report, reference, place), gate.metric, place, gate.row)
    passed = _OPERATORS[gate.operator](score, bound)
    shown, limit = _shown(score, bound)
    words = f"{gate.metric} = {shown} is {'' if passed else 'not '}{gate.operator} "
    return passed, words + (gate.bound if gate.row is None else f"{gate.bound} = {limit}")


def _row(name: str, report: Mapping[str, Any], reference: Mapping[str, Any] | None, place: str) -> Any:
    """The scores of the row that a gate names."""
    if name == "reference":
        if reference is None:
            raise RecipeError(
                problem(place, "there is no reference", "reference is an earlier report", "pass --reference FILE")
            )
        return reference.get("tuned")
    if name == "base":
        return report.get("base")
    baselines = {_key(baseline): row for baseline, row in (report.get("baselines") or {}).items()}
    if _key(name) not in baselines:
        known = ["base", "reference", *baselines]
        raise RecipeError(
            problem(
                place,
                f"there is no row '{name}'.{registry.suggestion(_key(name), known)}",
                f"one of {', '.join(known)}",
                "correct the name, or add it to eval.baselines",
            )
        )
    return baselines[_key(name)]


def _score(row: Mapping[str, Any] | None, metric: str, place: str, name: str) -> Decimal:
    """One score of one row.

    Raises:
        RecipeError: it was not measured, or is no number.
    """
    scores = {_key(key): value for key, value in (row or {}).items()}
    if _key(metric) not in scores:
        raise RecipeError(
            problem(
                place,
                f"{metric} of {name} was not measured.{registry.suggestion(_key(metric), scores)}",
                f"one of {', '.join(row or {}) or 'none'}",
                "correct the metric, or add it to eval.metrics and score again",
            )
        )
    value = scores[_key(metric)]
    # `float` turns numpy's numbers into those whose text is the number alone.
    number = Decimal(str(float(value))) if isinstance(value, int | float) else Decimal("nan")
    if not number.is_finite():
        raise RecipeError(
            problem(
                place,
                f"{metric} of {name} is {value}",
                "a gate compares numbers",
                "check that the split has a record, or both labels, to score",
            )
        )
    return number


def _shown(score: Decimal, bound: Decimal) -> tuple[str, str]:
    """Both numbers with four decimals, or with as many as it takes to tell them apart."""
    for digits in range(4, 18):
        shown, limit = f"{score:.{digits}f}", f"{bound:.{digits}f}"
        if shown != limit or score == bound:
            return shown, limit
    return str(score), str(bound)


def _key(name: str) -> str:
    """One spelling for `log_loss` and `log-loss`."""
    return name.replace("_", "-")
