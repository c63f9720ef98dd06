"""The tables of what moves a score: the strongest parts first, and only so many."""

from __future__ import annotations

from typing import Any

from recft.reports.reasons import MOST, reasons, strongest


def why(*effects: float, kind: str = "word") -> dict[str, Any]:
    parts = [{"kind": kind, "text": f"w{number}", "effect": effect} for number, effect in enumerate(effects)]
    return {"method": "leave-one-out", "effect": "whole - rest", "parts": parts}


def test_the_strongest_come_first_whatever_their_sign() -> None:
    found = strongest(why(0.1, -0.3, 0.0, 0.2), "word")
    assert [part["text"] for part in found] == ["w1", "w3", "w0"]
    assert strongest(why(0.1), "item") == []
    assert len(strongest(why(*([1.0] * 20)), "word")) == MOST


def test_places_without_reasons_have_no_table() -> None:
    places = [{"rank": 1, "item": "a", "title": "红色 🎒"}, {"rank": 2, "item": "b", "explanation": why(-0.25)}]
    (sheet,) = reasons(places)
    assert sheet.title == "why 2. b"
    assert list(sheet.rows) == [("-0.2500", "word", "w0")]
    assert list(sheet.notes) == ["leave-one-out: whole - rest"]
