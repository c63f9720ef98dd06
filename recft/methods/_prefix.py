"""A learned prefix inside transformers' attention; imports torch, so only `prefix` imports it.

Attention modules of transformers look their function up by the name in the model's configuration. Ours goes under its
own name: it puts the module's prefix before the keys and values, widens the mask, and calls SDPA. No cache is
involved, so gradient checkpointing, a choice of layers and ONNX export work, which PEFT's way through
`past_key_values` does not allow.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from recft.errors import ModelError, problem
from recft.methods._blocks import blocks
from recft.models.attention import attend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Prefix", "Spot", "Table", "hear", "put_in", "spots"]

NAME = "recft_prefix"
"""The name of our attention in a model's configuration, and of the prefix on an attention module."""


@dataclass(frozen=True)
class Spot:
    """An attention module that a prefix can go into.

    Attributes:
        layer: the number of its block.
        name: its name in the model.
        heads: key and value heads.
        size: of one head.
    """

    layer: int
    name: str
    heads: int
    size: int


class Table(nn.Module):
    """The keys and values of all prefixes: (V, 2·layers·heads·size), as PEFT saves them."""

    def __init__(self, start: Tensor, dropout: float) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(start)
        self.dropout = nn.Dropout(dropout)
        self.enabled = True


@dataclass(frozen=True)
class Prefix:
    """One attention module's part of the table."""

    table: Table
    row: int
    heads: int
    size: int

    def key_and_value(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, V, size) for a batch of keys (B, heads, T, size), in its dtype."""
        embeddings = self.table.dropout(self.table.prompt_embeddings)
        pairs = embeddings.view(embeddings.shape[0], -1, 2, self.heads, self.size)[:, self.row]
        pair = pairs.permute(1, 2, 0, 3).to(like.dtype)  # (2, heads, V, size)
        return pair[0].expand(like.shape[0], -1, -1, -1), pair[1].expand(like.shape[0], -1, -1, -1)


_listeners: list[dict[int, tuple[Tensor, Tensor]]] = []
"""Where `hear` collects the keys and values that pass, by the attention module's id."""


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    for heard in _listeners:
        heard[id(module)] = (key.detach(), value.detach())
    prefix: Prefix | None = getattr(module, NAME, None)
    if prefix is not None and prefix.table.enabled:
        before_key, before_value = prefix.key_and_value(key)
        if attention_mask is None:  # an architecture that leaves causality to the kernel
            causal = options.get("is_causal")
            causal = getattr(module, "is_causal", True) if causal is None else causal
            attention_mask = _whole_mask(query, key, bool(causal))
        key, value = torch.cat([before_key, key], dim=2), torch.cat([before_value, value], dim=2)
        seen = attention_mask.new_full(
            (*attention_mask.shape[:-1], before_key.shape[2]), attention_mask.dtype == torch.bool
        )
        attention_mask = torch.cat([seen, attention_mask], dim=-1)
    # In 16 bits on a CPU SDPA's backward pass is slow; `attend` leaves to it what it does not do itself.
    attention = attend if query.dtype.itemsize == 2 else sdpa_attention_forward
    return cast("tuple[Tensor, Tensor | None]", attention(module, query, key, value, attention_mask, **options))


def _whole_mask(query: Tensor, key: Tensor, causal: bool) -> Tensor:
    mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return mask.tril(key.shape[2] - query.shape[2]) if causal else mask


def _mask(*args: Any, **options: Any) -> Tensor | None:
    # A mask that is left out cannot be widened.
    options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    return sdpa_mask(*args, **options)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)


@contextlib.contextmanager
def _attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def hear(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """The keys and values (B, heads, T, size) of every attention module that our attention reaches, by its id."""
    body = model.base_model
    training = model.training
    heard: dict[int, tuple[Tensor, Tensor]] = {}
    model.eval()
    _listeners.append(heard)
    try:
        with torch.no_grad(), _attending(model, NAME):
            body(**inputs)
    finally:
        _listeners.remove(heard)
        model.train(training)
    return heard


def spots(model: PreTrainedModel) -> list[Spot]:
    """The attention modules of all blocks, one a block, found by passing four tokens through the model.

    Raises:
        ModelError: the attention of a block cannot be reached, or layers have different heads.
    """
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        raise _unreachable(model)  # SDPA cannot cap
    heard = hear(model, {"input_ids": torch.ones(1, 4, dtype=torch.long, device=model.device)})
    found = [
        Spot(number, f"{name}.{inner}" if inner else name, *_heads(heard[id(module)][0]))
        for number, (name, block) in enumerate(blocks(model))
        for inner, module in block.named_modules()
        if id(module) in heard
    ]
    if [spot.layer for spot in found] != list(range(len(blocks(model)))) or len({(s.heads, s.size) for s in found}) > 1:
        raise _unreachable(model)
    return found


def _unreachable(model: PreTrainedModel) -> ModelError:
    return ModelError(
        problem(
            "method.name",
            f"a prefix cannot reach every layer of {type(model).__name__}",
            "each block has one attention, of the same shape, that goes through transformers' attention interface",
            "take lora, adalora or bottleneck, or a base such as BERT, RoBERTa, Llama or Qwen",
        )
    )


def _heads(key: Tensor) -> tuple[int, int]:
    return key.shape[1], key.shape[3]


def put_in(model: PreTrainedModel, chosen: list[Spot], start: Tensor, dropout: float) -> Table:
    """The table (V, 2·layers·heads·size), its parts on the chosen attention modules of `model`."""
    body = cast("PreTrainedModel", model.base_model)
    table = Table(start.to(model.device), dropout).train(model.training)
    body.add_module("prefix", table)
    for row, spot in enumerate(chosen):
        setattr(model.get_submodule(spot.name), NAME, Prefix(table, row, spot.heads, spot.size))
    model.config._attn_implementation = NAME
    parameters = inspect.signature(body.forward).parameters
    if "position_ids" in parameters:
        body.register_forward_pre_hook(_behind_the_prefix, with_kwargs=True)
    return table


def _behind_the_prefix(body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Counts the positions of the text from V on, where PEFT's cache puts them."""
    if not body.prefix.enabled:
        return None
    n_before = body.prefix.prompt_embeddings.shape[0]
    if kwargs.get("position_ids") is not None:
        return args, {**kwargs, "position_ids": kwargs["position_ids"] + n_before}
    ids = args[0] if args else kwargs.get("input_ids")
    embeddings: Any = getattr(body, "embeddings", None)
    if ids is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):  # RoBERTa: padding keeps its own
        positions = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx, n_before)
        return args, {**kwargs, "position_ids": positions}
    like = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
    past = kwargs.get("past_key_values")
    first = n_before + (past.get_seq_length() if past is not None else 0)
    positions = torch.arange(like.shape[1], device=like.device)[None] + first
    _check_room(body, embeddings, like.shape[1], first)
    return args, {**kwargs, "position_ids": positions}


def _check_room(body: Any, embeddings: Any, n_tokens: int, first: int) -> None:
    rows = getattr(embeddings, "position_embeddings", None)
    if torch.compiler.is_compiling() or not isinstance(rows, nn.Embedding) or first + n_tokens <= rows.num_embeddings:
        return
    raise ModelError(
        problem(
            "tune.max_tokens",
            f"{n_tokens} tokens and a prefix of {first} are more than the base has positions for",
            f"together at most {rows.num_embeddings}, as {type(body).__name__} has them",
            "lower tune.max_tokens or method.virtual_tokens",
        )
    )


@contextlib.contextmanager
def switched_off(model: PreTrainedModel, table: Table, attention: str) -> Iterator[None]:
    """Within it the model attends as it did before, to the bit."""
    table.enabled = False
    try:
        with _attending(model, attention):
            yield
    finally:
        table.enabled = True
