"""Sheets: tables of text, and how they are laid out.

A sheet is data. `rich_sheet` lays it out for a terminal, `plain` for a pipe and `markdown` for a README; all count the
width of Chinese characters as two, so that columns stand straight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Sheet", "markdown", "number", "plain", "rich_sheet", "signed", "with_interval"]


@dataclass(frozen=True)
class Sheet:
    """A table of text.

    Attributes:
        columns: their headings.
        rows: as many cells each as there are columns.
        title: above the table.
        notes: lines below it.
        left: how many columns from the left hold words; the rest hold numbers and stand to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    notes: Sequence[str] = ()
    left: int = 1


def number(value: object) -> str:
    """A value as people read it: four decimals for scores, thousands apart for counts, a dash where there is none.

    >>> number(0.87964), number(19406), number(None), number(0.0000123), number(True)
    ('0.8796', '19,406', '-', '1.2e-05', 'yes')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value != value:
            return "-"
        if value == 0 or 1e-3 <= abs(value) < 1e4:
            return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
        return f"{value:.1e}" if abs(value) < 1 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(number(part) for part in value)
    return str(value)


def signed(value: float | None) -> str:
    """A difference with its sign.

    >>> signed(0.0123), signed(-0.5), signed(None)
    ('+0.0123', '-0.5000', '-')
    """
    if value is None or value != value:
        return "-"
    return f"{value:+.4f}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A score with its interval, where there is one."""
    return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]" if interval else number(value)


def rich_sheet(sheet: Sheet) -> RenderableType:
    """The sheet for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, title=sheet.title or None, title_justify="left", pad_edge=False, title_style="bold"
    )
    for place, heading in enumerate(sheet.columns):
        # Narrow terminals fold cells: no figure is ever cut off.
        table.add_column(Text(heading), justify="left" if place < sheet.left else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return Group(table, *(Text(note, style="dim") for note in sheet.notes))


def markdown(sheet: Sheet) -> str:
    """The sheet as Markdown, its columns straight in a plain text too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (sheet.columns, *sheet.rows)]
    lines = [f"| {' | '.join(cells)} |" for cells in _padded(rows, sheet.left)]
    widths = [_width(cell) for cell in _padded(rows, sheet.left)[0]]
    rule = ["-" * width if place < sheet.left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    title = [f"**{sheet.title}**", ""] if sheet.title else []
    notes = ["", *sheet.notes] if sheet.notes else []
    return "\n".join([*title, lines[0], f"| {' | '.join(rule)} |", *lines[1:], *notes]) + "\n"


def plain(sheet: Sheet) -> str:
    """The sheet as lines of text without any drawing."""
    headed = [sheet.columns, *sheet.rows] if any(sheet.columns) else list(sheet.rows)
    lines = ["  ".join(cells).rstrip() for cells in _padded(headed, sheet.left)]
    return "\n".join([*([sheet.title] if sheet.title else []), *lines, *sheet.notes]) + "\n"


def _padded(rows: Sequence[Sequence[str]], left: int) -> list[list[str]]:
    """The rows with all cells of a column equally wide, at least three."""
    widths = [max(3, *(_width(cell) for cell in column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell + " " * (width - _width(cell)) if place < left else " " * (width - _width(cell)) + cell
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]


def _width(text: str) -> int:
    """How many columns a text takes in a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
