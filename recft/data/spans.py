"""Where a text's words stand, in the text as it is written: for what cuts words out, moves or changes them.

`recft.data.text.words` reads a text for comparing; here nothing is folded, so that a text can be put together again.
A reader's character is a cluster: an emoji with its joiners and skin tone, a letter with its combining marks. No
word begins or ends within one (after Unicode Annex 29, of which the rules that shops' texts meet are kept).
"""

from __future__ import annotations

import functools
import re
import unicodedata

from recft.data.text import PAIRED

__all__ = ["Span", "clusters", "is_paired", "spans"]

Span = tuple[int, int]
"""Start and end of a part of a text, as in `text[start:end]`."""

_WITHIN = "-.'’&"
"""Between two letters these hold a word together: `USB-C`, `0.75L`, `men's`."""


def clusters(text: str) -> list[str]:
    r"""The characters as a reader counts them; joined they are the text.

    >>> clusters("né👍🏽 红")
    ['n', 'é', '👍🏽', ' ', '红']
    """
    return _clusters().findall(text)


def is_paired(cluster: str) -> bool:
    """Whether a character belongs to a script written without spaces: Han, Kana, Hangul.

    >>> is_paired("红"), is_paired("r")
    (True, False)
    """
    return bool(_paired().match(cluster))


def spans(text: str) -> list[Span]:
    """The words of a text in order, none over another; emoji are words, punctuation lies between.

    A run of Han, Kana or Hangul falls into pairs of characters, of which the last may be alone.

    >>> text = "USB-C 红色连衣裙 0.75L ☕"
    >>> [text[start:end] for start, end in spans(text)]
    ['USB-C', '红色', '连衣', '裙', '0.75L', '☕']
    """
    kinds = [(_kind(cluster), cluster) for cluster in clusters(text)]
    found: list[Span] = []
    start = place = 0
    open_kind = ""
    count = 0  # clusters in the open word
    for number, (kind, cluster) in enumerate(kinds):
        if kind == "" and open_kind == "letter" and cluster in _WITHIN:
            kind = "letter" if number + 1 < len(kinds) and kinds[number + 1][0] == "letter" else ""
        goes_on = kind == open_kind and (kind == "letter" or (kind == "paired" and count < 2))
        if not goes_on:
            if open_kind:
                found.append((start, place))
            start, open_kind, count = place, kind, 0
        count += 1
        place += len(cluster)
    if open_kind:
        found.append((start, place))
    return found


def _kind(cluster: str) -> str:
    """What a cluster is: `paired`, `letter` (or digit), `emoji`, or nothing that makes words."""
    if is_paired(cluster):
        return "paired"
    if _emoji().search(cluster):
        return "emoji"
    return "letter" if cluster[0].isalnum() else ""


@functools.cache
def _paired() -> re.Pattern[str]:
    return re.compile(f"[{PAIRED}]")


@functools.cache
def _emoji() -> re.Pattern[str]:
    # Keycaps are a digit with U+20E3; the letterlike signs below U+2190, such as the mark of trade, are no emoji.
    return re.compile("[\u20e3\u231a-\u23ff\u2600-\u27bf\u2b05-\u2b55\U0001f000-\U0001fbff]")


@functools.cache
def _clusters() -> re.Pattern[str]:
    """One character as a reader sees it; made at first use, because it asks for every character's category."""
    points = [point for point in range(0x300, 0x1F000) if unicodedata.category(chr(point))[0] == "M"]
    runs: list[list[int]] = []
    for point in points:
        if runs and runs[-1][1] == point - 1:
            runs[-1][1] = point
        else:
            runs.append([point, point])
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in runs)
    # Besides marks: the zero-width non-joiner, skin tones, the tags that spell flags, variants of Han characters,
    # and the vowels and finals of Hangul letters.
    extend = f"[{marks}\u200c\u1160-\u11ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\U000e0100-\U000e01ef]"
    flag = "[\U0001f1e6-\U0001f1ff]{2}"
    one = rf"(?:\r\n|{flag}|[\s\S]){extend}*"
    # A joiner glues the next character on, but no line.
    return re.compile(rf"{one}(?:\u200d(?![\r\n]){one})*\u200d*")
