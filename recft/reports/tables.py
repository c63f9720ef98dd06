"""What verbs report, as sheets of text: one for people in a terminal, the same as Markdown.

A sheet is data. `rich_sheet` lays it out for a terminal, `plain` for a pipe and `markdown` for a README; all count the
width of Chinese characters as two, so that columns stand straight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "Sheet",
    "certificate",
    "differences",
    "facts",
    "gates",
    "markdown",
    "number",
    "plain",
    "protocol",
    "ranking",
    "rich_sheet",
    "scores",
    "signed",
    "with_interval",
]

_FACT_DEPTH = 2


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


def scores(report: Mapping[str, Any]) -> Sheet:
    """The rows of a report (base, tuned, baselines), a column a metric, with 95% intervals and the protocol."""
    rows = {"base": report["base"], "tuned": report["tuned"], **report.get("baselines", {})}
    metrics = list(report["tuned"])
    intervals = report.get("ci", {})
    return Sheet(
        columns=("", *metrics),
        rows=[
            (
                name,
                *(with_interval(row.get(metric), intervals.get(name, {}).get(metric)) for metric in metrics),
            )
            for name, row in rows.items()
        ],
        title=f"{report.get('name', 'run')}: {report.get('protocol', {}).get('split', '')} split".strip(),
        notes=[protocol(report.get("protocol", {}))],
    )


def differences(paired: Mapping[str, Mapping[str, Any]]) -> Sheet:
    """Paired differences with 95% intervals, a row a pair; a star marks an interval clear of zero."""
    metrics = list(dict.fromkeys(metric for row in paired.values() for metric in row))
    return Sheet(
        columns=("paired difference", *metrics),
        rows=[(name, *(_difference(row.get(metric)) for metric in metrics)) for name, row in paired.items()],
        notes=["* the 95% interval is clear of zero"],
    )


def _difference(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("mean") is None:
        return "-"
    interval = entry.get("ci")
    if not interval:
        return signed(entry["mean"])
    clear = " *" if interval[0] > 0 or interval[1] < 0 else ""
    return f"{signed(entry['mean'])} [{signed(interval[0])}, {signed(interval[1])}]{clear}"


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A score with its interval, where there is one."""
    return f"{number(value)} [{number(interval[0])}, {number(interval[1])}]" if interval else number(value)


def protocol(facts: Mapping[str, Any]) -> str:
    """What a figure means, in one line: the split, how many, among which candidates, what is masked or sampled."""
    pairs = facts.get("counted") == "pairs"
    why = "users with one class, left out of gauc" if pairs else "without a relevant candidate left out"
    left_out = f" ({number(facts['left_out'])} {why})" if facts.get("left_out") else ""
    parts = [
        f"{facts.get('split')} split by {facts.get('split_by')}",
        f"n = {number(facts.get('n'))} {facts.get('counted', 'records')}{left_out}",
    ]
    parts += [f"a subset: {facts['subset']}"] if facts.get("subset") else []
    if not pairs:
        which, count = facts.get("candidates"), facts.get("n_candidates")
        parts.append(f"candidates: {number(count)} ({which})" if count else f"candidates: {which}")
        parts.append("history masked" if facts.get("history_masked") else "history not masked")
        parts += [f"{facts['gain']} gain"] if facts.get("gain") else []
        parts += [f"ties: {facts['ties']}"] if facts.get("ties") else []
    parts.append("sampled negatives" if facts.get("sampled") else "nothing sampled")
    parts += [str(facts["interval"])] if facts.get("interval") else []
    return "; ".join(parts)


def gates(checked: Iterable[Mapping[str, Any]]) -> Sheet:
    """One line a gate: PASS or FAIL, and what was compared."""
    return Sheet(
        columns=("gate", ""),
        rows=[("PASS" if gate["passed"] else "FAIL", str(gate["line"])) for gate in checked],
        left=2,
    )


def ranking(places: Sequence[Mapping[str, Any]], title: str = "") -> Sheet:
    """A ranked list: place, item, score, title."""
    return Sheet(
        columns=("rank", "item", "score", "title"),
        rows=[
            (
                str(place.get("rank", number_)),
                str(place["item"]),
                number(float(place["score"])),
                str(place.get("title", "")),
            )
            for number_, place in enumerate(places, start=1)
        ],
        title=title,
        left=4,
    )


def certificate(found: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> Sheet:
    """An export's certificate: what was compared, how far apart, and what is allowed.

    Args:
        found: `certificate` of recft-export.json.
        weights: its `onto`: which base weights the adapter was merged into, and why.
    """
    allowed, k_bit, onto = found.get("tolerances", {}), found.get("k_bit", {}), weights or {}
    difference, agreement = found.get("largest_score_difference"), found.get("top_k_agreement")
    # A float32 artefact is judged by its scores, one in a smaller dtype by 1% of the adapter's own effect.
    exact, one_percent = found.get("dtype") == "float32", 0.01 * (found.get("effect_kl") or 0.0)
    rows = [
        ("engine", f"{found.get('engine', '?')} {found.get('version', '')}".strip(), ""),
        ("weights", f"{found.get('dtype', '')} {onto.get('weights', '')}".strip(), onto.get("reason", "")),
        ("rows compared", number(found.get("rows")), ""),
        ("largest score difference", number(difference), _limit("<=", allowed.get("score") if exact else None)),
        ("scores' distance, KL", number(found.get("kl")), "" if exact else _limit("<=", one_percent)),
        ("first places that agree", number(agreement), _limit(">=", allowed.get("top_k_agreement"))),
        ("change with the batch size", number(found.get("batch_change")), ""),
    ]
    metric, both = found.get("metric"), found.get("metrics", {})
    if metric:
        before, after = (number(both.get(side, {}).get(metric)) for side in ("reference", "served"))
        rows.append((f"{metric}, tuned -> served", f"{before} -> {after}", _limit("change <=", allowed.get("metric"))))
    if k_bit:
        rows.append(("from the k-bit model, KL", number(k_bit.get("kl")), _limit("<=", k_bit.get("bound"))))
        rows.append(("the adapter's own effect, KL", number(k_bit.get("effect_kl")), ""))
    rows.append(("verdict", str(found.get("verdict", "?")), "; ".join(found.get("wrong", ()))))
    shown = [row for row in rows if row[1] not in ("", "-")]
    return Sheet(columns=("certificate", "", "allowed"), rows=shown, left=3)


def _limit(relation: str, bound: float | None) -> str:
    return "" if bound is None else f"{relation} {bound:g}"


def facts(title: str, values: Mapping[str, Any], notes: Sequence[str] = ()) -> Sheet:
    """Names and values, nested ones with dotted names."""
    return Sheet(columns=(title, ""), rows=list(_flat(values, "")), notes=notes, left=2)


def _flat(values: Mapping[str, Any], prefix: str, depth: int = 0) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and depth < _FACT_DEPTH:
            yield from _flat(value, f"{name}.", depth + 1)
        elif isinstance(value, Mapping):
            yield name, ", ".join(f"{inner}: {number(found)}" for inner, found in value.items())
        elif key.endswith("_bytes") and isinstance(value, int):
            yield name, f"{value / 2**20:,.0f} MiB"
        else:
            yield name, number(value)


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
