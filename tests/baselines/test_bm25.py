"""BM25 against a slow reference, and on Chinese text."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.baselines import bm25
from recft.data.text import words
from recft.errors import DataError

TEXTS = ["red cotton dress", "blue dress dress", "cotton cotton shirt", "", "红色连衣裙", "蓝色衬衫"]


def slow(texts: list[str], query: str, k1: float = 0.9, b: float = 0.4) -> list[float]:
    found = [words(text) for text in texts]
    mean_length = sum(map(len, found)) / len(found)
    out = []
    for document in found:
        score = 0.0
        for word in words(query):
            n_with = sum(word in other for other in found)
            f = document.count(word)
            idf = math.log(1 + (len(found) - n_with + 0.5) / (n_with + 0.5))
            score += idf * f / (f + k1 * (1 - b + b * len(document) / mean_length)) if f else 0.0
        out.append(score)
    return out


def store(texts: list[str]) -> Any:
    return SimpleNamespace(item_texts=texts, item_ids=[str(i) for i in range(len(texts))])


def fitted(texts: list[str], k1: float = 0.9, b: float = 0.4) -> dict[str, np.ndarray]:
    return bm25.MEMBER.fit(cast("Any", SimpleNamespace(store=store(texts))), {"k1": k1, "b": b})


@pytest.mark.parametrize("query", ["dress", "cotton dress", "dress dress cotton", "连衣裙", "红色", "nothing", ""])
def test_equals_the_formula(query: str) -> None:
    records = cast("Any", SimpleNamespace(queries=["unused", query]))
    scores = bm25.MEMBER.scores(fitted(TEXTS), store(TEXTS), records, np.array([1]))
    assert scores.shape == (1, len(TEXTS))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], slow(TEXTS, query), rtol=1e-6)
    other = bm25.MEMBER.scores(fitted(TEXTS, 1.2, 0.75), store(TEXTS), records, np.array([1]))
    np.testing.assert_allclose(other[0], slow(TEXTS, query, 1.2, 0.75), rtol=1e-6)


@given(
    st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1, max_size=6),
    st.lists(st.sampled_from("abcdef"), max_size=4).map(" ".join),
)
def test_equals_the_formula_anywhere(texts: list[str], query: str) -> None:
    if any(texts):
        np.testing.assert_allclose(bm25.Index.build(texts).scores([query])[0], slow(texts, query), rtol=1e-5)


def test_equal_words_give_exact_ties() -> None:
    scores = bm25.Index.build(["a b c", "c b a", "x"]).scores(["c a b"])[0]
    assert scores[0] == scores[1] > scores[2] == 0


def test_chinese_query_finds_the_item() -> None:
    scores = bm25.Index.build(TEXTS).scores(["红色的裙"])[0]
    assert scores.argmax() == 4


def test_a_catalogue_without_words() -> None:
    assert bm25.Index.build(["", "☕"]).scores(["tea"]).tolist() == [[0.0, 0.0]]
    assert bm25.Index.build([]).scores(["tea"]).shape == (1, 0)


def test_records_without_queries_are_refused() -> None:
    with pytest.raises(DataError, match=r"eval\.baselines: bm25 has no query .*rule: .*fix: remove bm25"):
        bm25.MEMBER.scores(fitted(TEXTS), store(TEXTS), cast("Any", SimpleNamespace(queries=None)), np.array([0]))


def test_a_catalogue_without_words_is_a_member_too() -> None:
    records = cast("Any", SimpleNamespace(queries=["茶"]))
    assert bm25.MEMBER.scores(fitted(["", "☕"]), store(["", "☕"]), records, np.array([0])).tolist() == [[0, 0]]
