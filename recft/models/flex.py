"""FlexAttention's masks for rows in which texts lie packed: blocks of tokens that nobody sees are not computed.

A dense mask of R rows of T tokens holds R·T² numbers, and every product of queries and keys is made and masked. Packed
rows see little of themselves: each text sees its own way, which the block mask says in (T / 128)² entries a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recft.errors import ModelError, problem

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PretrainedConfig

__all__ = ["block_mask", "refuse"]

DTYPES = ("float32", "bfloat16", "float16")

LEAST_HEAD, MOST_HEAD = 16, 256
"""Sizes of a head that the kernels take: below, a block has too few columns; above, it is too large for fast memory."""


def block_mask(last: Tensor) -> BlockMask:
    """Who sees whom, for attention `flex_attention`: token k of a row is seen by its tokens q with k <= q < last[k].

    Args:
        last: (R, T), as `models.layout` gives it.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < last[row, key])

    rows, width = last.shape
    return create_block_mask(sees, B=rows, H=None, Q_LEN=width, KV_LEN=width, device=last.device)


def refuse(config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Nothing, where FlexAttention can train a base on a GPU.

    Raises:
        ModelError: its kernels do not take this dtype, or heads of this size.
    """
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES or not LEAST_HEAD <= head_size <= MOST_HEAD:
        raise ModelError(
            problem(
                "model.attention",
                f"flex_attention with heads of {head_size} in {name}",
                f"heads of {LEAST_HEAD} to {MOST_HEAD}, in {', '.join(DTYPES)}",
                "set model.attention: auto",
            )
        )
