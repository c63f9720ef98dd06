"""Gates: a condition on one score of the tuned model, written as people write it.

    gate    := score (operator bound | "not worse than" row ["by" number])
    score   := [task ":"] metric ["[" slice "]"]     ndcg@10, purchase:auc, ndcg@10[cold_item], ndcg@10[brand=acme]
    operator:= >= | > | <= | < | ==
    bound   := number | row [(+|-) number]           auc >= 0.7, log_loss <= base, mrr >= reference - 0.005
    row     := base | reference | fused | fused_without_model | a baseline's name | another row's, such as lora-16

The left side is the tuned model's score; on the right stand the same task, metric and slice of another row, or of the
tuned row of an earlier report (`reference`). Numbers are compared as they are written, in decimal: 0.88 passes
`base + 0.01` over a base of 0.87, which binary fractions would not grant.

A hyphen before a digit belongs to another row's name where a whole number or a word follows (`lora-16`, `lora-4bit`);
it is a minus after one of the known names (`base-1`, `bm25-0.5`), before a fraction (`lora-0.01`) and after a space.

`not worse than` is a test, not a comparison: it fails where the two rows' predictions on the same records say that
the tuned model is worse, by more than the margin after `by`, at p < 0.05 (`evidence.py`).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from recft import registry
from recft.errors import DataError, RecipeError, problem
from recft.metrics import _base as metrics
from recft.reports.sides import Side, right_side, score_of

__all__ = ["NOT_WORSE", "Gate", "check", "parse", "read", "read_file"]

NOT_WORSE = "not worse than"

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
_FRACTION = r"[0-9]+(?:\.|[eE][+-]?[0-9]+(?![A-Za-z0-9_]))"
# Of a row that bears no known name also before a digit, where no fraction follows.
_ROW = rf"{_NAME}(?:-(?!{_FRACTION})[A-Za-z0-9][A-Za-z0-9_]*+)*+"
_KNOWN = ("base", "reference", "fused", "fused_without_model")
_FORM = (
    "[task:]metric[[slice]], then >=, >, <=, < or ==, then a number or base, reference or a baseline, + or - a number;"
    " or 'not worse than' a row [by a number]"
)
_EXAMPLE = "for example 'ndcg@10 >= base + 0.01', 'ece <= 0.05' or 'ndcg@10[cold_item] not worse than reference'"


@cache
def _gate() -> re.Pattern[str]:
    """The form of a gate. After a name that is known a hyphen before a digit is a minus: `bm25-1`."""
    known = sorted((*_KNOWN, *registry.names("recft.baselines")), key=len, reverse=True)
    spelled = "|".join(re.sub("[-_]", "[-_]", name) for name in known)
    row = rf"(?:(?:{spelled})(?![A-Za-z0-9_]|-[A-Za-z])|{_ROW})"
    return re.compile(
        rf"\s*(?:(?P<task>{_NAME})\s*:\s*)?(?P<metric>{_NAME}(?:@[0-9]+)?)\s*(?:\[(?P<slice>.+)\]\s*)?"
        rf"(?:(?P<operator>>=|<=|==|>|<)\s*"
        rf"(?:(?P<number>[+-]?\s*{_NUMBER})|(?P<row>{row})(?:\s*(?P<shift>[+-]\s*{_NUMBER}))?)"
        rf"|(?<![A-Za-z0-9_-])not\s+worse\s+than\s+(?P<rival>{row})(?:\s+by\s+(?P<margin>{_NUMBER}))?)\s*"
    )


@dataclass(frozen=True)
class Gate:
    """One gate, read.

    Attributes:
        expression: as it was written.
        metric: as it was written, which names a registered metric.
        operator: one of `>=`, `>`, `<=`, `<`, `==`, or `not worse than`.
        row: whose score bounds it, or None where a number does.
        shift: the number, or what is added to the row's score; of a test, how much worse it may be.
        task: the prefix, empty where there is none.
        slice: the part of the records, empty where all are meant.
        source: the file and line it stands in, empty where it was given by itself.
    """

    expression: str
    metric: str
    operator: str
    row: str | None
    shift: Decimal
    task: str = ""
    slice: str = ""
    source: str = ""

    @property
    def bound(self) -> str:
        """The right side, for people."""
        if self.row is None:
            return f"{self.shift}"
        if self.is_test:
            return f"{self.row} by {self.shift}" if self.shift else self.row
        return f"{self.row} {'-' if self.shift < 0 else '+'} {abs(self.shift)}" if self.shift else self.row

    @property
    def is_test(self) -> bool:
        """Whether it is decided by a test on predictions, not by comparing two numbers."""
        return self.operator == NOT_WORSE

    @property
    def score(self) -> str:
        """The left side, for people."""
        return (f"{self.task}:" if self.task else "") + self.metric + (f"[{self.slice}]" if self.slice else "")

    @property
    def place(self) -> str:
        """How a message names it."""
        return f"{self.source}: gate '{self.expression}'" if self.source else f"gate '{self.expression}'"


def parse(expression: str) -> Gate:
    """The gate that an expression writes.

    >>> parse("ndcg@10>=base-0.01").bound
    'base - 0.01'
    >>> parse("purchase:auc[brand=acme] not worse than reference by 0.005").score
    'purchase:auc[brand=acme]'

    Raises:
        RecipeError: the form is wrong, or there is no such metric.
    """
    match = _gate().fullmatch(expression)
    if match is None:
        raise RecipeError(problem("gate", f"'{' '.join(expression.split())}' is not understood", _FORM, _EXAMPLE))
    try:
        metrics.parse(match["metric"])
    except RecipeError as error:
        raise RecipeError(f"gate '{expression.strip()}': {error}") from error
    number = "".join((match["number"] or match["shift"] or match["margin"] or "0").split())
    return Gate(
        expression=" ".join(expression.split()),
        metric=match["metric"],
        operator=match["operator"] or NOT_WORSE,
        row=match["row"] or match["rival"],
        shift=Decimal(number),
        task=match["task"] or "",
        slice=(match["slice"] or "").strip(),
    )


def read(expressions: Sequence[str], file: Path | None = None) -> list[Gate]:
    """The gates of a command line, then those of a file.

    Raises:
        RecipeError: some are not understood; the message has a line for each.
        DataError: the file cannot be read or holds no gate.
    """
    lines = [("", expression) for expression in expressions]
    lines += read_file(file) if file is not None else []
    found, wrong = [], []
    for source, expression in lines:
        try:
            found.append(replace(parse(expression), source=source))
        except RecipeError as error:
            wrong.append(f"{source}: {error}" if source else str(error))
    if wrong:
        raise RecipeError("\n".join(wrong))
    return found


def read_file(path: Path) -> list[tuple[str, str]]:
    """The gates that a file holds, one a line, each with its file and line; `#` begins a comment.

    Raises:
        DataError: the file cannot be read, is no UTF-8 text, or holds no gate.
    """
    rule = "a gates file is UTF-8 text, one gate a line"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(problem(str(path), f"not UTF-8 ({error})", rule, "save it as UTF-8")) from error
    except OSError as error:
        raise DataError(problem(str(path), f"cannot be read: {error.strerror}", rule, "check --gates")) from error
    # A value of a slice may hold the sign that begins a comment.
    bare = [re.match(r"(?:\[[^\]\n]*\]|[^#])*", line) for line in text.split("\n")]
    gates = [(f"{path} line {number}", found[0].strip()) for number, found in enumerate(bare, start=1) if found]
    gates = [(source, gate) for source, gate in gates if gate]
    if not gates:
        raise DataError(problem(str(path), "holds no gate", rule, f"add one, {_EXAMPLE}"))
    return gates


def check(gate: str | Gate, report: Mapping[str, Any], reference: Mapping[str, Any] | None = None) -> tuple[bool, str]:
    """Whether the tuned model passes a comparison, and one line that says so.

    Args:
        gate: read or as written; no test, which needs predictions (`judge.py`).
        report: what `eval/<split>.json` holds.
        reference: an earlier report; its tuned row is what `reference` names.

    Raises:
        RecipeError: the gate is not understood, or a score that it names was not measured.
    """
    gate = parse(gate) if isinstance(gate, str) else gate
    score = score_of(gate, Side(report, "tuned", "tuned"))
    bound = gate.shift
    if gate.row is not None:
        bound += score_of(gate, right_side(gate, report, reference))
    passed = _OPERATORS[gate.operator](score, bound)
    shown, limit = _shown(score, bound)
    words = f"{gate.score} = {shown} is {'' if passed else 'not '}{gate.operator} "
    return passed, words + (gate.bound if gate.row is None else f"{gate.bound} = {limit}")


def _shown(score: Decimal, bound: Decimal) -> tuple[str, str]:
    """Both numbers with four decimals, or with as many as it takes to tell them apart."""
    for digits in range(4, 18):
        shown, limit = f"{score:.{digits}f}", f"{bound:.{digits}f}"
        if shown != limit or score == bound:
            return shown, limit
    return str(score), str(bound)
