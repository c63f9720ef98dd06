"""Gates as JUnit XML, which CI systems show beside a build's tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

__all__ = ["junit"]


def junit(report: Mapping[str, Any]) -> str:
    """One test case a gate of the report; a failed one carries its line as the message."""
    gates = report.get("gates", [])
    split = report.get("protocol", {}).get("split", "test")
    suite = f"recft.{report.get('name', 'run')}.{split}"
    failures = sum(not gate["passed"] for gate in gates)
    head = f'name={quoteattr(_legal(suite))} tests="{len(gates)}" failures="{failures}" errors="0" skipped="0"'
    cases = [_case(gate, suite) for gate in gates]
    body = "\n".join(cases)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites tests="{len(gates)}" failures="{failures}">\n'
        f'<testsuite {head} time="{float(report.get("seconds", 0.0)):.2f}">\n'
        + (body + "\n" if body else "")
        + "</testsuite>\n</testsuites>\n"
    )


def _case(gate: Mapping[str, Any], suite: str) -> str:
    opening = f"<testcase classname={quoteattr(_legal(suite))} name={quoteattr(_legal(gate['gate']))}"
    if gate["passed"]:
        return f"{opening}><system-out>{escape(_legal(gate['line']))}</system-out></testcase>"
    line = _legal(gate["line"])
    return f'{opening}><failure type="GateError" message={quoteattr(line)}>{escape(line)}</failure></testcase>'


def _legal(text: str) -> str:
    """The text without signs that XML 1.0 forbids."""
    return "".join(sign for sign in text if sign in "\t\n\r" or ord(sign) >= 0x20)
