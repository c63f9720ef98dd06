"""Rules for reading text as words, for every language and without being told which.

Two texts that look the same to a shopper are to be the same here: full-width forms, ligatures and letter case
fold together (NFKC and casefold), invisible characters go, whitespace collapses. Chinese, Japanese and Korean
are written without spaces between words (or with particles glued on), so a run of such characters becomes its
overlapping pairs, which needs no dictionary (Nie, Gao, Zhang, Zhou: On the use of words and n-grams for Chinese
information retrieval, 2000). Emoji and other symbols part words and are no words themselves.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

__all__ = ["PAIRED", "first_words", "normalise", "runs_of", "words", "words_of_run"]

# Han with its iteration marks and numerals, Hiragana, Katakana, Bopomofo, Hangul. Punctuation that lies between
# them, such as the Katakana middle dot, is left out on purpose: it parts words.
PAIRED = (
    "\u1100-\u11ff\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa"
    "\u30fc-\u30ff\u3105-\u312f\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c"
    "\uac00-\ud7a3\ud7b0-\ud7fb\uf900-\ufaff\U00020000-\U000323af"
)

# Soft hyphen, zero-width space, word joiner, byte order mark, and the text and emoji variation selectors. The
# zero-width joiners stay: some scripts spell with them.
_INVISIBLE = dict.fromkeys((0x00AD, 0x200B, 0x2060, 0xFE0E, 0xFE0F, 0xFEFF))

# NFKC writes these out as letters, which would glue them to the name before them: Core™ as `coretm`.
_CHUNKS = re.compile(r"\S+")
_MARKS_OF_TRADE = {0x2120: " ", 0x2122: " "}
_RARE = re.compile(f"[{''.join(map(chr, [*_INVISIBLE, *_MARKS_OF_TRADE]))}]")


def normalise(text: str) -> str:
    r"""The text by which two texts are compared: NFKC, casefolded, one space where there was any whitespace.

    >>> normalise("  ＵＳＢ－Ｃ\u3000Straße ")
    'usb-c strasse'
    """
    folded = unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).casefold()
    # Casefolding can undo a composition, hence once more.
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def words(text: str) -> list[str]:
    """The words of a text in order, lower case; runs of Han, Kana or Hangul as pairs of characters.

    A run of one character is that character. Letters, digits and their combining marks make words; all else,
    emoji included, parts them.

    >>> words("Café-Maschine ２０００Ｗ ☕ 红色连衣裙 L码")
    ['café', 'maschine', '2000w', '红色', '色连', '连衣', '衣裙', 'l', '码']
    """
    found: list[str] = []
    for run in _pattern().findall(normalise(text.translate(_MARKS_OF_TRADE))):
        found += words_of_run(run)
    return found


def words_of_run(run: str) -> list[str]:
    """The words of a run of letters: itself, or the pairs of its characters where these are not parted by spaces."""
    if len(run) > 1 and _pairs().match(run):
        return [run[i : i + 2] for i in range(len(run) - 1)]
    return [run]


def runs_of(texts: Sequence[str]) -> list[str]:
    r"""The runs of letters of all texts, a line break after each text: what `words` reads, of many at once.

    >>> runs_of(["Red\nCHAIR", "", "红色连衣裙"])
    ['red', 'chair', '\n', '\n', '红色连衣裙', '\n']
    """
    # A line break takes part in no folding, and no folding makes one.
    whole = "".join(text.replace("\n", " ") + "\n" for text in texts)
    if not whole.isascii() and _RARE.search(whole):
        whole = whole.translate(_MARKS_OF_TRADE | _INVISIBLE)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", whole).casefold())
    return _pattern().findall(folded)


def first_words(text: str, n: int) -> str:
    """The start of a text that has at most `n` words, as it is written; the whole text where it has no more.

    >>> first_words("Very good! 红色连衣裙", 4)
    'Very good! 红色连'
    """
    left = n
    for chunk in _CHUNKS.finditer(text):
        count = len(words(chunk.group()))
        if count > left:
            start = _start(chunk.group(), left)
            return (text[: chunk.start()] + (start if words(start) else "")).rstrip()
        left -= count
    return text


def _start(chunk: str, n: int) -> str:
    """The longest start of a chunk without white space that has at most `n` words."""
    low, high = 0, n + 1
    while high < len(chunk) and len(words(chunk[:high])) <= n:
        low, high = high, 2 * high
    high = min(high, len(chunk))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(words(chunk[:middle])) <= n else (low, middle)
    return chunk[:low]


@functools.cache
def _pattern() -> re.Pattern[str]:
    """A run of letters, or a line break; made at first use, because it asks for every character's category."""
    # `\w` leaves out combining marks, without which Hindi or Thai words fall to pieces.
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x1F000))
        if unicodedata.category(character) in ("Mn", "Mc") and not _pairs().match(character)
    )
    letter = rf"[^\W_{PAIRED}]"
    # A run of plain letters that a plain sign ends is one whatever the longer rules say, and is found much faster.
    plain = r"[a-z0-9]+(?=[\x00-/:-@\[-`{-\x7f])"
    return re.compile(rf"\n|{plain}|[{PAIRED}]+|{letter}+(?:[{marks}]+{letter}*)*")


@functools.cache
def _pairs() -> re.Pattern[str]:
    return re.compile(f"[{PAIRED}]")
