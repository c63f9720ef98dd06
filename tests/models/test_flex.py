"""FlexAttention's masks against dense ones, on a CPU: the mask, and what attention makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import AutoModel, LlamaConfig
from transformers.integrations import flex_attention as integration

from recft.errors import ModelError
from recft.models.flex import block_mask, refuse

# Two rows: a history with three candidates, alone; two texts behind each other, and padding that sees itself.
LAST = torch.tensor(
    [
        [9, 9, 9, 5, 5, 7, 7, 9, 9, 10, 11, 12],
        [4, 4, 4, 4, 8, 8, 8, 8, 9, 10, 11, 12],
    ]
)


def dense(last: Tensor) -> Tensor:
    """The same by its definition, (R, T, T)."""
    place = torch.arange(last.shape[1])
    return (place[None, None, :] <= place[None, :, None]) & (place[None, :, None] < last[:, None, :])


def wide(seed: int, rows: int, width: int) -> Tensor:
    """Rows of texts behind each other, of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.zeros(rows, width, dtype=torch.long)
    for row in range(rows):
        start = 0
        while start < width:
            end = min(width, start + int(torch.randint(1, 90, (1,), generator=generator)))
            last[row, start:end] = end
            start = end
    return last


@pytest.mark.parametrize("last", [LAST, wide(0, 3, 384), wide(1, 2, 200)], ids=["tree", "packed", "no whole blocks"])
def test_it_says_what_the_dense_mask_says(last: Tensor) -> None:
    rows, width = last.shape
    mask = block_mask(last)
    assert torch.equal(create_mask(mask.mask_mod, rows, 1, width, width, device="cpu")[:, 0], dense(last))


def test_blocks_that_nobody_sees_are_left_out() -> None:
    last = torch.arange(128, 1025, 128).repeat_interleave(128)[None]  # eight texts of a block each
    assert block_mask(last).sparsity() == pytest.approx(100 * (1 - 8 / 64))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on a CPU it is not compiled
@pytest.mark.parametrize("last", [LAST, wide(0, 2, 256)], ids=["tree", "packed"])
def test_attention_is_that_of_the_dense_mask(last: Tensor) -> None:
    rows, width = last.shape
    torch.manual_seed(0)
    query, key, value = torch.randn(3, rows, 4, width, 16).unbind(0)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense(last)[:, None])
    assert torch.allclose(flex_attention(query, key, value, block_mask=block_mask(last)), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_base_takes_the_mask_as_it_is(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def eager(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **options: Any) -> Any:
        return flex_attention(query, key, value, **options)

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", eager)
    ids = torch.arange(24).reshape(2, 12) + 40
    states = []
    for attention, mask in (
        ("eager", torch.where(dense(LAST), 0.0, -1e9)[:, None]),
        ("flex_attention", block_mask(LAST)),
    ):
        base = AutoModel.from_pretrained(tiny_llama, attn_implementation=attention).eval()
        with torch.no_grad():
            states.append(base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    assert torch.allclose(states[0], states[1], atol=1e-5)


@pytest.mark.parametrize(("dtype", "head"), [(torch.float64, 128), (torch.bfloat16, 8), (torch.bfloat16, 512)])
def test_where_its_kernels_do_not_go(dtype: torch.dtype, head: int) -> None:
    with pytest.raises(ModelError, match=rf"model.attention: flex_attention with heads of {head} in .*fix: set model"):
        refuse(LlamaConfig(hidden_size=2 * head, num_attention_heads=2), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", [16, 64, 128, 256])
def test_where_they_go(dtype: torch.dtype, head: int) -> None:
    refuse(LlamaConfig(hidden_size=2 * head, num_attention_heads=2), dtype)
