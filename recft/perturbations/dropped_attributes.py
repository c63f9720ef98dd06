"""Less is said: parts of a text go, the first one stays.

A part ends at a comma, a semicolon, a bar or a line's end, Western or Chinese, and before a `name: value`. Numbers
such as `1,000`, times and addresses of pages are no parts. In a list of items a part may be an item.
"""

from __future__ import annotations

import re

import numpy as np

from recft.perturbations._base import chosen
from recft.perturbations._words import Words

__all__ = ["MEMBER"]

# A mark with the spaces about it (no comma between digits), or nothing before the name of a `name: value`.
_SEPARATOR = re.compile(
    r"\s*(?:(?<!\d),|,(?!\d)|[;|，；、\r\n])[\s,;|，；、]*"
    r"|(?<=[^\s,;|，；、:：])\s+(?=[^\W\d_][\w-]*(?:: |：))"
)


class DroppedAttributes:
    """The perturbation's object; see the module."""

    summary = "parts between commas and `name: value` parts are left out, never the first"

    def apply(self, text: str, share: float, rng: np.random.Generator, _words: Words | None = None, /) -> str:
        """The text without some of its parts; the share is of the parts after the first."""
        parts = _parts(text)
        gone = set(chosen(len(parts) - 1, share, rng)) if len(parts) > 1 else set()
        return "".join(part for place, part in enumerate(parts) if place - 1 not in gone)


def _parts(text: str) -> list[str]:
    """The parts, each with the separator before it; the first that says something is the first part's end."""
    parts, start = [], 0
    for match in _SEPARATOR.finditer(text):
        # A separator with nothing before it, or nothing behind it, parts nothing.
        if text[start : match.start()].strip(" ,;|，；、\r\n") and text[match.end() :].strip():
            parts.append(text[start : match.start()])
            start = match.start()
    return [*parts, text[start:]]


MEMBER = DroppedAttributes()
