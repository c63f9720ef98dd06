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

from recft.models.text_model import TextModel, chunks_by_length, padded

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
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    penalty: Callable[[], Tensor | None]
    ranks: Ranks
    seed: int
    loss_scale: float = 1.0


def gradients(
    work: Gradients, texts: Sequence[str | tuple[str, str]], loss: Callable[[Tensor], Tensor], micro_batch: int
) -> Sums:
    """Leaves the gradient of `loss` over all `texts` in the parameters (to be summed over ranks by the caller).

    Args:
        work: see `Gradients`.
        texts: N different texts.
        loss: (N, K) outputs -> scalar.
        micro_batch: how many texts may have a graph at a time.
    """
    tokens = work.model.serving.tokens(work.tokenizer, texts)
    chunks = chunks_by_length(tokens, CHUNK_TOKENS, most_rows=micro_batch)
    n_tokens = sum(len(row["input_ids"]) for row in tokens)
    pad_id = int(work.tokenizer.pad_token_id or 0)

    def forward(rows: np.ndarray) -> Tensor:
        # Dropout depends on the step and the chunk alone, so that the second pass repeats the first.
        torch.manual_seed(work.seed + int(rows[0]))
        batch = padded(tokens, rows, pad_id, work.model.device, work.model.serving.max_tokens)
        output: Tensor = work.model(**batch)
        return output

    if len(texts) <= micro_batch and work.ranks.num_processes == 1:
        order = torch.as_tensor(np.argsort(np.concatenate(chunks)), device=work.model.device)
        value = loss(torch.cat([forward(rows) for rows in chunks])[order])
        _with_penalty(value, work).backward()
        return Sums(float(value.detach()), n_tokens)
    return Sums(_cached(work, chunks, forward, loss, len(texts)), n_tokens)


def _with_penalty(value: Tensor, work: Gradients) -> Tensor:
    penalty = work.penalty()
    return (value if penalty is None else value + penalty) * work.loss_scale


def _cached(
    work: Gradients,
    chunks: Sequence[np.ndarray],
    forward: Callable[[np.ndarray], Tensor],
    loss: Callable[[Tensor], Tensor],
    n_texts: int,
) -> float:
    """The two passes of cached gradients; each rank takes its share of the chunks."""
    mine = chunks[work.ranks.process_index :: work.ranks.num_processes]
    outputs = _first_pass(mine, forward, n_texts, work)
    outputs.requires_grad_()
    value = loss(outputs)
    (value * work.loss_scale).backward()
    assert outputs.grad is not None  # noqa: S101  # a loss that reads no output is a bug of the task
    for rows in mine:
        forward(rows).backward(outputs.grad[torch.as_tensor(rows, device=outputs.device)])
    penalty = work.penalty()
    if penalty is not None and work.ranks.process_index == 0:
        (penalty * work.loss_scale).backward()
    return float(value.detach())


@torch.no_grad()
def _first_pass(
    mine: Sequence[np.ndarray], forward: Callable[[np.ndarray], Tensor], n_texts: int, work: Gradients
) -> Tensor:
    """All outputs, (N, K), from every rank's share."""
    parts = [forward(rows) for rows in mine]
    width = parts[0].shape[1] if parts else forward(np.arange(1)).shape[1]  # a rank without a share asks for K
    outputs = torch.zeros(n_texts, width, device=work.model.device)
    for rows, part in zip(mine, parts, strict=True):
        outputs[torch.as_tensor(rows, device=outputs.device)] = part
    return work.ranks.reduce(outputs) if work.ranks.num_processes > 1 else outputs
