"""A model as recft sees it: texts in, K numbers out for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recft.errors import ModelError, problem
from recft.models.token_log_p import log_p
from recft.models.tokens import Text, Tokens, cut, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Serving", "TextModel", "chunks_by_length", "label_tokens", "on", "padded"]

PAD_TO = 8
"""Lengths are rounded up to a multiple of this: few different shapes, so that kernels are set up once."""

LEAST_TOKENS = 512
"""Of a pass that keeps the matrix units busy."""


@dataclass(frozen=True)
class Serving:
    """All that decides how text becomes numbers, besides weights; it travels with every export.

    Attributes:
        task: the task's name.
        kind: `encoder` or `causal`.
        head: `embedding` (a pooled vector), `classifier` (a new head's logits), `answers` (answer tokens' logits),
            `likelihood` (log p of a tail after its body, and its length in tokens).
        pooling: of an embedding: `mean` over real tokens, or the `last` one.
        normalize: whether embeddings have length 1.
        max_tokens: where texts are cut.
        labels: what the outputs of a classifier or of answers mean.
        label_ids: token ids of the answers.
        temperature: what scores were divided by in training; of softmaxes in certificates.
        carrier: the head whose transformers class holds the weights; this one's where empty. Several tasks share one.
        n_outputs: outputs of a new head, of all tasks that share it.
        columns: which of them are this task's; all where empty.
        chat: whether a body goes through the tokenizer's chat template (head `likelihood`).
        calibration: how probabilities are corrected, as `training.calibration` fitted it.
    """

    task: str
    kind: str
    head: str
    pooling: str
    normalize: bool
    max_tokens: int
    labels: tuple[str, ...] = ()
    label_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    padding_side: str = "right"
    carrier: str = ""
    n_outputs: int = 1
    columns: tuple[int, ...] = ()
    chat: bool = False
    calibration: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.carrier:
            object.__setattr__(self, "carrier", self.head)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; `from_json` of it is equal to this one."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Serving:
        """The reverse of `to_json`."""
        plain: dict[str, Any] = {key: tuple(part) if isinstance(part, list) else part for key, part in value.items()}
        return cls(**plain)

    def tokens(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Tokens]:
        """Token ids of each text; see `models.tokens.tokenize`."""
        return tokenize(tokenizer, texts, self.max_tokens, self.head == "likelihood", self.chat)

    def cut(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Text]:
        """The texts as an engine takes them; see `models.tokens.cut`."""
        return cut(tokenizer, texts, self.max_tokens, self.head == "likelihood", self.chat)


class TextModel(nn.Module):
    """A transformers model with its pooling or its answer rows: token ids in, (B, K) float32 out."""

    def __init__(self, base: PreTrainedModel, serving: Serving) -> None:
        super().__init__()
        self.base = base
        self.serving = serving

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        tail_mask: Tensor | None = None,
    ) -> Tensor:
        """K numbers for each row.

        Args:
            input_ids: (B, T), padded on the right.
            attention_mask: (B, T), 1 for real tokens.
            token_type_ids: (B, T), for bases that tell two segments apart.
            tail_mask: (B, T), 1 for tokens of the tail (head `likelihood`).
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.serving.kind == "causal":
            inputs["use_cache"] = False  # nothing is generated
        elif self.serving.head == "classifier":
            return self._own_columns(self.base(**inputs).logits)
        # Whatever class the base was loaded as: several tasks may share one with a head.
        hidden = self.base.base_model(**inputs).last_hidden_state  # (B, T, D)
        if self.serving.head == "likelihood":
            assert tail_mask is not None  # noqa: S101  # `tokenize` has marked the tail
            return self._likelihood(hidden, input_ids, tail_mask)
        if self.serving.head == "embedding" and self.serving.pooling == "mean":
            return self.vectors(_mean(hidden, attention_mask))
        last = _last(hidden, attention_mask)
        return self.vectors(last) if self.serving.head == "embedding" else self.logits(last)

    def vectors(self, pooled: Tensor) -> Tensor:
        """Embeddings of pooled hidden states (N, D), float32."""
        pooled = pooled.float()
        return nn.functional.normalize(pooled, dim=-1) if self.serving.normalize else pooled

    def logits(self, last: Tensor) -> Tensor:
        """What a new head, or the answers' rows, make of each text's last hidden state (N, D): (N, K) float32."""
        if self.serving.head == "classifier":
            return self._own_columns(cast("nn.Module", self.base.score)(last))
        return self._answers(last)

    def likelihood(self, hidden: Tensor, place: Tensor, token: Tensor, text: Tensor, n: int) -> Tensor:
        """(sum of log p of the tail's tokens, their number) of n texts, (n, 2).

        Args:
            hidden: (M, D).
            place: (E,) ascending: the hidden state after which each token of a tail stands.
            token: (E,) which token it is.
            text: (E,) whose tail it belongs to.
            n: number of texts.
        """
        sums = torch.zeros(n, device=hidden.device).index_add(0, text, log_p(self.base, hidden, place, token))
        return torch.stack([sums, torch.bincount(text, minlength=n).float()], dim=1)

    def _own_columns(self, logits: Tensor) -> Tensor:
        chosen = logits[:, list(self.serving.columns)] if self.serving.columns else logits
        return chosen.float()  # (B, K)

    def _answers(self, hidden: Tensor) -> Tensor:
        """The answer tokens' logits: only their rows of the head are multiplied. hidden: (B, D)."""
        head = self.base.get_output_embeddings()
        rows = list(self.serving.label_ids)
        bias = getattr(head, "bias", None)
        return self._capped(nn.functional.linear(hidden, head.weight[rows], None if bias is None else bias[rows]))

    def _likelihood(self, hidden: Tensor, input_ids: Tensor, tail_mask: Tensor) -> Tensor:
        """(sum of log p of the tail's tokens, their number): the head is multiplied where a tail's token follows."""
        if torch.compiler.is_exporting():
            # A graph cannot know how many positions there are: it computes all of them.
            each = self._capped(self.base.get_output_embeddings()(hidden[:, :-1])).log_softmax(dim=-1)
            all_ = each.gather(2, input_ids[:, 1:, None])[:, :, 0] * tail_mask[:, 1:]
            return torch.stack([all_.sum(dim=1), tail_mask.sum(dim=1).float()], dim=1)
        text, before = tail_mask[:, 1:].nonzero().unbind(1)  # position t says what stands at t + 1
        place = text * hidden.shape[1] + before
        return self.likelihood(hidden.flatten(0, 1), place, input_ids[text, before + 1], text, len(hidden))

    def _capped(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        softcap = getattr(self.base.config, "final_logit_softcapping", None)
        return torch.tanh(logits / softcap) * softcap if softcap else logits


def _mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _last(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    # The last real token, wherever the padding is.
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def label_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> tuple[int, ...]:
    """The token that begins each answer.

    Raises:
        ModelError: two answers begin with the same token.
    """
    ids = tuple(tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in labels)
    if len(set(ids)) < len(ids):
        raise ModelError(
            problem(
                "task.answers",
                f"{list(labels)} begin with the tokens {list(ids)}",
                "each answer begins with a token of its own",
                "choose other answers",
            )
        )
    return ids


def chunks_by_length(tokens: Sequence[Tokens], chunk_tokens: int, most_rows: int) -> list[np.ndarray]:
    """Row numbers grouped by similar length, longest first, each group within `chunk_tokens` when padded.

    A group also ends where the next text would be a quarter padding, once it is worth a pass.
    """
    lengths = np.array([len(row["input_ids"]) for row in tokens])
    order = np.argsort(-lengths, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        width = _rounded(int(lengths[order[start]]))
        rows = max(1, min(most_rows, chunk_tokens // width))
        alike = int((lengths[order[start:]] > 0.75 * width).sum())
        rows = min(rows, max(alike, -(-LEAST_TOKENS // width)))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks


def _rounded(length: int) -> int:
    return -(-length // PAD_TO) * PAD_TO


def padded(
    tokens: Sequence[Tokens], rows: np.ndarray, pad_id: int, device: torch.device, limit: int
) -> dict[str, Tensor]:
    """The rows as one batch: `input_ids`, `attention_mask` and, where there are any, the other masks, (B, T)."""
    chosen = [tokens[row] for row in rows]
    width = min(_rounded(max(len(row["input_ids"]) for row in chosen)), max(limit, 1))
    batch = {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in chosen])
        for name, fill in (("input_ids", pad_id), ("token_type_ids", 0), ("tail_mask", 0))
        if name in chosen[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in chosen])
    batch["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
    return {name: on(tensor, device) for name, tensor in batch.items()}


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; to a GPU it is copied while the CPU goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
