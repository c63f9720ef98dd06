"""A model as recft sees it: texts in, K numbers out for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recft.errors import ModelError, problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Serving", "TextModel", "chunks_by_length", "cut", "encode", "label_tokens", "padded", "tokenize"]

Text = str | tuple[str, str]
Tokens = dict[str, list[int]]

PAD_TO = 8
"""Lengths are rounded up to a multiple of this: few different shapes, so that kernels are set up once."""


@dataclass(frozen=True)
class Serving:
    """All that decides how text becomes numbers, besides weights; it travels with every export.

    Attributes:
        task: the task's name.
        kind: `encoder` or `causal`.
        head: `embedding` (a pooled vector), `classifier` (a new head's logits), `answers` (answer tokens' logits).
        pooling: of an embedding: `mean` over real tokens, or the `last` one.
        normalize: whether embeddings have length 1.
        max_tokens: where texts are cut.
        labels: what the outputs of a classifier or of answers mean.
        label_ids: token ids of the answers.
        temperature: what scores were divided by in training; of softmaxes in certificates.
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

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; `from_json` of it is equal to this one."""
        return dataclasses.asdict(self) | {"labels": list(self.labels), "label_ids": list(self.label_ids)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Serving:
        """The reverse of `to_json`."""
        return cls(**{**value, "labels": tuple(value["labels"]), "label_ids": tuple(value["label_ids"])})


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

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """K numbers for each row.

        Args:
            input_ids: (B, T), padded on the right.
            attention_mask: (B, T), 1 for real tokens.
            token_type_ids: (B, T), for bases that tell two segments apart.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.serving.head == "classifier":
            classified: Tensor = self.base(**inputs).logits
            return classified.float()  # (B, K)
        if self.serving.head == "answers":
            hidden = self.base.base_model(**inputs, use_cache=False).last_hidden_state  # (B, T, D)
            return self._answers(_last(hidden, attention_mask))
        if self.serving.kind == "causal":
            inputs["use_cache"] = False  # nothing is generated
        hidden = self.base(**inputs).last_hidden_state  # (B, T, D)
        pooled = _mean(hidden, attention_mask) if self.serving.pooling == "mean" else _last(hidden, attention_mask)
        pooled = pooled.float()
        return nn.functional.normalize(pooled, dim=-1) if self.serving.normalize else pooled

    def _answers(self, hidden: Tensor) -> Tensor:
        """The answer tokens' logits: only their rows of the head are multiplied. hidden: (B, D)."""
        head = self.base.get_output_embeddings()
        rows = list(self.serving.label_ids)
        bias = getattr(head, "bias", None)
        logits = nn.functional.linear(hidden, head.weight[rows], None if bias is None else bias[rows]).float()
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


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int) -> list[Tokens]:
    """Token ids of each text, cut to `max_tokens`; of a (body, tail) the body is cut.

    An encoder sees body and tail as its two segments; a causal model sees them as one string.
    """
    if not texts:
        return []
    fitted = cut(tokenizer, texts, max_tokens)
    if not isinstance(fitted[0], str):
        bodies, tails = zip(*fitted, strict=True)
        encoded = tokenizer(list(bodies), list(tails), truncation=True, max_length=max_tokens)
    else:
        encoded = tokenizer(fitted, truncation=True, max_length=max_tokens)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return [{name: encoded[name][row] for name in names} for row in range(len(texts))]


def cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int) -> list[Text]:
    """The texts as an engine takes them: its plain truncation at `max_tokens` then gives the ids of `tokenize`.

    Single texts are left to that truncation. Of a (body, tail) the body is cut, at a token's end, so that body, tail
    and special tokens fit; a tail that would leave the body less than a quarter is cut to three quarters: a title of
    a megabyte must not push everything else out. Pairs stay pairs for a base with segments, else they are joined.

    Raises:
        ModelError: single texts and pairs are mixed.
    """
    pairs = [text for text in texts if not isinstance(text, str)]
    if not pairs:
        return list(texts)
    if len(pairs) < len(texts):
        raise ModelError(
            problem("tokenize", "single texts and pairs in one batch", "one kind a batch", "split the batch")
        )
    segments = _has_segments(tokenizer)
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=segments)
    tails, tail_sizes = _cut(tokenizer, [tail for _, tail in pairs], [room * 3 // 4] * len(pairs))
    limits = [room - size for size in tail_sizes]
    bodies, sizes = _cut(tokenizer, [body for body, _ in pairs], limits)
    if segments:
        return list(zip(bodies, tails, strict=True))
    return _joined(tokenizer, bodies, tails, sizes, max_tokens)


def _has_segments(tokenizer: PreTrainedTokenizerBase) -> bool:
    # Not the number of special tokens: Llama 3 puts a second begin token before the second of a pair.
    return tokenizer.sep_token_id is not None


def _joined(
    tokenizer: PreTrainedTokenizerBase, bodies: list[str], tails: list[str], sizes: list[int], max_tokens: int
) -> list[Text]:
    """Body and tail as one string each, within `max_tokens`.

    Where the two meet, other tokens may come out than from each alone: a body is cut further until the whole fits,
    so that the engine's truncation never reaches the tail's end.
    """
    while True:
        joined = [body + tail for body, tail in zip(bodies, tails, strict=True)]
        encoded = tokenizer(joined, verbose=False)["input_ids"]
        over = [len(ids) - max_tokens for ids in encoded]
        shrunk = [row for row, excess in enumerate(over) if excess > 0 and sizes[row] > 0]
        if not shrunk:
            return list(joined)
        limits = [max(sizes[row] - over[row], 0) for row in shrunk]
        for row, body, size in zip(shrunk, *_cut(tokenizer, [bodies[row] for row in shrunk], limits), strict=True):
            bodies[row], sizes[row] = body, size


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], limits: list[int]) -> tuple[list[str], list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept, sizes = [], []
    for text, offsets, limit in zip(texts, encoded["offset_mapping"], limits, strict=True):
        kept.append(text if len(offsets) <= limit else text[: offsets[limit][0]])
        sizes.append(min(len(offsets), limit))
    return kept, sizes


def chunks_by_length(tokens: Sequence[Tokens], chunk_tokens: int, most_rows: int) -> list[np.ndarray]:
    """Row numbers grouped by similar length, longest first, each group within `chunk_tokens` when padded."""
    lengths = np.array([len(row["input_ids"]) for row in tokens])
    order = np.argsort(-lengths, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        rows = max(1, min(most_rows, chunk_tokens // _rounded(int(lengths[order[start]]))))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks


def _rounded(length: int) -> int:
    return -(-length // PAD_TO) * PAD_TO


def padded(
    tokens: Sequence[Tokens], rows: np.ndarray, pad_id: int, device: torch.device, limit: int
) -> dict[str, Tensor]:
    """The rows as one batch: `input_ids`, `attention_mask` and, where there are any, `token_type_ids`, (B, T)."""
    chosen = [tokens[row] for row in rows]
    width = min(_rounded(max(len(row["input_ids"]) for row in chosen)), max(limit, 1))
    batch = {
        name: torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in chosen])
        for name, fill in (("input_ids", pad_id), ("token_type_ids", 0))
        if name in chosen[0]
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in chosen])
    batch["attention_mask"] = (torch.arange(width)[None, :] < lengths[:, None]).long()
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def encode(
    model: TextModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], chunk_tokens: int = 16384
) -> np.ndarray:
    """What the model makes of each text, (N, K) float32; equal texts are computed once."""
    different = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(different)}
    found = np.zeros((0, 0), np.float32)
    for rows, values in _encode_chunks(model, tokenizer, different, chunk_tokens):
        if not found.size:
            found = np.empty((len(different), values.shape[1]), np.float32)
        found[rows] = values
    return found[[place[text] for text in texts]]


def _encode_chunks(
    model: TextModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], chunk_tokens: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    window = 20_000  # texts tokenized at a time: memory stays flat, and lengths still group well
    limit = model.serving.max_tokens
    pad_id = int(tokenizer.pad_token_id or 0)
    for start in range(0, len(texts), window):
        tokens = tokenize(tokenizer, texts[start : start + window], limit)
        for rows in chunks_by_length(tokens, chunk_tokens, most_rows=1024):
            batch = padded(tokens, rows, pad_id, model.device, limit)
            yield start + rows, model(**batch).cpu().numpy()
