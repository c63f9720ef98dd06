"""Each way of spoiling a text, on examples checked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.data.spans import clusters
from recft.data.text import normalise
from recft.errors import DataError
from recft.perturbations._chinese import mistaken
from recft.perturbations._words import Words, built_in, parse_words, read_words


def outcomes(name: str, text: str, share: float = 1.0, words: Words | None = None, n: int = 300) -> set[str]:
    """Everything that comes out of a text over many seeds."""
    member = registry.load("recft.perturbations", name)
    return {member.apply(text, share, np.random.default_rng(seed), words) for seed in range(n)}


def test_a_latin_word_has_one_slip_behind_its_first_letter() -> None:
    found = outcomes("typos", "Cat")
    swapped, lost, doubled = {"Cta"}, {"Ct", "Ca"}, {"Caat", "Catt"}
    # Beside, above and below a: s, q, w, z; beside and below t: r, y, f, g.
    near = {"Cst", "Cqt", "Cwt", "Czt", "Car", "Cay", "Caf", "Cag"}
    assert found == swapped | lost | doubled | near


def test_short_words_are_left_alone_and_equal_letters_are_not_swapped() -> None:
    assert outcomes("typos", "TV XL at") == {"TV XL at"}
    assert "aaa" not in outcomes("typos", "aaa")


def test_a_letter_keeps_its_marks() -> None:
    for spoilt in outcomes("typos", "cafe\u0301s"):
        assert all(cluster.isalpha() or cluster == "e\u0301" for cluster in clusters(spoilt))


def test_a_chinese_word_loses_swaps_or_mistakes_characters() -> None:
    found = outcomes("typos", "墨盒", 0.5)
    assert {"盒", "墨"} <= found  # left out
    assert "盒墨" in found  # swapped
    assert {"末盒", "默盒", "墨合", "墨盆"} <= found  # of the same sound, and alike in shape
    assert "" not in found
    # On average one of the two characters is touched, and never more than both.
    assert {len(word) for word in found} == {1, 2}


def test_a_single_chinese_character_is_mistaken_but_never_left_out() -> None:
    assert outcomes("typos", "红") == set(mistaken()["红"])
    assert outcomes("typos", "龘") == {"龘"}


def test_latin_beside_chinese_may_be_typed_in_full_width() -> None:
    assert "ｉＰａｄ" in {spoilt.split()[0] for spoilt in outcomes("typos", "iPad 龘", 0.5)}
    assert not any("ａ" in spoilt for spoilt in outcomes("typos", "iPad"))
    assert "iPad 龘" in outcomes("typos", "ｉＰａｄ 龘", 0.5)


def test_kana_and_hangul_have_no_slips() -> None:
    assert outcomes("typos", "かなカナ 한국어") == {"かなカナ 한국어"}


def test_the_table_of_mistakes_is_of_single_chinese_characters() -> None:
    for character, others in mistaken().items():
        assert len(character) == 1 and character not in others
        assert all("\u4e00" <= other <= "\u9fff" for other in character + others)
        assert all(character in mistaken()[other] for other in others)


def test_neighbours_change_places() -> None:
    assert outcomes("word-order", "red chair") == {"chair red"}
    assert outcomes("word-order", "red  leather chair") == {"leather  red chair", "red  chair leather"}
    assert outcomes("word-order", "a, b") == {"a, b"}
    assert outcomes("word-order", "红色连衣裙") == {"连衣红色裙", "红色裙连衣"}
    assert outcomes("word-order", "真皮 椅子") == {"椅子 真皮"}
    assert outcomes("word-order", "0.75L ☕") == {"☕ 0.75L"}


@given(
    st.lists(st.sampled_from(["red", "红色连衣裙", "👍🏽", "0.75L", ", "]), max_size=8).map(" ".join),
    st.integers(0, 99),
)
def test_no_character_is_lost_or_won_by_another_order(text: str, seed: int) -> None:
    spoilt = registry.load("recft.perturbations", "word-order").apply(text, 1.0, np.random.default_rng(seed))
    assert sorted(clusters(spoilt)) == sorted(clusters(text))
    assert [part.strip() == "" for part in spoilt.split(",")] == [part.strip() == "" for part in text.split(",")]


def test_synonyms_are_whole_words_in_their_case() -> None:
    assert outcomes("synonyms", "Sofa") == {"Couch", "Settee"}
    assert outcomes("synonyms", "GREY sofabed greyish") == {"GRAY sofabed greyish"}
    assert outcomes("synonyms", "cell  phone") == {"mobile phone", "smartphone"}
    assert outcomes("synonyms", "men's rug-like 5grams") == {"gents' rug-like 5grams"}
    assert outcomes("synonyms", "sofa\u0301") == {"sofa\u0301"}


def test_of_chinese_the_longest_known_word_is_taken() -> None:
    assert outcomes("synonyms", "苹果手机壳") == {"苹果手机套", "苹果保护壳"}
    assert outcomes("synonyms", "手机") == {"智能手机"}
    assert outcomes("synonyms", "15英寸电视") == {"15寸电视机"}


def test_the_built_in_words_change_something_and_are_read_once() -> None:
    words = built_in()
    assert words is built_in()
    assert len(words.table) > 100
    for word, others in words.table.items():
        assert word == " ".join(word.casefold().split())
        assert others and word not in {other.casefold() for other in others}
        assert words.found_in(f"a {word} b") == [(2, 2 + len(word), others)], word


def test_a_shop_s_own_words_come_first(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\ufeff# ours\nsofa => divan\n打印机，打印器\n", encoding="utf-8")
    words = read_words(file)
    assert outcomes("synonyms", "Sofa", words=words) == {"Divan"}
    assert outcomes("synonyms", "打印机", words=words) == {"打印器"}
    assert outcomes("synonyms", "grey", words=words) == {"gray"}


@pytest.mark.parametrize("line", ["sofa", "sofa =>", "=> sofa", ",", "sofa, "])
def test_a_line_that_says_nothing_is_refused_by_its_number(line: str) -> None:
    with pytest.raises(DataError, match=r"words.txt: line 2: .*rule: words parted by commas.*fix: complete"):
        parse_words(["a, b", line], "words.txt")


@pytest.mark.parametrize("line", ["c++ => cpp", "(a), b", "sofa, ladies'"])
def test_a_word_that_could_never_be_found_is_refused(line: str) -> None:
    with pytest.raises(DataError, match=r"words.txt: line 1: .*begins and ends with a letter.*on the right"):
        parse_words([line], "words.txt")


def test_a_long_list_takes_no_longer_by_the_text() -> None:
    words = Words({**built_in().table, **{f"word{number} two": ("x",) for number in range(20_000)}})
    text = "a word7 two, WORD19999  Two word20000 two sofa " * 20
    assert len(words.found_in(text)) == 60
    assert outcomes("synonyms", "word7 two", words=words, n=3) == {"x"}


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_words(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(DataError, match="save it as UTF-8"):
        read_words(tmp_path / "bytes.txt")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("red chair, oak, 45 cm", "red chair"),
        ("desk color: red size: 2 XL", "desk"),
        ("desk; color: red | oak\nnew", "desk"),
        ("红色椅子，真皮；颜色：黑色、棕色", "红色椅子"),
        ("椅子 颜色：黑色", "椅子"),
        (", red, oak", ", red"),
        ("1,000 pieces at 12:30", "1,000 pieces at 12:30"),
        ("red chair", "red chair"),
        ("red chair,", "red chair,"),
        ("", ""),
    ],
)
def test_every_part_but_the_first_may_go(text: str, left: str) -> None:
    assert outcomes("dropped-attributes", text) == {left}


def test_what_is_left_keeps_its_marks() -> None:
    assert outcomes("dropped-attributes", "desk, oak; new", 0.5) == {"desk, oak", "desk; new"}


@given(st.text(max_size=20) | st.text("aÉß红Ａ, ı", max_size=20), st.integers(0, 99))
def test_another_case_or_width_reads_the_same(text: str, seed: int) -> None:
    spoilt = registry.load("recft.perturbations", "case-and-width").apply(text, 1.0, np.random.default_rng(seed))
    assert normalise(spoilt) == normalise(text)


def test_a_word_is_in_capitals_small_or_wide() -> None:
    assert outcomes("case-and-width", "Red") == {"RED", "red", "Ｒｅｄ"}
    assert outcomes("case-and-width", "ＵＳＢ") == {"ｕｓｂ", "USB", "Ｕｓｂ"}
    assert outcomes("case-and-width", "红色 2XL") == {"红色 2XL"}
