"""Texts in rows: each is whole, sees itself alone, and what two share stands once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from recft.models.layout import LONG, MOST, Layout, families, lay_out
from recft.models.passes import hidden_states

texts = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=12), min_size=1, max_size=30)


def read(layout: Layout) -> dict[int, list[int]]:
    """Each text as it stands in the rows."""
    flat = layout.ids.ravel()
    bounds = zip(layout.texts, layout.starts, layout.starts[1:], strict=False)
    return {int(text): flat[layout.ways[low:high]].tolist() for text, low, high in bounds}


def seen(layout: Layout) -> np.ndarray:
    """Who sees whom by the masks, (R, T, T)."""
    place = np.arange(layout.ids.shape[1])
    found: np.ndarray = (place <= place[:, None]) & (place[:, None] < layout.last[:, None, :])
    return found


@given(texts, st.integers(1, 200), st.floats(1, 1000))
def test_every_text_stands_whole_in_one_pass_and_sees_itself_alone(
    sequences: list[list[int]], chunk_tokens: int, attention_tokens: float
) -> None:
    layouts = lay_out(sequences, chunk_tokens, attention_tokens)
    found = [read(layout) for layout in layouts]
    assert sum(map(len, found)) == len(sequences)
    assert {text: ids for one in found for text, ids in one.items()} == dict(enumerate(sequences))
    for layout in layouts:
        n_rows, width = layout.ids.shape
        assert n_rows == 1 or layout.ids.size <= chunk_tokens
        expected = np.zeros((n_rows * width, n_rows * width), bool)
        expected[np.arange(n_rows * width), np.arange(n_rows * width)] = True
        for low, high in zip(layout.starts, layout.starts[1:], strict=False):
            way = layout.ways[low:high]
            assert layout.positions.ravel()[way].tolist() == list(range(len(way)))
            for number, place in enumerate(way):
                expected[place, way[: number + 1]] = True
        blocks = expected.reshape(n_rows, width, n_rows, width)
        for row in range(n_rows):
            np.testing.assert_array_equal(seen(layout)[row], blocks[row, :, row])
            blocks[row, :, row] = False
        assert not expected.any(), "a text stands in two rows"
        assert layout.n_tokens == len(np.unique(layout.ways))
        np.testing.assert_array_equal(layout.ends, layout.ways[layout.starts[1:] - 1])


def test_what_candidates_share_is_read_once() -> None:
    history = list(range(10, 110))
    sequences = [[*history, 200 + number, 1, 2] for number in range(8)]
    (layout,) = lay_out(sequences, 4096, 512.0)
    assert layout.n_tokens == 100 + 8 * 3
    assert layout.ids.shape == (1, 128)


def test_all_positions_of_a_history_are_one_text() -> None:
    history = list(range(10, 90))
    sequences = [history[:stop] for stop in range(8, 81, 8)]
    (layout,) = lay_out(sequences, 4096, 512.0)
    assert layout.n_tokens == 80


def test_texts_that_hardly_begin_alike_stand_apart_and_equal_ones_once() -> None:
    (layout,) = lay_out([[1, 2, *range(10, 20)], [1, 2, *range(30, 40)], [1, 2, *range(10, 20)]], 4096, 512.0)
    assert layout.n_tokens == 24
    assert layout.ids.shape == (1, 32)


def test_a_tree_ends_where_reading_its_beginning_again_is_cheaper() -> None:
    sequences = [[*range(1, 101), 1000 + number] for number in range(2000)]
    layouts = lay_out(sequences, 4096, 576.0)
    tokens = sum(layout.n_tokens for layout in layouts)
    assert tokens < 2000 * 1.35
    assert max(layout.ids.shape[1] for layout in layouts) <= 2 * MOST
    long = [[*range(1, 1001), 5000 + number] for number in range(64)]
    (layout,) = lay_out(long, 4096, 576.0)
    assert layout.n_tokens == 1064


def test_rows_are_as_wide_as_is_least_work() -> None:
    sequences = [[number + 1] * 50 for number in range(40)]
    dear, cheap = (lay_out(sequences, 4096, tokens) for tokens in (10.0, 1e9))
    assert {layout.ids.shape[1] for layout in dear} == {64}
    assert sum(layout.ids.size for layout in cheap) < sum(layout.ids.size for layout in dear)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_key_value_heads=2, initializer_range=0.3, pad_token_id=None,
    )  # fmt: skip
    found = LlamaForCausalLM(config)
    found.eval()
    return found


@torch.no_grad()
def test_a_text_comes_out_as_it_does_alone_and_does_not_change_with_its_neighbour(model: LlamaForCausalLM) -> None:
    generator = np.random.default_rng(0)
    mine = [generator.integers(1, 50, 20).tolist() for _ in range(3)]
    outputs = []
    for seed in (1, 2):
        others = [np.random.default_rng(seed).integers(1, 50, 20).tolist() for _ in range(9)]
        (layout,) = lay_out([*mine, *others], 4096, 1e9)
        assert layout.ids.shape[0] < 12, "texts share rows, or there is no neighbour"
        order = np.argsort(layout.texts)
        outputs.append(hidden_states(model, layout)[torch.from_numpy(layout.ends[order[:3]])])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-6)
    for text, found in zip(mine, outputs[0], strict=True):
        torch.testing.assert_close(found, model.model(torch.tensor([text])).last_hidden_state[0, -1])


def test_families_are_the_longest_beginnings_with_enough_behind_them() -> None:
    template, first, second = list(range(1, 41)), list(range(100, 180)), list(range(200, 240))
    many = [[*template, *first, 1000 + number, 1, 2, 3] for number in range(400)]
    more = [[*template, *second, 1000 + number, 1, 2, 3] for number in range(300)]
    few = [[*template, 300 + number, *range(2 * MOST // 8)] for number in range(9)]
    small = [[*range(500, 500 + LONG - 1), number] for number in range(3000)]
    texts = [*small, *few, *more, *many]
    found = families(texts)
    assert sorted((family.common, len(family.texts)) for family in found) == [(40, 9), (80, 300), (120, 400)]
    for family in found:
        assert len({tuple(texts[text][: family.common]) for text in family.texts}) == 1
    taken = [text for family in found for text in family.texts]
    assert len(taken) == len(set(taken)) and min(taken) >= len(small)
    assert families([[1, 2]]) == []
