"""What fits in memory: where a run starts, and what it tries next."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig

from recft.training.memory import Fit, Shape, first_fit, is_out_of_memory

SHAPE = Shape(layers=4, layer_bytes=100, input_bytes=10)


def test_a_text_takes_what_its_blocks_keep() -> None:
    assert [SHAPE.text_bytes(again) for again in (0, 1, 2, 4, 9)] == [400, 410, 320, 140, 140]
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    shape = Shape.of(config, torch.float32, 16)
    assert shape == Shape(2, 16 * 4 * (18 * 32 + 4 * 64 + 3 * 16 * 4), 16 * 4 * 32)
    assert Shape.of(config, torch.bfloat16, 16).layer_bytes == shape.layer_bytes // 2


@pytest.mark.parametrize(
    ("free", "blocks", "expected"),
    [
        (8000, 4, Fit(10)),
        (800, 4, Fit(1)),
        (799, 4, Fit(1, 2)),
        (700, 4, Fit(1, 2)),
        (600, 4, Fit(2, 4)),  # half of the blocks are not enough
        (100, 4, Fit(1, 4)),  # nothing fits by the estimate: the least is tried
        (700, 0, Fit(1)),  # nothing may be computed again
    ],
)
def test_a_run_starts_with_what_half_of_the_memory_holds(free: int, blocks: int, expected: Fit) -> None:
    assert first_fit(SHAPE, blocks, free) == expected


def test_less_is_fewer_texts_then_half_of_the_blocks_then_all() -> None:
    tried = [Fit(64)]
    while (less := tried[-1].smaller(n_texts=10, n_blocks=5)) is not None:
        tried.append(less)
    assert tried[1:] == [Fit(5), Fit(2), Fit(1), Fit(1, 3), Fit(1, 5)]
    assert Fit(1).smaller(10, 0) is None
    assert Fit(8, 5).smaller(10, 5) == Fit(4, 5)
    assert Fit(1).smaller(10, 1) == Fit(1, 1)


def test_out_of_memory_is_told_from_other_errors() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate"))
    assert not is_out_of_memory(RuntimeError("an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))
