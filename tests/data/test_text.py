"""Text rules: what looks the same is the same, and every script falls into words."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data import text as module
from recft.data.text import first_words, normalise, runs_of, words, words_of_run


def test_doctests() -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Two\t words\n", "two words"),
        ("ＡＢＣ　１２３", "abc 123"),
        ("ﾊﾟｿｺﾝ", "パソコン"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ﬁlter", "filter"),
        ("Cafe\u0301", "café"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("❤\ufe0f", "❤"),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WH-1000XM4 headphones", ["wh", "1000xm4", "headphones"]),
        ("snake_case", ["snake", "case"]),
        ("红色连衣裙", ["红色", "色连", "连衣", "衣裙"]),
        ("红", ["红"]),
        ("红 色", ["红", "色"]),
        ("红色T恤100%纯棉", ["红色", "t", "恤", "100", "纯棉"]),
        ("红色，连衣裙。", ["红色", "连衣", "衣裙"]),
        ("ワイヤレス・マウス", ["ワイ", "イヤ", "ヤレ", "レス", "マウ", "ウス"]),
        ("ﾜｲﾔ", ["ワイ", "イヤ"]),
        ("무선 마우스", ["무선", "마우", "우스"]),
        ("ㄅㄆㄇ", ["ㄅㄆ", "ㄆㄇ"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("iPhone手机壳", ["iphone", "手机", "机壳"]),
        ("ｉＰｈｏｎｅ　１５　手机", ["iphone", "15", "手机"]),
        ("cup☕mug", ["cup", "mug"]),
        ("👩‍👩‍👧 🇨🇳 👍🏽", []),
        ("1️⃣ 礼物🎁盒", ["1", "礼物", "盒"]),
        ("Intel® Core™ i5", ["intel", "core", "i5"]),
        ("हिन्दी", ["हिन्दी"]),
        ("кофе Ёлка", ["кофе", "ёлка"]),
        ("", []),
        (" \u3000 ", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_words_are_normal_and_hold_no_spaces(text: str) -> None:
    for word in words(text):
        assert word
        assert not any(character.isspace() for character in word)
        assert any(character.isalnum() for character in word) or word in normalise(text)


@given(st.text(alphabet="红色连衣裙手机壳", min_size=2))
def test_a_han_run_has_one_pair_less_than_characters(text: str) -> None:
    assert "".join(word[0] for word in words(text)) + text[-1] == text


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E)))
def test_full_width_reads_as_half_width(text: str) -> None:
    assert words("".join(chr(ord(character) + 0xFEE0) for character in text)) == words(text)


@pytest.mark.parametrize(
    ("text", "n", "start"),
    [
        ("", 3, ""),
        ("one two three", 2, "one two"),
        ("one  two, three!", 3, "one  two, three!"),
        ("one-two", 1, "one-"),
        ("one (two)", 1, "one"),
        ("红色连衣裙", 2, "红色连"),
        ("好 红色连衣裙", 1, "好"),
        ("👗 dress", 0, "👗"),
        ("字" * 1_000_000, 3, "字字字字"),
        ("x" * 1_000_000 + " y", 1, "x" * 1_000_000),
    ],
)
def test_the_first_words_of_a_text(text: str, n: int, start: str) -> None:
    assert first_words(text, n) == start


@given(st.text(max_size=60), st.integers(0, 8))
def test_first_words_are_a_start_within_the_budget(text: str, n: int) -> None:
    start = first_words(text, n)
    assert text.startswith(start)
    assert len(words(start)) <= n
    if len(words(text)) <= n:
        assert start == text


@given(
    st.lists(
        st.text(st.sampled_from("aZ9_ \n\r\t\u2028\x1c™®ﬁ\u0301éß\u200d\ufe0f\u00ad红色Ａ２ひゞカｶﾞ한กำ☕-·")),
        max_size=5,
    )
)
def test_runs_of_many_texts_are_the_words_of_each(texts: list[str]) -> None:
    found: list[list[str]] = [[]]
    for run in runs_of(texts):
        if run == "\n":
            found.append([])
        else:
            found[-1] += words_of_run(run)
    assert found[:-1] == [words(text) for text in texts]
