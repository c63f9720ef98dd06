"""Gates as JUnit XML, which CI systems show beside a build's tests.

One suite a report, one case a gate: a broken gate is a failure, one that could not be judged an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

__all__ = ["junit"]

# What XML 1.0 has no way to write, surrogates among it.
_FORBIDDEN = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Mapping[str, Any]) -> str:
    """One test case a gate of the report; a failed one carries its line as the message."""
    gates = report.get("gates", [])
    suite = f"recft.{report.get('name', 'run')}.{_protocol(report).get('split', 'test')}"
    errors = sum(bool(gate.get("error")) for gate in gates)
    failures = sum(not gate["passed"] for gate in gates) - errors
    counts = f'tests="{len(gates)}" failures="{failures}" errors="{errors}"'
    seconds = f'time="{float(report.get("seconds", 0.0)):.2f}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {counts} {seconds}>",
        f'<testsuite name={_quoted(suite)} {counts} skipped="0" {seconds}>',
        "<properties>",
        *(f"<property name={_quoted(name)} value={_quoted(value)}/>" for name, value in _properties(report)),
        "</properties>",
        *(_case(gate, suite) for gate in gates),
        "</testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines) + "\n"


def _protocol(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return report.get("protocol") or {}


def _properties(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was measured, and how: the tuned model's scores and the protocol."""
    for name in ("task", "n"):
        if report.get(name) is not None:
            yield name, str(report[name])
    for name, value in _protocol(report).items():
        yield f"protocol.{name}", str(value)
    for metric, value in (report.get("tuned") or {}).items():
        yield f"tuned.{metric}", "undefined" if value is None else f"{value}"


def _case(gate: Mapping[str, Any], suite: str) -> str:
    # Gates are judged together, after scoring: the suite has the time.
    opening = f'<testcase classname={_quoted(suite)} name={_quoted(gate["gate"])} time="0"'
    text = escape(_legal(gate["line"]))
    if gate["passed"]:
        return f"{opening}><system-out>{text}</system-out></testcase>"
    kind, error = ("error", "RecipeError") if gate.get("error") else ("failure", "GateError")
    return f'{opening}><{kind} type="{error}" message={_quoted(gate["line"])}>{text}</{kind}></testcase>'


def _quoted(text: str) -> str:
    return quoteattr(_legal(text))


def _legal(text: str) -> str:
    """The text without signs that XML 1.0 forbids."""
    return _FORBIDDEN.sub("", text)
