"""What a run uses of the machine, chosen in this one place from its device.

Nothing here changes what is computed, but for the last bits of the gradients' float32 products on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["draws_ahead", "products"]


def draws_ahead(device: str) -> bool:
    """Whether the next batch is drawn while a step computes: on a CPU both want the same cores."""
    return device == "cuda"


@contextlib.contextmanager
def products(device: str) -> Iterator[None]:
    """Within it float32 products (an adapter's own, mostly) are rounded to TF32 on a GPU; scores never are."""
    before = torch.get_float32_matmul_precision()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
