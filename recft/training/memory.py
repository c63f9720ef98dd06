"""How much memory there is, how much a run has used, and how many texts fit a forward pass."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["available_bytes", "first_micro_batch", "is_out_of_memory", "peak_bytes"]


def available_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device; on a CPU the container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held on the device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts in KiB, macOS in bytes.
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def first_micro_batch(config: PretrainedConfig, dtype: torch.dtype, max_tokens: int, device: torch.device) -> int:
    """How many texts of full length a forward pass starts with.

    A CPU does not say that memory is short before the process is killed, so the first guess must hold there: about
    34 values of the hidden size a token and layer are kept for the backward pass (Korthikanti et al. 2022), and a
    map of T values a head. Half of the free memory is taken. On a GPU the guess is halved when memory runs out.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    feed_forward = getattr(config, "intermediate_size", 4 * hidden)
    per_token = 18 * hidden + 4 * feed_forward + 3 * max_tokens * config.num_attention_heads
    bytes_per_text = layers * per_token * max_tokens * max(dtype.itemsize, 2)
    return max(1, available_bytes(device) // 2 // int(bytes_per_text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in str(error) or "out of memory" in str(error))
