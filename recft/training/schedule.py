"""The learning rate over the steps of a run."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(step: int, total_steps: int, peak: float, warmup_steps: int, shape: str) -> float:
    """The learning rate of one optimizer step.

    It rises linearly over `warmup_steps`, then stays (`constant`) or falls to nothing along a line (`linear`) or
    half a cosine (`cosine`, Loshchilov & Hutter 2017).

    Args:
        step: counted from 0.
        total_steps: of the whole run.
        peak: what it rises to.
        warmup_steps: how many steps it rises.
        shape: `constant`, `linear` or `cosine`.

    >>> [learning_rate(step, 4, 1.0, 2, "linear") for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    passed = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * (1 - passed if shape == "linear" else 0.5 * (1 + math.cos(math.pi * passed)))
