"""Small drawings for a page, as inline SVG: no library, no script, colours from the page's style.

They are drawn for a width of 360 pixels, so that their letters can be read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recft.reports._html import Html, el, join
from recft.reports.sheets import number

__all__ = ["Dot", "bar", "dots", "reliability", "ticks"]

_WIDTH, _EDGE, _ROW = 360, 10, 34
_INSET = 22  # so that a number under the last line of the grid is whole
_BAR_WIDTH = 120
_SQUARE, _LEFT = 300, 44
_LONGEST_NAME = 34


@dataclass(frozen=True)
class Dot:
    """One value with its interval.

    Attributes:
        name: whose it is.
        value: where the dot stands.
        interval: its two ends, or None.
        marked: whether it is the row that a page is about.
    """

    name: str
    value: float
    interval: Sequence[float] | None = None
    marked: bool = False


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About so many round numbers within a range.

    >>> ticks(0.83, 0.91)
    [0.84, 0.86, 0.88, 0.9]
    """
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low] if math.isfinite(low) else []
    rough = span / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def dots(rows: Sequence[Dot], title: str) -> Html:
    """Values as dots with their intervals as lines, one below the other on a common scale; names stand above lines."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return Html()
    ends = [end for row in rows for end in (row.value, *(row.interval or ()))]
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad

    def x(value: float) -> str:
        return _n(_INSET + (value - low) / (high - low) * (_WIDTH - 2 * _INSET))

    bottom = _ROW * len(rows) + 6
    drawn = []
    for tick in ticks(low, high):
        drawn.append(el("line", x1=x(tick), x2=x(tick), y1=4, y2=bottom, class_="grid"))
        drawn.append(el("text", f"{tick:g}", x=x(tick), y=bottom + 16, text_anchor="middle", class_="axis"))
    for place, row in enumerate(rows):
        middle, kind = _ROW * place + 27, "own" if row.marked else "other"
        drawn.append(el("text", _short(row.name), x=_EDGE, y=middle - 11, class_=f"name {kind}"))
        drawn.append(
            el("text", number(float(row.value)), x=_WIDTH - _EDGE, y=middle - 11, text_anchor="end", class_="name")
        )
        if row.interval:
            drawn.append(
                el("line", x1=x(row.interval[0]), x2=x(row.interval[1]), y1=middle, y2=middle, class_=f"range {kind}")
            )
        drawn.append(el("circle", cx=x(row.value), cy=middle, r=5, class_=f"dot {kind}"))
    return _picture(drawn, _WIDTH, bottom + 24, title)


def bar(value: float | None, mark: float | None, highest: float) -> Html:
    """A bar for a value with a mark for another, both from zero; words beside it say the same."""
    if value is None or not math.isfinite(value) or highest <= 0:
        return Html()
    drawn = [
        el("rect", x=0, y=3, width=_BAR_WIDTH, height=10, class_="empty"),
        el("rect", x=0, y=3, width=_n(max(value, 0) / highest * _BAR_WIDTH), height=10, class_="filled"),
    ]
    if mark is not None and math.isfinite(mark):
        at = _n(max(mark, 0) / highest * (_BAR_WIDTH - 2) + 1)
        drawn.append(el("line", x1=at, x2=at, y1=0, y2=16, class_="mark"))
    return el(
        "svg", *drawn, viewBox=f"0 0 {_BAR_WIDTH} 16", width=_BAR_WIDTH, height=16, class_="bar", aria_hidden="true"
    )


def reliability(rows: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> Html:
    """How often what was given a probability came true: a point a bin, by row; a larger point holds more pairs."""
    lines = {name: [part for part in bins if part.get("n")] for name, bins in rows.items()}
    lines = {name: bins for name, bins in lines.items() if bins}
    if not lines:
        return Html()
    most = max(part["n"] for bins in lines.values() for part in bins)
    drawn = _square()
    for place, (name, bins) in enumerate(lines.items()):
        points = [(_x(part["confidence"]), _y(part["share"]), 2.5 + 5 * math.sqrt(part["n"] / most)) for part in bins]
        kind = ("own", "other", "third")[place % 3]
        way = Html("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y, _ in points))
        drawn.append(el("path", d=way, class_=f"way {kind}"))
        drawn += [_point(x, y, size, kind) for x, y, size in points]
        drawn.append(_point(_LEFT + 14, 18 + 20 * place, 5, kind))
        drawn.append(el("text", _short(name), x=_LEFT + 26, y=22 + 20 * place, class_="name"))
    return _picture(drawn, _WIDTH, _SQUARE + 46, title)


def _square() -> list[Html]:
    """The empty plot: both axes from 0 to 1, and the diagonal on which a calibrated model lies."""
    drawn = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(el("line", x1=_n(_x(tick)), x2=_n(_x(tick)), y1=_n(_y(0)), y2=_n(_y(1)), class_="grid"))
        drawn.append(el("line", x1=_n(_x(0)), x2=_n(_x(1)), y1=_n(_y(tick)), y2=_n(_y(tick)), class_="grid"))
        drawn.append(el("text", f"{tick:g}", x=_n(_x(tick)), y=_n(_y(0) + 16), text_anchor="middle", class_="axis"))
        drawn.append(el("text", f"{tick:g}", x=_LEFT - 6, y=_n(_y(tick) + 4), text_anchor="end", class_="axis"))
    drawn.append(el("line", x1=_n(_x(0)), y1=_n(_y(0)), x2=_n(_x(1)), y2=_n(_y(1)), class_="diagonal"))
    drawn.append(
        el("text", "predicted probability", x=_n(_x(0.5)), y=_SQUARE + 40, text_anchor="middle", class_="axis")
    )
    turned = f"rotate(-90 12 {_n(_y(0.5))})"
    drawn.append(
        el("text", "share that came true", x=12, y=_n(_y(0.5)), text_anchor="middle", class_="axis", transform=turned)
    )
    return drawn


def _point(x: float, y: float, size: float, kind: str) -> Html:
    """A circle, a square or a diamond: rows are told apart without colour."""
    if kind == "own":
        return el("circle", cx=_n(x), cy=_n(y), r=_n(size), class_=f"dot {kind}")
    turn = f"rotate(45 {_n(x)} {_n(y)})" if kind == "third" else None
    side = size * 1.8
    return el(
        "rect",
        x=_n(x - side / 2),
        y=_n(y - side / 2),
        width=_n(side),
        height=_n(side),
        transform=turn,
        class_=f"dot {kind}",
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _EDGE)


def _y(share: float) -> float:
    return _SQUARE + 4 - share * (_SQUARE - 4)


def _picture(drawn: Sequence[Html], width: int, height: float, title: str) -> Html:
    return el(
        "svg",
        el("title", title),
        join(drawn),
        viewBox=f"0 0 {width} {_n(height)}",
        width=width,
        height=_n(height),
        role="img",
        class_="plot",
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
