"""How likely tokens are after hidden states: the head's logits are held a block at a time, in both directions.

A vocabulary is a hundred times as wide as a hidden state, so that the logits of a whole batch would take more memory
than all else together. With W the head's weight, p a block's softmax and g the gradient of each log p:

    log p(t) = z_t - logsumexp(z)       z = h W^T (+ bias, capped)
    dh = sum over t of g_t (W_t - p W)

p W is computed while the block's logits are there, so that they need not come back for the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["capped", "log_p", "row_blocks", "vocabulary"]

BLOCK_NUMBERS = {"cpu": 2**22, "cuda": 2**26}
"""Logits that are held at a time: on a CPU what stays in its caches, which is half as fast again as 2**25."""


def capped(base: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The logits of hidden states (R, D), (R, V) float32."""
    head: Any = base.get_output_embeddings()
    logits: Tensor = head(hidden).float()
    cap = _cap(base)
    return torch.tanh(logits / cap) * cap if cap else logits


def vocabulary(base: PreTrainedModel) -> int:
    """V."""
    return int(base.get_output_embeddings().weight.shape[0])


def row_blocks(base: PreTrainedModel, n_rows: int) -> list[tuple[int, int]]:
    """Rows whose logits are held at a time."""
    size = max(1, BLOCK_NUMBERS.get(base.device.type, 2**24) // vocabulary(base))
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def log_p(base: PreTrainedModel, hidden: Tensor, row: Tensor, token: Tensor) -> Tensor:
    """Log p of tokens after hidden states, (E,) float32: of `token[e]` after `hidden[row[e]]`.

    Args:
        base: whose head and vocabulary; the head gets no gradient.
        hidden: (R, D).
        row: (E,) ascending; a hidden state that no edge starts from costs nothing.
        token: (E,).
    """
    used, which = torch.unique_consecutive(row, return_inverse=True)
    found: Tensor = _LogP.apply(hidden[used], which, token, base)  # type: ignore[no-untyped-call]
    return found


class _LogP(torch.autograd.Function):
    """See the module: hidden (M, D), which (E,) of them each token (E,) comes after."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, which: Tensor, token: Tensor, base: PreTrainedModel) -> Tensor:
        weight: Tensor = base.get_output_embeddings().weight
        each = torch.empty(len(which), device=hidden.device)
        slope = torch.ones(len(which), device=hidden.device)
        wanted = bool(ctx.needs_input_grad[0])
        expected = torch.empty_like(hidden) if wanted else None  # (M, D), p W
        blocks, cap = row_blocks(base, len(hidden)), _cap(base)
        ends = torch.tensor([high for _, high in blocks], device=which.device)
        bounds = [0, *torch.searchsorted(which, ends).tolist()]
        for (low, high), start, end in zip(blocks, bounds[:-1], bounds[1:], strict=True):
            logits = capped(base, hidden[low:high])  # (M', V)
            normal = logits.logsumexp(dim=1)
            at, here = which[start:end] - low, token[start:end]
            each[start:end] = logits[at, here] - normal[at]
            if expected is not None:
                p = (logits - normal[:, None]).exp_()
                if cap:
                    flat = 1 - (logits / cap).square()  # d tanh
                    slope[start:end] = flat[at, here]
                    p *= flat
                expected[low:high] = p.to(weight.dtype) @ weight
        if wanted:
            ctx.save_for_backward(which, token, slope, expected, weight)
        return each

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        which, token, slope, expected, weight = ctx.saved_tensors
        rows = (grad * slope)[:, None] * weight[token] - grad[:, None] * expected[which]  # (E, D) float32
        found = torch.zeros_like(expected, dtype=torch.float32).index_add_(0, which, rows)
        return found.to(expected.dtype), None, None, None


def _cap(base: PreTrainedModel) -> float | None:
    cap: float | None = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return cap
