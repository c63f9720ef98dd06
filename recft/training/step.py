"""One optimizer step's gradients: the loss sees the whole global batch, whatever fits a forward pass.

Where the batch's graph fits in memory at once it is one backward pass. Where it does not, gradients are cached
(GradCache, Gao et al. 2021): all outputs are computed without a graph, the loss over all of them gives each output
its gradient, and the texts are passed again, a micro batch at a time, with that gradient sent down. Both ways, and
any number of processes, compute the same sum, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from recft.models.bottom import Bottom
from recft.models.passes import Pass, passes
from recft.models.text_model import TextModel
from recft.models.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Gradients", "Ranks", "Sums", "gradients"]

CHUNK_TOKENS = 4096
"""Tokens of one forward pass: large enough to keep the matrix units busy, small enough to group lengths well."""


class Ranks(Protocol):
    """The processes that share a step; `accelerate.Accelerator` is one."""

    num_processes: int
    process_index: int

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """The sum of a tensor over all processes."""


@dataclass(frozen=True)
class Sums:
    """What one step saw: `loss` without the method's penalty, and `n_tokens` over all processes."""

    loss: float
    n_tokens: int


@dataclass(frozen=True)
class Gradients:
    """What the gradients of a step are computed with.

    Attributes:
        model: in training mode.
        tokenizer: its tokenizer.
        penalty: the method's own term of the loss.
        ranks: the processes.
        seed: of dropout: the same for a text in both passes and after a resume.
        loss_scale: what the loss is multiplied by before the backward pass (float16).
        tokens: of the texts, where they are there already.
        bottom: blocks below all that trains, which are computed once a text; or None.
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    penalty: Callable[[], Tensor | None]
    ranks: Ranks
    seed: int
    loss_scale: float = 1.0
    tokens: Sequence[Tokens] | None = None
    bottom: Bottom | None = None


def gradients(
    work: Gradients, texts: Sequence[str | tuple[str, str]], loss: Callable[[Tensor], Tensor], micro_batch: int
) -> Sums:
    """Leaves the gradient of `loss` over all `texts` in the parameters (to be summed over ranks by the caller).

    Args:
        work: see `Gradients`.
        texts: N different texts.
        loss: (N, K) outputs -> scalar.
        micro_batch: how many texts of full length may have a graph at a time; as many shorter ones as have room there.
    """
    tokens = work.tokens if work.tokens is not None else work.model.serving.tokens(work.tokenizer, texts)
    most = micro_batch * work.model.serving.max_tokens
    chosen = passes(work.model, tokens, int(work.tokenizer.pad_token_id or 0), min(CHUNK_TOKENS, most), work.bottom)
    n_tokens = sum(len(row["input_ids"]) for row in tokens)

    def forward(number: int) -> Tensor:
        # Dropout depends on the step and the pass alone, so that the second time repeats the first.
        torch.manual_seed(work.seed + number)
        return chosen[number].outputs()

    if sum(one.n_tokens for one in chosen) <= most and work.ranks.num_processes == 1:
        order = torch.as_tensor(np.argsort(np.concatenate([one.texts for one in chosen])), device=work.model.device)
        value = loss(torch.cat([forward(number) for number in range(len(chosen))])[order])
        _with_penalty(value, work).backward()
        return Sums(float(value.detach()), n_tokens)
    return Sums(_cached(work, chosen, forward, loss), n_tokens)


def _with_penalty(value: Tensor, work: Gradients) -> Tensor:
    penalty = work.penalty()
    return (value if penalty is None else value + penalty) * work.loss_scale


def _cached(
    work: Gradients, chosen: Sequence[Pass], forward: Callable[[int], Tensor], loss: Callable[[Tensor], Tensor]
) -> float:
    """Each pass goes through twice, as cached gradients want it; each rank takes its share of the passes."""
    mine = range(len(chosen))[work.ranks.process_index :: work.ranks.num_processes]
    outputs = _first_time(work, chosen, mine, forward)
    outputs.requires_grad_()
    value = loss(outputs)
    (value * work.loss_scale).backward()
    assert outputs.grad is not None  # noqa: S101  # a loss that reads no output is a bug of the task
    for number in mine:
        forward(number).backward(outputs.grad[torch.as_tensor(chosen[number].texts, device=outputs.device)])
    penalty = work.penalty()
    if penalty is not None and work.ranks.process_index == 0:
        (penalty * work.loss_scale).backward()
    return float(value.detach())


@torch.no_grad()
def _first_time(
    work: Gradients, chosen: Sequence[Pass], mine: Sequence[int], forward: Callable[[int], Tensor]
) -> Tensor:
    """All outputs, (N, K), from every rank's share."""
    parts = [forward(number) for number in mine]
    width = parts[0].shape[1] if parts else forward(0).shape[1]  # a rank without a share asks for K
    outputs = torch.zeros(sum(len(one.texts) for one in chosen), width, device=work.model.device)
    for number, part in zip(mine, parts, strict=True):
        outputs[torch.as_tensor(chosen[number].texts, device=outputs.device)] = part
    return work.ranks.reduce(outputs) if work.ranks.num_processes > 1 else outputs
