"""RMS norms in fewer passes over memory; imports torch.

transformers writes the norm as a chain of small operations, whose backward passes, as autograd derives them, fill and
add tensors of the activations' size a dozen times: on a CPU with matrix units an eighth of a step. Here it is one
function with a backward pass of its own. A module is given it only where it computes the same on numbers drawn at
random, so that an architecture with a norm of another kind keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["put_in", "rms_norm"]

NUMBERS = 2**17
"""Numbers that a norm works on at a time: in float32 half of what a core's own cache holds."""


def put_in(model: PreTrainedModel) -> None:
    """Swaps the forward of `model`'s norms, where that changes nothing but time."""
    for module in model.modules():
        kind: Any = type(module)
        if kind.__name__.endswith("RMSNorm") and _norms_alike(module):
            module.__class__ = _normed(kind)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """What x / √(mean of x² + epsilon) is, in float32, times the frozen `weight`, (..., D), in x's dtype."""
    if torch.is_grad_enabled() and x.requires_grad:
        apply: Callable[..., Tensor] = _RmsNorm.apply
        return apply(x, weight, epsilon)
    return _normalized(x, weight, epsilon)[0]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, inverse = _normalized(x, weight, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        rows, sent, weight = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1]), weight.float()
        out = torch.empty_like(rows)
        for part in _parts(rows):
            normal = _float(rows[part]).mul_(inverse[part])
            down = _float(sent[part]).mul_(weight)
            along = torch.linalg.vecdot(normal, down)[:, None] / x.shape[-1]
            out[part] = down.addcmul_(normal, along, value=-1).mul_(inverse[part])
        return out.view(x.shape), None, None


def _normalized(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The norm's output, and (N, 1) what each row was multiplied by."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    inverse = rows.new_empty(len(rows), 1, dtype=torch.float32)
    for part in _parts(rows):
        wide = _float(rows[part])
        square = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_()
        inverse[part] = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        # Rounded before the weight, as the modules do.
        out[part] = wide.mul_(inverse[part])
        out[part].mul_(weight)
    return out.view(x.shape), inverse


def _parts(rows: Tensor) -> list[slice]:
    step = max(1, NUMBERS // rows.shape[1])
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _float(part: Tensor) -> Tensor:
    return part.to(torch.float32, copy=True)


@cache
def _normed(kind: type) -> type:
    class Normed(kind):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            theirs = self.weight.requires_grad or self.weight.dtype != x.dtype or x.device.type != "cpu"
            if theirs or torch.compiler.is_compiling():
                return cast("Tensor", super().forward(x))
            return rms_norm(x, self.weight, _epsilon(self))

    # Others look modules up by the name and the file of their class.
    Normed.__name__, Normed.__qualname__, Normed.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Normed


def _epsilon(norm: Any) -> float:
    found: float | None = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return found or 0.0


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _norms_alike(norm: nn.Module) -> bool:
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or weight.device.type != "cpu" or _epsilon(norm) <= 0:
        return False
    # Small numbers too: there the epsilon counts.
    x = (_drawn(4, len(weight)) * torch.tensor([[1e-3], [1.0], [3.0], [10.0]])).to(weight.dtype)
    with torch.no_grad():
        return _same(norm, lambda x: rms_norm(x, weight, _epsilon(norm)), x)


def _same(theirs: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        wanted = theirs(x)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False
    near = 1e-5 if x.dtype == torch.float32 else 1e-2
    return wanted.shape == x.shape and torch.allclose(ours(x).float(), wanted.float(), rtol=near, atol=1e-6)
