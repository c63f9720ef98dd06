"""Markup that cannot be broken by what it holds: every text is cleaned, cut and escaped where it enters.

A page is one file: its style stands in it, and a policy forbids it scripts, forms and any request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from recft.reports.sheets import Sheet

__all__ = ["Html", "contents", "document", "el", "join", "section", "table"]

LONGEST_TEXT = 500
"""Characters of one text that are shown: a title of a megabyte is a title of 500 characters and a mark."""

_VOID = frozenset({"meta", "br", "line", "rect", "circle", "path"})
# What HTML forbids, and what turns the direction of the text behind it.
_FORBIDDEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), *range(127, 160), 0xFFFE, 0xFFFF)) | dict.fromkeys(
    (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
)


class Html(str):
    """Text that is markup already; all other text is escaped."""

    __slots__ = ()


def el(tag: str, *children: str, **attributes: object) -> Html:
    """An element. `class_` is `class`; None and False leave an attribute out.

    >>> el("td", "<b> & c", class_="n", colspan=2)
    '<td class="n" colspan="2">&lt;b&gt; &amp; c</td>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{value if isinstance(value, Html) else _escape(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{tag}{named}>" if tag in ("meta", "br") else f"<{tag}{named}/>")
    return Html(f"<{tag}{named}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """The parts one after the other, escaped where they are not markup."""
    return Html("".join(part if isinstance(part, Html) else _escape(part) for part in parts))


def _escape(value: object) -> str:
    text = str(value)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]}…"
    # A lone half of a surrogate pair has no place in a UTF-8 file.
    return html.escape(text.translate(_FORBIDDEN).encode("utf-8", "replace").decode("utf-8"))


def section(level: int, title: str, *children: str, key: str | None = None) -> Html:
    """A heading of a level with what belongs under it; nothing where there is nothing to show."""
    shown = [child for child in children if child]
    return el("section", el(f"h{level}", title), *shown, id=key) if shown else Html()


def contents(body: Html) -> Html:
    """Links to the sections of a body that have a key and stand at the second level; nothing for fewer than four."""
    found = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', body)
    links = [el("li", el("a", Html(title), href=f"#{key}")) for key, title in found]
    return el("nav", el("ul", *links), aria_label="Contents") if len(links) > 3 else Html()


def table(sheet: Sheet, caption: str, extra: Sequence[Html] = (), marked: Sequence[str] = ()) -> Html:
    """A sheet as a table in a box of its own that scrolls; nothing where the sheet has no rows.

    Args:
        sheet: the first cell of a row is its heading.
        caption: above the table.
        extra: one more column of cells, behind the headings of rows; its own heading comes first.
        marked: headings of rows that stand out.
    """
    if not sheet.rows:
        return Html()
    # A column without a name still has one for who listens to the page.
    names = [name or ("value" if place else "row") for place, name in enumerate(sheet.columns)]
    head = [
        el(
            "th",
            *(_breakable(name) if shown else [el("span", name, class_="unseen")]),
            scope="col",
            class_=_side(sheet, at),
        )
        for at, (name, shown) in enumerate(zip(names, sheet.columns, strict=True))
    ]
    rows = []
    for number, row in enumerate(sheet.rows):
        cells = [el("td", *_figure(cell), class_=_side(sheet, place)) for place, cell in enumerate(row[1:], start=1)]
        cells = [el("th", *_breakable(row[0]), scope="row"), *extra[number + 1 : number + 2], *cells]
        rows.append(el("tr", *cells, class_="marked" if row[0] in marked else None))
    head = [head[0], *extra[:1], *head[1:]]
    drawn = el("table", el("caption", el("span", caption)), el("thead", el("tr", *head)), el("tbody", *rows))
    notes = [el("p", note, class_="note") for note in sheet.notes]
    # Who scrolls with the keyboard alone must be able to reach the box.
    return join([el("div", drawn, class_="wide", tabindex=0, role="region", aria_label=caption), *notes])


def _side(sheet: Sheet, place: int) -> str:
    return "words" if place < sheet.left else "n"


def _breakable(name: str) -> list[str]:
    """A name that may be broken behind its underscores."""
    parts = name[:LONGEST_TEXT].split("_")
    return [part for piece in parts[:-1] for part in (f"{piece}_", Html("<wbr>"))] + parts[-1:]


def _figure(cell: str) -> list[str]:
    """A cell whose interval stands below its value, so that columns stay narrow."""
    value, bracket, interval = cell.partition(" [")
    return [value, el("small", f"[{interval}")] if bracket else [cell]


def document(title: str, *body: str) -> Html:
    """A whole page, in one file."""
    style = resources.files("recft.reports").joinpath("_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        Html(f"<style>{style}</style>"),
    )
    return Html(f"<!doctype html>\n{el('html', head, el('body', el('main', *body)), lang='en')}\n")
