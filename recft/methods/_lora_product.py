"""A LoRA layer's product in as few passes as it needs; imports torch, so only the methods' bodies import it.

    y = x·Wᵀ + b + (x·Aᵀ)·(s·B)ᵀ

PEFT's layer makes the update at full size, scales it and adds it, three passes over memory that cost more than the
base's own product on a CPU with matrix units; its backward pass makes as many again. Here the update is added by the
product that makes it, forward and backward, and the scale goes into B.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recft.methods._peft import ADAPTER

__all__ = ["in_one_product", "low_rank_linear"]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, right: Tensor, left: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        right_here, left_here = right.to(x.dtype), (left * scale).to(x.dtype)
        low = rows @ right_here.T  # (N, r)
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(low, left_here.T)
        ctx.save_for_backward(rows, weight, low, right, left)
        ctx.scale = scale
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, low, right, left = ctx.saved_tensors
        sent = grad.reshape(-1, grad.shape[-1])  # (N, out)
        of_low = sent @ (left * ctx.scale).to(sent.dtype)  # (N, r)
        of_right = (of_low.T @ rows).to(right.dtype) if ctx.needs_input_grad[3] else None
        # The short side first: the other way round a CPU takes half as long again.
        of_left = (low.T @ sent).T.to(left.dtype) * ctx.scale if ctx.needs_input_grad[4] else None
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = sent @ weight
            of_x.addmm_(of_low, right.to(sent.dtype))
            of_x = of_x.view(*grad.shape[:-1], of_x.shape[-1])
        return of_x, None, None, of_right, of_left, None


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, right: Tensor, left: Tensor, scale: float
) -> Tensor:
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, (..., out), in x's dtype; gradients of A and B in theirs, none of W and b.

    Args:
        x: (..., in).
        weight: W (out, in), frozen.
        bias: b (out,), frozen.
        right: A (r, in).
        left: B (out, r).
        scale: s.
    """
    product: Callable[..., Tensor] = _Product.apply
    return product(x, weight, bias, right, left, scale)


def in_one_product(layer: Any) -> None:
    """Lets a layer of PEFT's, LoRA without a variant, compute so wherever it can; else it computes as it did."""
    kind: type = type(layer)
    layer.__class__ = _together(kind)


@cache
def _together(kind: type) -> type:
    class Together(kind):  # type: ignore[misc]
        def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
            if args or options or not _simple(self, x):
                return cast("Tensor", super().forward(x, *args, **options))
            right, left = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
            scale, base = self.scaling[ADAPTER], self.get_base_layer()
            if _is_plain(base, x):
                return low_rank_linear(x, base.weight, base.bias, right, left, scale)
            out = base(x)
            low = nn.functional.linear(x, right.to(x.dtype)).reshape(-1, len(right))
            update = (left * scale).to(x.dtype)
            return torch.addmm(out.reshape(-1, out.shape[-1]), low, update.T).view(out.shape)

    Together.__name__ = Together.__qualname__ = kind.__name__
    return Together


def _simple(layer: Any, x: Tensor) -> bool:
    """Whether the adapter is on, alone, and nothing but its product is asked for."""
    dropout = layer.lora_dropout[ADAPTER]
    return not (
        layer.disable_adapters
        or layer.merged
        or layer.active_adapters != [ADAPTER]
        or (layer.training and getattr(dropout, "p", 0.0) > 0)
        or torch.compiler.is_compiling()  # a graph for others to run keeps the plain products
        or torch.is_autocast_enabled(x.device.type)
    )


def _is_plain(base: nn.Module, x: Tensor) -> bool:
    return (
        type(base) is nn.Linear
        and base.weight.dtype == x.dtype
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
    )
