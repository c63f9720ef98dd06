"""Beam search inside the catalogue: against an exhaustive one, and outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from recft.errors import ModelError
from recft.models.base import load_base, tokenizer_of
from recft.models.catalogue_likelihood import score_catalogue
from recft.models.generation import INVALID, generate, generate_free
from recft.models.trie import Trie
from recft.schema import ModelSettings

END = 1
BODIES = [[0, 5, 6, 7, 9, 9], [0, 8], [3]]
ITEMS = [[4, 5, 6], [4, 5], [7], [4, 5], [8, 9, 4, 4, 5], [8, 9, 4], [2], [10, 11], [10, 11, 12], [4, 5]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(n_tokens: int = 14) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(**shape, vocab_size=n_tokens, intermediate_size=64, initializer_range=0.3, pad_token_id=None)
    model = LlamaForCausalLM(config)
    model.eval()
    return model


MODEL = model_of()


def exact(bodies: list[list[int]], items: list[list[int]], top: int) -> tuple[np.ndarray, np.ndarray]:
    """The best items by their exact scores, equal ones by number."""
    scores = score_catalogue(MODEL, bodies, Trie.build(items, END))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    empty = top - order.shape[1]
    best = np.take_along_axis(scores, order, axis=1)
    return np.pad(order, ((0, 0), (0, max(empty, 0))), constant_values=-1), np.pad(
        best, ((0, 0), (0, max(empty, 0))), constant_values=-np.inf
    )


@pytest.mark.parametrize("top", [1, 4, 10, 15])
def test_with_beams_enough_it_is_the_exact_ranking(top: int) -> None:
    items, scores = generate(MODEL, BODIES, Trie.build(ITEMS, END), beams=8, top=top)
    wanted_items, wanted_scores = exact(BODIES, ITEMS, top)
    assert items.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(items, wanted_items)
    np.testing.assert_allclose(scores, wanted_scores, rtol=1e-4)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_few_beams_find_items_with_their_exact_scores(items: Any, bodies: Any, beams: int) -> None:
    trie = Trie.build(items, END)
    exact_scores = score_catalogue(MODEL, bodies, trie)
    found, scores = generate(MODEL, bodies, trie, beams=beams, top=5)
    assert found.min() >= -1 and found.max() < len(items)
    for row in range(len(bodies)):
        there = found[row][found[row] >= 0]
        assert len(set(there)) == len(there) >= 1
        np.testing.assert_allclose(scores[row][: len(there)], exact_scores[row, there], rtol=1e-3)
        assert (np.diff(scores[row][: len(there)]) <= 0).all()
        assert np.isneginf(scores[row][len(there) :]).all()


@torch.no_grad()
def slow_beams(body: list[int], items: list[list[int]], beams: int, top: int) -> list[int]:
    """The same search with Python lists: one forward for each beam."""
    closed = [(*item, END) for item in items]
    living: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    ended: list[tuple[float, tuple[int, ...]]] = []
    while living:
        following = []
        for score, written in living:
            logged = MODEL(torch.tensor([[*body, *written]])).logits[0, -1].log_softmax(0)
            tokens = sorted({item[len(written)] for item in closed if item[: len(written)] == written})
            following += [(score + float(logged[token]), (*written, token)) for token in tokens]
        ended += [entry for entry in following if entry[1] in closed]
        living = sorted((entry for entry in following if entry[1] not in closed), reverse=True)[:beams]
    best = sorted(ended, reverse=True)
    return [number for _, written in best for number, item in enumerate(closed) if item == written][:top]


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_it_is_beam_search(beams: int) -> None:
    found, _ = generate(MODEL, BODIES, Trie.build(ITEMS, END), beams=beams, top=10)
    for row, body in enumerate(BODIES):
        wanted = slow_beams(body, ITEMS, beams, 10)
        assert found[row].tolist() == wanted + [-1] * (10 - len(wanted))


def test_equal_titles_come_together_by_number_and_batches_do_not_matter() -> None:
    trie = Trie.build(ITEMS, END)
    found, scores = generate(MODEL, BODIES, trie, beams=8, top=10)
    for row in range(len(BODIES)):
        place = found[row].tolist().index(1)
        assert found[row, place : place + 3].tolist() == [1, 3, 9]
        assert len(set(scores[row, place : place + 3])) == 1
    alone, alone_scores = generate(MODEL, BODIES, trie, beams=8, top=10, chunk_tokens=1)
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_allclose(scores, alone_scores, rtol=1e-4)


def test_items_of_equal_score_come_by_number() -> None:
    model = model_of()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    items, scores = generate(model, [[0]], Trie.build([[4, 5], [9], [2], [9], [3, 3]], END), beams=9, top=6)
    assert items.tolist() == [[1, 2, 3, 0, 4, -1]]
    np.testing.assert_allclose(scores[0, :5], -np.log(14) * np.array([2, 2, 2, 3, 3]), rtol=1e-5)


def test_one_item_no_history_and_an_empty_body() -> None:
    trie = Trie.build([[7]], END)
    assert generate(MODEL, [[0]], trie, beams=4, top=2)[0].tolist() == [[0, -1]]
    assert generate(MODEL, [], trie, beams=4, top=2)[0].shape == (0, 2)
    with pytest.raises(ModelError, match=r"body: no token"):
        generate(MODEL, [[]], trie, beams=1, top=1)
    with pytest.raises(ModelError, match=r"trie: no end token .*rule:.*fix:"):
        generate_free(MODEL, [[0]], Trie.build([[7]]))


@torch.no_grad()
def slow_greedy(body: list[int], max_tokens: int) -> list[int]:
    written: list[int] = []
    while len(written) < max_tokens and END not in written:
        written.append(int(MODEL(torch.tensor([[*body, *written]])).logits[0, -1].argmax()))
    return written


def test_free_decoding_is_greedy_and_says_what_is_no_item() -> None:
    bodies = [[first, second] for first in range(0, 14, 3) for second in range(14)]
    written = [slow_greedy(body, 12) for body in bodies]
    ended = [row for row, tokens in enumerate(written) if tokens[-1] == END]
    assert ended and len(ended) < len(bodies), "both kinds are tried"
    items = [written[row][:-1] or [2] for row in ended[::2]]
    trie = Trie.build([*items, [13, 13, 13]], END)
    found, scores = generate_free(MODEL, bodies, trie, max_tokens=12)
    for row, tokens in enumerate(written):
        wanted = items.index(tokens[:-1]) if row in ended and tokens[:-1] in items else INVALID
        assert found[row, 0] == wanted
    assert (found >= 0).any() and (found == INVALID).any()
    assert np.isfinite(scores).all()


def test_with_beams_for_everything_free_decoding_finds_the_items_among_all_texts() -> None:
    every = [[a, b] for a in range(2, 6) for b in range(2, 6)] + [[a] for a in range(2, 6)]
    model = model_of(6)
    trie = Trie.build(every[:10], END)
    found, scores = generate_free(model, [[0, 3]], trie, beams=400, top=500, max_tokens=3)
    exact_scores = score_catalogue(model, [[0, 3]], trie)[0]
    there = found[0] >= 0
    assert sorted(found[0][there]) == list(range(10))
    np.testing.assert_allclose(scores[0][there], exact_scores[found[0][there]], rtol=1e-4)
    # 1 text of the end alone, 5 + 25 that end later, and 5 ** 3 that do not end; 10 of them are items.
    assert (found[0] == INVALID).sum() == 1 + 5 + 25 + 125 - 10
    assert np.exp(scores[0][np.isfinite(scores[0])].astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def test_chinese_titles_of_a_real_tokenizer(tiny_llama: Path) -> None:
    settings_ = ModelSettings(base=str(tiny_llama))
    model = load_base(settings_, "answers", torch.device("cpu"), torch.bfloat16).model
    tokenizer = tokenizer_of(settings_)
    titles = ["黑色 打印机", "黑色 打印机 墨盒", "红色 椅子 🎒", "usb 数据线", "黑色 打印机", "🎒"]
    trie = Trie.build([tokenizer(title, add_special_tokens=False)["input_ids"] for title in titles], END)
    items, _ = generate(model, [tokenizer("历史：桌子")["input_ids"]], trie, beams=8, top=9)
    assert sorted(items[0].tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4, 5]
    free, _ = generate_free(model, [tokenizer("历史：桌子")["input_ids"]], trie, beams=3, top=2, max_tokens=6)
    assert (free < len(titles)).all()
