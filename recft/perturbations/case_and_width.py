"""The same letters in another dress: ALL CAPITALS, no capitals, full-width ＬＥＴＴＥＲＳ, other commas.

Nothing changes for a reader who folds case and width (`recft.data.text.normalise`); a model's tokenizer may not.
"""

from __future__ import annotations

import numpy as np

from recft.data.spans import spans
from recft.data.text import normalise
from recft.perturbations._base import chosen
from recft.perturbations._width import NARROW, WIDE
from recft.perturbations._words import Words

__all__ = ["MEMBER"]


class CaseAndWidth:
    """The perturbation's object; see the module."""

    summary = "letters in another case or width; reads the same"

    def apply(self, text: str, share: float, rng: np.random.Generator, _words: Words | None = None, /) -> str:
        """The text with some of its words in another case or width; words with a digit stay as they are."""
        places = [(start, end) for start, end in spans(text) if _dresses(text[start:end])]
        for number in reversed(chosen(len(places), share, rng)):
            start, end = places[number]
            dresses = _dresses(text[start:end])
            text = text[:start] + dresses[int(rng.integers(len(dresses)))] + text[end:]
        return text


def _dresses(word: str) -> list[str]:
    """Every other form of a word that reads the same."""
    if any(character.isdigit() for character in word):
        return []
    forms = (word.upper(), word.lower(), word.capitalize(), word.translate(WIDE), word.translate(NARROW))
    same = normalise(word)
    return [form for form in dict.fromkeys(forms) if form != word and normalise(form) == same]


MEMBER = CaseAndWidth()
