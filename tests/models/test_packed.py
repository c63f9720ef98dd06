"""Packed tokens behind a cache: what they see, and log p in blocks."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recft.models import token_log_p
from recft.models.packed import batches_by_length, hidden_of, read
from recft.models.token_log_p import log_p, row_blocks


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.eval()
    return model


@pytest.mark.parametrize("numbers", [1, 45, 10_000])
@torch.no_grad()
def test_log_p_is_that_of_whole_logits_however_it_is_cut(
    model: LlamaForCausalLM, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(token_log_p.BLOCK_NUMBERS, "cpu", numbers)
    assert row_blocks(model, 5)[-1][1] == 5
    assert len(row_blocks(model, 5)) == (5 if numbers == 1 else 3 if numbers == 45 else 1)
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    row, token = torch.tensor([1, 1, 1, 4, 6, 6, 8, 8]), torch.tensor([3, 0, 19, 7, 7, 1, 2, 2])
    wanted = model.lm_head(hidden).log_softmax(dim=1)[row, token]
    torch.testing.assert_close(log_p(model, hidden, row, token), wanted)
    assert log_p(model, hidden, row[:0], token[:0]).shape == (0,)


@torch.no_grad()
def test_a_cache_that_is_kept_grows_and_one_that_is_not_stays(model: LlamaForCausalLM) -> None:
    bodies = [[1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
    ids, depth = torch.tensor([[4, 2], [5, 3], [15, 2]]), torch.tensor([[0, 1]] * 3)
    sees = torch.ones(3, 2, 2, dtype=torch.bool).tril()
    for keep in (False, True):
        before = read(model, bodies, keep)
        assert before.last.tolist() == [4, 5, 15]
        first = hidden_of(model, before, ids, depth, sees)
        for row, body in enumerate(bodies):
            alone = model.model(torch.tensor([[*body, int(ids[row, 1])]])).last_hidden_state[0, -2:]
            torch.testing.assert_close(first[row], alone, atol=1e-5, rtol=1e-4)
        width = before.cache.get_seq_length()
        assert width == before.width + (2 if keep else 0)
    step = hidden_of(model, before, ids[:, :1], torch.full((3, 1), 2), torch.ones(3, 1, 3, dtype=torch.bool))
    for row, body in enumerate(bodies):
        alone = model.model(torch.tensor([[*body, int(ids[row, 1]), int(ids[row, 0])]])).last_hidden_state[0, -1]
        torch.testing.assert_close(step[row, 0], alone, atol=1e-5, rtol=1e-4)


def test_batches_hold_every_row_once_and_little_enough() -> None:
    bodies = [[0] * n for n in (9, 1, 4, 30, 2)]
    batches = batches_by_length(bodies, 3, 12)
    assert batches == [[1, 4, 2], [0], [3]]
    for rows in batches:
        assert len(rows) == 1 or len(rows) * max(3, *(len(bodies[row]) for row in rows)) <= 12
    assert batches_by_length([], 3, 12) == []
