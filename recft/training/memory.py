"""How much memory there is, how much a run has used, and how many texts fit a forward pass."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from recft.models import machine

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["Fit", "Shape", "available_bytes", "first_fit", "is_out_of_memory", "peak_bytes"]


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; on a CPU the container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return machine.available_bytes()


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held on the device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in KiB, macOS in bytes.
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Fit:
    """What of a step is in memory at a time.

    Attributes:
        micro_batch: texts of full length that have a graph.
        checkpointed: blocks that are computed again in the backward pass, counted from the top.
    """

    micro_batch: int
    checkpointed: int = 0

    def smaller(self, n_texts: int, n_blocks: int) -> Fit | None:
        """The next to try where this one does not fit, or None: fewer texts, then half of the blocks, then all.

        Args:
            n_texts: of the step.
            n_blocks: that may be computed again.
        """
        size = min(self.micro_batch, n_texts)
        if size > 1:
            return Fit(size // 2, self.checkpointed)
        half = -(-n_blocks // 2)
        more = half if self.checkpointed < half else n_blocks
        return Fit(1, more) if more > self.checkpointed else None


def first_fit(shape: Shape, n_blocks: int, free_bytes: int) -> Fit:
    """With how many texts, and how many blocks computed again, a run starts.

    A CPU does not say that memory is short before the process is killed, so the first guess must hold there. Half of
    the free memory is taken. On a GPU the guess is made smaller when memory runs out.

    Args:
        shape: of a text's graph.
        n_blocks: that may be computed again.
        free_bytes: on the device.
    """
    room = free_bytes // 2
    fits = (Fit(room // shape.text_bytes(again), again) for again in (0, -(-n_blocks // 2)) if again <= n_blocks)
    return next((fit for fit in fits if fit.micro_batch), Fit(max(1, room // shape.text_bytes(n_blocks)), n_blocks))


@dataclass(frozen=True)
class Shape:
    """What decides how much memory the graph of a text of full length takes.

    Attributes:
        layers: blocks.
        layer_bytes: what a block keeps for its backward pass.
        input_bytes: what a block keeps that is computed again.
    """

    layers: int
    layer_bytes: int
    input_bytes: int

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype, max_tokens: int) -> Shape:
        """Of a base: 34 values of the hidden size a token (Korthikanti et al. 2022), and maps of T values a head."""
        hidden = config.hidden_size
        feed_forward = getattr(config, "intermediate_size", 4 * hidden)
        per_token = 18 * hidden + 4 * feed_forward + 3 * max_tokens * config.num_attention_heads
        size = max_tokens * max(dtype.itemsize, 2)
        return cls(config.num_hidden_layers, per_token * size, hidden * size)

    def text_bytes(self, checkpointed: int) -> int:
        """Of one text; a block that is computed again is there once more while it is."""
        again = min(checkpointed, self.layers)
        return (self.layers - again + bool(again)) * self.layer_bytes + again * self.input_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in str(error) or "out of memory" in str(error))
