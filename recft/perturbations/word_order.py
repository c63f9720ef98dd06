"""Words in another order: some change places with the next one.

Only words with nothing but space between them do, never over a comma or a colon; the space stays where it was. A
word of Chinese is a pair of characters of a run: 红色连衣裙 may become 连衣红色裙.
"""

from __future__ import annotations

import numpy as np

from recft.data.spans import spans
from recft.perturbations._base import chosen
from recft.perturbations._words import Words

__all__ = ["MEMBER"]


class WordOrder:
    """The perturbation's object; see the module."""

    summary = "neighbouring words change places"

    def apply(self, text: str, share: float, rng: np.random.Generator, _words: Words | None = None, /) -> str:
        """The text with some neighbours swapped; every swap touches two words, and no word is swapped twice."""
        places = spans(text)
        words = [text[start:end] for start, end in places]
        # Pairs from the first word on, or from the second: every neighbourhood can be met.
        shift = int(rng.integers(2)) if len(words) > 2 else 0
        pairs = [
            place
            for place in range(shift, len(words) - 1, 2)
            if words[place] != words[place + 1] and not text[places[place][1] : places[place + 1][0]].strip()
        ]
        for number in chosen(len(pairs), share, rng):
            place = pairs[number]
            words[place], words[place + 1] = words[place + 1], words[place]
        parts, last = [], 0
        for (start, end), word in zip(places, words, strict=True):
            parts += [text[last:start], word]
            last = end
        return "".join(parts) + text[last:]


MEMBER = WordOrder()
