"""Slips of the finger: in Latin words and in Chinese.

A touched Latin word has two letters swapped, one left out, doubled, or typed as its neighbour on the keyboard; in a
text with Chinese it may be typed in full width instead. Its first letter stays. Of Chinese the share is of
characters: one is left out, swapped with the next, or typed as one of the same sound or shape. Words with a digit,
words of other scripts, emoji and all that stands between words stay as they are.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import numpy as np

from recft.data.spans import clusters, spans
from recft.perturbations._base import chosen
from recft.perturbations._chinese import mistaken
from recft.perturbations._width import NARROW, WIDE
from recft.perturbations._words import Words

__all__ = ["MEMBER"]

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHORTEST = 3
"""Letters of a Latin word that is touched: `TV` and `L` are more like signs."""

Slip = Callable[[list[str], int, np.random.Generator], list[str]]


class Typos:
    """The perturbation's object; see the module."""

    summary = "slips of the finger: swapped, lost, doubled and neighbouring letters; Chinese by sound and shape"

    def apply(self, text: str, share: float, rng: np.random.Generator, _words: Words | None = None, /) -> str:
        """The text with slips in some of its words."""
        units = _units(text)
        chinese = any(kind == "han" for _, kind in units)
        places = [place for place, (_, kind) in enumerate(units) if kind]
        parts = [part for part, _ in units]
        for number in chosen(len(places), share, rng):
            place = places[number]
            if units[place][1] == "latin":
                parts[place] = _latin(parts[place], chinese, rng)
            else:
                _han(parts, units, place, rng)
        return "".join(parts)


def _units(text: str) -> list[tuple[str, str]]:
    """The text in parts, each with what it is: a `latin` word, a `han` character, or nothing that is touched."""
    units, last = [], 0
    for start, end in spans(text):
        units.append((text[last:start], ""))
        characters = clusters(text[start:end])
        if all(len(character) == 1 and _is_han(character) for character in characters):
            units += [(character, "han") for character in characters]
        else:
            units.append((text[start:end], "latin" if _is_latin(characters) else ""))
        last = end
    return [unit for unit in (*units, (text[last:], "")) if unit[0]]


def _is_han(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK UNIFIED")


def _is_latin(characters: list[str]) -> bool:
    letters = [character for character in characters if character[0].isalpha()]
    latin = all(unicodedata.name(letter[0], "").startswith(("LATIN", "FULLWIDTH LATIN")) for letter in letters)
    return latin and len(letters) >= _SHORTEST and not any(character[0].isdigit() for character in characters)


def _latin(word: str, chinese: bool, rng: np.random.Generator) -> str:
    """The word with one slip behind its first letter; the slip and its place are drawn until something changes."""
    slips: list[Slip] = [_swap, _drop, _double, _neighbour, *([_wide] if chinese else [])]
    letters = clusters(word)
    for number in rng.permutation(len(slips)):
        for place in rng.permutation(np.arange(1, len(letters))):
            slipped = "".join(slips[number](letters, int(place), rng))
            if slipped != word:
                return slipped
    return word


def _swap(letters: list[str], place: int, _rng: np.random.Generator) -> list[str]:
    return [*letters[:place], *letters[place + 1 : place + 2], letters[place], *letters[place + 2 :]]


def _drop(letters: list[str], place: int, _rng: np.random.Generator) -> list[str]:
    return letters[:place] + letters[place + 1 :]


def _double(letters: list[str], place: int, _rng: np.random.Generator) -> list[str]:
    return letters[: place + 1] + letters[place:] if letters[place][0].isalpha() else letters


def _neighbour(letters: list[str], place: int, rng: np.random.Generator) -> list[str]:
    near = _neighbours(letters[place].lower())
    if not near:
        return letters
    key = near[int(rng.integers(len(near)))]
    return [*letters[:place], key.upper() if letters[place].isupper() else key, *letters[place + 1 :]]


def _neighbours(letter: str) -> str:
    """The keys beside a letter's, and those that touch it above and below."""
    for height, row in enumerate(_ROWS):
        if len(letter) == 1 and (column := row.find(letter)) >= 0:
            above = _ROWS[height - 1][column : column + 2] if height else ""
            below = _ROWS[height + 1][max(column - 1, 0) : column + 1] if height + 1 < len(_ROWS) else ""
            return row[max(column - 1, 0) : column] + row[column + 1 : column + 2] + above + below
    return ""


def _wide(letters: list[str], _place: int, _rng: np.random.Generator) -> list[str]:
    """The whole word in the other width: a Chinese keyboard is in the one or the other."""
    word = "".join(letters)
    narrow = word.translate(NARROW)
    return [narrow if narrow != word else word.translate(WIDE)]


def _han(parts: list[str], units: list[tuple[str, str]], place: int, rng: np.random.Generator) -> None:
    """One slip at a Chinese character, in `parts`; the last one that is left is never left out."""
    slips = ["replace"] if mistaken().get(units[place][0]) else []
    following = place + 1 < len(units) and units[place + 1][1] == "han"
    if following and parts[place + 1] and parts[place] != parts[place + 1]:
        slips.append("swap")
    if sum(bool(part) and kind != "" for part, (_, kind) in zip(parts, units, strict=True)) > 1:
        slips.append("drop")
    slip = slips[int(rng.integers(len(slips)))] if slips else ""
    if slip == "swap":
        parts[place], parts[place + 1] = parts[place + 1], parts[place]
    elif slip == "drop":
        parts[place] = ""
    elif slip == "replace":
        others = mistaken()[units[place][0]]
        parts[place] = others[int(rng.integers(len(others)))]


MEMBER = Typos()
