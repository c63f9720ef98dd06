"""The network of a bottleneck adapter, and how it sits in a model; imports torch, so only `bottleneck` imports it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Bottleneck", "sit"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Bottleneck(nn.Module):
    """x (..., in) → s·(W_up·σ(W_down·x + b) + b) (..., out), in float32."""

    reads: str | None = None
    """The layer whose input it reads, where it stands beside a feed-forward part."""

    def __init__(
        self,
        sizes: tuple[int, int, int],
        activation: str,
        scale: float,
        learned: bool,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        size_in, middle, size_out = sizes
        drawn = (torch.rand(middle, size_in, generator=generator) * 2 - 1) / math.sqrt(size_in)
        self.dropout = nn.Dropout(dropout)
        self.down = _linear(drawn)
        self.activation = ACTIVATIONS[activation]()
        self.up = _linear(torch.zeros(size_out, middle))
        self.enabled = True
        self.scale = nn.Parameter(torch.tensor(scale)) if learned else scale

    def forward(self, x: Tensor) -> Tensor:
        """What is added."""
        out: Tensor = self.up(self.activation(self.down(self.dropout(x.float()))))
        return out * self.scale


class Seen:
    """What last came into a feed-forward part, on its way to the adapter beside it."""

    value: Tensor | None = None


def sit(model: PreTrainedModel, adapter: Bottleneck, after: str, reads: str | None) -> None:
    """Puts an adapter behind the layer `after`; it reads that layer's output, or what came into the layer `reads`."""
    layer = model.get_submodule(after)
    weight = next(layer.parameters())
    adapter.to(weight.device)
    adapter.train(model.training)
    adapter.reads = reads
    layer.add_module("bottleneck", adapter)
    if reads is None:
        layer.register_forward_hook(_behind)
        return
    seen = Seen()

    def remember(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.value = args[0]

    def beside(module: Any, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, seen.value = seen.value, None
        if x is None or not module.bottleneck.enabled:
            return output
        added: Tensor = module.bottleneck(x)
        return output + added.to(output.dtype)

    model.get_submodule(reads).register_forward_pre_hook(remember)
    layer.register_forward_hook(beside)


def _behind(module: Any, _args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if not module.bottleneck.enabled:
        return output
    added: Tensor = module.bottleneck(output)
    return output + added.to(output.dtype)


def _linear(weight: Tensor) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(torch.zeros(weight.shape[0]))
    return layer
