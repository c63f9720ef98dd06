"""Why an item stands where it does: the parts of a query or a history that move its score most, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recft.reports.tables import Sheet

__all__ = ["MOST", "reasons", "strongest"]

MOST = 5
"""Words, and items, shown of a place."""


def reasons(places: Sequence[Mapping[str, Any]]) -> list[Sheet]:
    """A table for each place that has an explanation: its strongest items and words.

    Args:
        places: as `recommend` gives them.
    """
    return [_sheet(place) for place in places if "explanation" in place]


def strongest(explanation: Mapping[str, Any], kind: str, most: int = MOST) -> list[Mapping[str, Any]]:
    """The parts of a kind, `word` or `item`, that move the score at all, the strongest first.

    >>> parts = [{"kind": "word", "text": text, "effect": effect} for text, effect in (("a", 0.1), ("b", -0.2))]
    >>> [part["text"] for part in strongest({"parts": [*parts, {"kind": "word", "text": "c", "effect": 0}]}, "word")]
    ['b', 'a']
    """
    parts = [part for part in explanation["parts"] if part["kind"] == kind and part["effect"]]
    return sorted(parts, key=lambda part: -abs(part["effect"]))[:most]


def _sheet(place: Mapping[str, Any]) -> Sheet:
    explanation = place["explanation"]
    rows = [
        (f"{part['effect']:+.4f}", kind, _named(part))
        for kind in ("item", "word")
        for part in strongest(explanation, kind)
    ]
    return Sheet(
        columns=("effect", "part", ""),
        rows=rows or [("", "", "no part moves the score")],
        title=f"why {place['rank']}. {place.get('title') or place['item']}",
        notes=[f"{explanation['method']}: {explanation['effect']}"],
        left=3,
    )


def _named(part: Mapping[str, Any]) -> str:
    if part["kind"] == "item":
        return f"{part['title']} ({part['item']})"
    return f"{part['text']} (in {part['title']})" if "item" in part else str(part["text"])
