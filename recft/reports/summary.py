"""A report as Markdown: what a build shows beside its log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from recft.reports import reading
from recft.reports.tables import Sheet, differences, markdown, number, scores, slices

__all__ = ["summary"]

MOST_SLICES = 40
"""A column may have thousands of values, and a build's page has a limit."""

# What Markdown and HTML would read as something else: marks, entities, the target of a link, an underscore that is not
# within a word, and what makes a line a heading or a quotation.
_SIGNS = re.compile(r"[\\`*~]|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|(?<=\])\(|(?<!\w)_|_(?!\w)|^[#>]")


def summary(report: Mapping[str, Any]) -> str:
    """The verdict in words, the gates, and the tables of scores, differences and slices, task by task."""
    split = (report.get("protocol") or {}).get("split", "")
    gates = report.get("gates") or ()
    broken = sum(not gate["passed"] for gate in gates)
    state = (
        f": {broken} of {len(gates)} gates broken"
        if broken
        else f": {len(gates)} of {len(gates)} gates hold"
        if gates
        else ""
    )
    blocks = [f"## recft eval: {_text(str(report.get('name', 'run')))}, {_text(split)} split{state}"]
    blocks += [_gates(gates)] if gates else []
    for name, part in reading.parts(report):
        blocks += [f"### {_text(name)}"] if name else []
        blocks += _part(part)
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def _part(report: Mapping[str, Any]) -> Iterable[str]:
    """One task's blocks."""
    verdicts = report.get("verdicts") or ()
    if verdicts:
        yield "\n".join(f"- {_text(line)}" for line in verdicts)
    if report.get("tuned"):
        yield markdown(_sheet(replace(scores(report), title="")))
    if report.get("paired"):
        yield markdown(_sheet(differences(report["paired"])))
    found = report.get("slices") or {}
    if found:
        shown = dict(list(found.items())[:MOST_SLICES])
        more = [f"{number(len(found) - MOST_SLICES)} more slices are in the report."] * (len(found) > MOST_SLICES)
        yield markdown(_sheet(replace(slices({**report, "slices": shown}), notes=more)))


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    """A line a gate, with a mark."""
    rows = [("✅" if gate["passed"] else "⚠️" if gate.get("error") else "❌", str(gate["line"])) for gate in gates]
    return markdown(_sheet(Sheet(columns=("", "gate"), rows=rows, left=2)))


def _sheet(sheet: Sheet) -> Sheet:
    """The sheet with nothing in it that Markdown would read."""
    return replace(
        sheet,
        columns=[_text(cell) for cell in sheet.columns],
        rows=[[_text(cell) for cell in row] for row in sheet.rows],
        notes=[_text(note) for note in sheet.notes],
    )


def _text(text: str) -> str:
    r"""One line that is shown as it stands.

    >>> print(_text("brand=<b>*a*  ndcg@10 cold_item"))
    brand=\<b>\*a\* ndcg@10 cold_item
    """
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return _SIGNS.sub(lambda found: f"\\{found[0]}", " ".join(line.split()))
