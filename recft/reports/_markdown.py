"""Markdown that shows texts as they are: titles and labels may hold anything."""

from __future__ import annotations

import re
from dataclasses import replace

from recft.reports.sheets import Sheet, markdown

__all__ = ["fenced", "plain_text", "table"]

_ESCAPED = r"\\\1"
_MARKUP = re.compile(
    r"([\\`]|\*(?=\S)|(?<=\S)\*|(?<!\w)_|_(?!\w)|~(?=~)|<(?=[A-Za-z/!?])|(?<=\])\(|!(?=\[)|&(?=#?\w+;))"
)


def fenced(text: str, language: str) -> str:
    """A code block that its own text cannot close."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}\n"


def table(sheet: Sheet) -> str:
    """The sheet with its notes below, each a paragraph; a cell's line ends become spaces."""
    rows = [[plain_text(cell) for cell in cells] for cells in sheet.rows]
    safe = replace(sheet, columns=[plain_text(cell) for cell in sheet.columns], rows=rows, notes=())
    notes = [re.sub(r"^([*+#>-])", _ESCAPED, plain_text(note)) for note in sheet.notes]
    return "\n\n".join([markdown(safe).strip("\n"), *notes]) + "\n"


def plain_text(text: object) -> str:
    r"""Text on one line, of which Markdown makes no markup of its own: a title may hold anything.

    >>> plain_text("a  b"), plain_text("**<b>** 1 < 2"), plain_text("cold_item [0.1, 0.2] *")
    ('a b', '\\*\\*\\<b>\\*\\* 1 < 2', 'cold_item [0.1, 0.2] *')
    """
    return _MARKUP.sub(_ESCAPED, " ".join(str(text).split()))
