"""What is used of the machine follows from its device."""

from __future__ import annotations

import pytest
import torch

from recft.training.choices import draws_ahead, products


def test_a_gpu_draws_ahead_and_rounds_products_of_gradients_alone() -> None:
    assert draws_ahead("cuda") and not draws_ahead("cpu")
    assert torch.get_float32_matmul_precision() == "highest"
    with products("cuda"):
        assert torch.get_float32_matmul_precision() == "high"
    with pytest.raises(MemoryError), products("cuda"):
        raise MemoryError
    assert torch.get_float32_matmul_precision() == "highest"
    with products("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"
