"""Another word for the same thing: `sofa` for `couch`, 手机套 for 手机壳, from a list and from a shop's own file.

Words are found whole, whatever their case, in Chinese the longest known one first. What stands in for a word takes
its case: `Sofa` becomes `Couch`.
"""

from __future__ import annotations

import numpy as np

from recft.perturbations._base import chosen
from recft.perturbations._words import Words, built_in

__all__ = ["MEMBER"]


class Synonyms:
    """The perturbation's object; see the module."""

    summary = "another word for the same thing, from a built-in list and the shop's own"

    def apply(self, text: str, share: float, rng: np.random.Generator, words: Words | None = None, /) -> str:
        """The text with some of its known words replaced; the share is of the known words."""
        found = (words or built_in()).found_in(text)
        for number in reversed(chosen(len(found), share, rng)):
            start, end, others = found[number]
            other = others[int(rng.integers(len(others)))]
            text = text[:start] + _cased(other, text[start:end]) + text[end:]
        return text


def _cased(other: str, word: str) -> str:
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[0].isupper() else other


MEMBER = Synonyms()
