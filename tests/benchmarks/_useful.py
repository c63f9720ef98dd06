"""Useful work: what a step's loss needs, each different token once, beside what the machine's products can."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from _beside import matrix_rate
from _shop import sized

__all__ = ["useful"]


def useful(texts: Sequence[Sequence[int]], labels: int, seconds: float, layers: int) -> str:
    """Useful FLOP/s of a training step and their share of the matrix rate at its shapes, in words.

    Args:
        texts: token ids of each, the last one read by nothing.
        labels: positions that are scored against the whole vocabulary.
        seconds: of the step.
        layers: of the base.
    """
    nodes: set[tuple[int, ...]] = set()
    for text in texts:
        ids = tuple(text[:-1])
        nodes.update(ids[: place + 1] for place in range(len(ids)))
    shape = sized(layers)
    hidden, inner = int(shape["hidden_size"]), int(shape["intermediate_size"])
    keys = hidden * int(shape["num_key_value_heads"]) // int(shape["num_attention_heads"])
    linear = [(hidden, hidden), (hidden, keys), (hidden, keys), (hidden, hidden), (hidden, inner), (hidden, inner)]
    linear.append((inner, hidden))
    weights = sum(m * n for m, n in linear)
    flop = 4.0 * layers * weights * len(nodes)
    flop += 12.0 * layers * hidden * sum(map(len, nodes))  # two products forward, four backward
    flop += 4.0 * int(shape["vocab_size"]) * hidden * labels
    rows = min(len(nodes), 2048)
    ideal = sum(m * n / matrix_rate(rows, m, n, torch.bfloat16) for m, n in dict.fromkeys(linear))
    rate = sum(m * n for m, n in dict.fromkeys(linear)) / ideal
    return (
        f"{flop / seconds / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s, {flop / seconds / rate:.0%}; {len(nodes)} tokens "
        f"of {sum(map(len, texts))}"
    )
