"""A base's repeated blocks: which of them are computed again in the backward pass, and which are compiled.

Both change when and by whom a block's numbers are computed, not what they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

__all__ = ["blocks_of", "checkpoint_blocks", "compiled", "compiled_forwards"]

Forward = Callable[..., Any]


def blocks_of(base: PreTrainedModel) -> list[nn.Module]:
    """The blocks that can be computed again, from the bottom up."""
    return [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_blocks(base: PreTrainedModel, number: int | None = None) -> None:
    """Lets the uppermost `number` blocks (all where absent) keep their inputs alone for the backward pass.

    From the top: below a method's lowest layer nothing is kept anyway.
    """
    # The other, reentrant kind wants inputs with gradients, which a frozen base has not; with them the backward pass
    # would go down to the embeddings, whatever trains.
    base.activation_checkpointing_enable({"use_reentrant": False})
    base.disable_input_require_grads()
    blocks = blocks_of(base)
    for block in blocks[: len(blocks) - number] if number is not None else ():
        block.gradient_checkpointing = False  # type: ignore[assignment]


def compiled_forwards(base: PreTrainedModel, backend: str = "inductor") -> list[tuple[nn.Module, Forward]]:
    """Each block with its compiled forward pass; nothing is compiled before it is first called.

    Blocks are compiled, not the model: they share their code, and so the time that compiling takes.
    """
    return [(block, torch.compile(block.forward, backend=backend, dynamic=False)) for block in blocks_of(base)]


@contextlib.contextmanager
def compiled(forwards: Sequence[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Within it the blocks run as compiled; outside of it as written, in the many shapes that scoring has."""
    before = [block.__dict__.get("forward") for block, _ in forwards]
    for block, forward in forwards:
        block.forward = forward
    try:
        yield
    finally:
        for (block, _), old in zip(forwards, before, strict=True):
            if old is None:
                del block.forward
            else:
                block.forward = old
