"""Where words stand, checked by hand; and that a text falls into its clusters and back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data.spans import clusters, is_paired, spans
from recft.data.text import words

FAMILY = "👨\u200d👩\u200d👧"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("  ,; ", []),
        ("red chair", ["red", "chair"]),
        ("USB-C cable 0.75L, men's A&B", ["USB-C", "cable", "0.75L", "men's", "A&B"]),
        ("- end- -start C++", ["end", "start", "C"]),
        ("红色连衣裙", ["红色", "连衣", "裙"]),
        ("红色，连衣裙XL码", ["红色", "连衣", "裙", "XL", "码"]),
        ("ＵＳＢ　打印机", ["ＵＳＢ", "打印", "机"]),
        ("한국어 かな", ["한국", "어", "かな"]),
        (f"gift {FAMILY}👍🏽1️⃣🇨🇳🇩🇪☕", ["gift", FAMILY, "👍🏽", "1️⃣", "🇨🇳", "🇩🇪", "☕"]),
        ("cafe\u0301 हिन्दी", ["cafe\u0301", "हिन्दी"]),
        ("Core™ 90°", ["Core", "90"]),
    ],
)
def test_words_stand_where_a_reader_sees_them(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in spans(text)] == found


@given(st.text(max_size=40))
def test_clusters_are_the_text_and_words_are_made_of_whole_ones(text: str) -> None:
    parts = clusters(text)
    assert "".join(parts) == text
    edges = {0, *itertools.accumulate(map(len, parts))}
    found = spans(text)
    assert all(start < end for start, end in found)
    assert all(one[1] <= next_[0] for one, next_ in itertools.pairwise(found))
    assert {edge for span in found for edge in span} <= edges


@given(st.text("abc 红色连衣裙,0", max_size=30))
def test_nothing_that_search_reads_lies_outside_the_words(text: str) -> None:
    inside = "".join(text[start:end] for start, end in spans(text))
    assert {character for word in words(text) for character in word} == set(inside)


def test_scripts_without_spaces_are_known() -> None:
    assert [is_paired(character) for character in ("红", "か", "カ", "한", "葛\U000e0100", "a", "１", "☕", "م")] == [
        *[True] * 5,
        *[False] * 4,
    ]
