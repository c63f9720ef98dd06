"""Many continuations of one body in one pass: a causal model whose tokens see what a mask says, behind a cache.

The body goes through the model once and stays as keys and values. What follows is packed: every token sees the body
and those packed tokens that come before it in its own continuation, at the position that it has there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from recft.errors import ModelError, problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "NOT_FOR_THIS",
    "Before",
    "additive",
    "batches_by_length",
    "check",
    "fault",
    "hidden_of",
    "narrowest_window",
    "read",
]

PAD_TO = 8
"""Bodies are rounded up to a multiple of this: few different shapes, so that kernels are set up once."""

NOT_FOR_THIS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)
"""What an architecture raises that cannot be read like this."""

_faults: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


class _Steady(DynamicLayer):
    """The keys and values of bodies, or of nothing: what comes after them is seen in one pass and not kept."""

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_initialized = keys, values, keys is not None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


@dataclass(frozen=True)
class Before:
    """What was read before the packed tokens: all of each body but its last token.

    Attributes:
        cache: keys and values, (B, heads, W, size) a layer; padding stands between a body and what follows it.
        lengths: (B,) real tokens of each row.
        width: W.
        last: (B,) the token that was left: the first of the packed ones.
    """

    cache: Cache
    lengths: Tensor
    width: int
    last: Tensor

    def repeated(self, n_rows: int) -> Before:
        """The one row that was read, for `n_rows` rows of what follows."""
        kept = [[part.expand(n_rows, -1, -1, -1) for part in _of(layer)] for layer in self.cache.layers]
        layers: list[Any] = [_Steady(*parts) for parts in kept]
        lengths, last = self.lengths.expand(n_rows), self.last.expand(n_rows)
        return Before(Cache(layers=layers), lengths, self.width, last)


def _of(layer: Any) -> tuple[Tensor, ...]:
    return () if layer.keys is None else (layer.keys, layer.values)


def read(base: PreTrainedModel, bodies: Sequence[Sequence[int]], keep: bool = False) -> Before:
    """Passes the bodies through the model; `keep` says whether the cache grows with what follows.

    Raises:
        ModelError: a body has no token.
    """
    if not all(len(body) for body in bodies):
        raise ModelError(
            problem("body", "no token before the first token of an item", "one token at least", "put in a begin token")
        )
    lengths = torch.tensor([len(body) - 1 for body in bodies], device=base.device)
    width = -(-int(lengths.max()) // PAD_TO) * PAD_TO
    last = torch.tensor([body[-1] for body in bodies], device=base.device)
    cache: Cache = DynamicCache()
    if width:
        ids = torch.tensor([[*body[:-1], *[body[-1]] * (width + 1 - len(body))] for body in bodies], device=base.device)
        # Without a mask: real tokens are left of the padding, and see none of it.
        _body(base)(input_ids=ids, past_key_values=cache, use_cache=True)
    if not keep:
        layers: list[Any] = list(cache.layers) or [_Steady()] * base.config.get_text_config().num_hidden_layers
        cache = Cache(layers=[_Steady(layer.keys, layer.values) for layer in layers])
    return Before(cache, lengths, width, last)


def batches_by_length(bodies: Sequence[Sequence[int]], packed: int, chunk_tokens: int) -> list[list[int]]:
    """Row numbers, shortest bodies first, in batches whose bodies and whose packed tokens are within `chunk_tokens`."""
    batches: list[list[int]] = []
    for row in sorted(range(len(bodies)), key=lambda row: len(bodies[row])):
        if batches and (len(batches[-1]) + 1) * max(len(bodies[row]), packed) <= chunk_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _body(base: PreTrainedModel) -> Any:
    return base.base_model


def hidden_of(base: PreTrainedModel, before: Before, ids: Tensor, depth: Tensor, sees: Tensor) -> Tensor:
    """The last hidden states of packed tokens, (B, M, D).

    Args:
        base: a causal model in evaluation mode.
        before: what they stand behind.
        ids: (B, M).
        depth: (B, M) how many packed tokens come before each in its continuation.
        sees: (B, M, S) which of the S packed tokens so far each of these sees; it sees itself.
    """
    n_tokens = ids.shape[1]
    body = torch.arange(before.width, device=ids.device)[None] < before.lengths[:, None]  # (B, W)
    mask = additive(base, torch.cat([body[:, None].expand(-1, n_tokens, -1), sees], dim=-1))
    positions = before.lengths[:, None] + depth
    hidden: Tensor = _body(base)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=before.cache, use_cache=True
    ).last_hidden_state
    return hidden


def additive(base: PreTrainedModel, sees: Tensor) -> Tensor:
    """A mask of who sees whom, (B, M, S), as attention adds it: (B, 1, M, S) in the activations' dtype."""
    # Added, not true and false: eager attention would take these for numbers.
    dtype = _dtype(base)
    mask = torch.zeros(len(sees), 1, *sees.shape[1:], dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees[:, None], torch.finfo(dtype).min)


def _dtype(base: PreTrainedModel) -> torch.dtype:
    # Of the activations: an adapter's parameters are float32, and k-bit weights are integers.
    dtype: torch.dtype = base.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    return dtype


def narrowest_window(base: PreTrainedModel, longest: int) -> int:
    """How far back the base's tokens see: `longest`, or less where attention slides."""
    config = base.config.get_text_config()
    return min(getattr(config, name, None) or longest for name in ("sliding_window", "attention_chunk_size"))


def check(base: PreTrainedModel, longest: int) -> None:
    """Makes sure that packed tokens come out as they do alone: not every architecture heeds a mask.

    Args:
        base: tried with a few tokens, once.
        longest: tokens of the longest body and what follows it: a sliding window must be wider.

    Raises:
        ModelError: they do not.
    """
    what = fault(base, longest)
    if what is not None:
        raise ModelError(
            problem(
                "model.base",
                f"{type(base).__name__} cannot read many items behind one history ({what})",
                "its attention takes a mask and positions for every token",
                "take a Llama- or Qwen-like base, or shorter texts where a window is too small",
            )
        )


def fault(base: PreTrainedModel, longest: int) -> str | None:
    """Why packed tokens do not come out as they do alone; None where they do. As `check` takes them."""
    window = narrowest_window(base, longest)
    if longest > window:
        return f"{longest} tokens, and a sliding window of {window}"
    if base not in _faults:
        _faults[base] = _tried(base)
    return _faults[base]


@torch.no_grad()
def _tried(base: PreTrainedModel) -> str | None:
    body, first, second = [1, 3, 2, 4], [2, 5], [3, 2]
    try:
        alone = torch.stack([_alone(base, [*body, *tail]) for tail in (first, second)])
        ids = torch.tensor([[body[-1], *first, *second]], device=base.device)
        depth = torch.tensor([[0, 1, 2, 1, 2]], device=base.device)
        sees = torch.eye(5, dtype=torch.bool, device=base.device)
        for place, earlier in ((1, 0), (2, 0), (2, 1), (3, 0), (4, 0), (4, 3)):
            sees[place, earlier] = True
        packed = hidden_of(base, read(base, [body]), ids, depth, sees[None])[0, [2, 4]].float()
    except NOT_FOR_THIS as error:
        return type(error).__name__
    off = float((packed - alone).abs().max() / alone.abs().max())
    return None if off < (0.1 if _dtype(base).itemsize == 2 else 0.01) else f"they come out {off:.0%} off"


def _alone(base: PreTrainedModel, ids: list[int]) -> Tensor:
    hidden: Tensor = _body(base)(input_ids=torch.tensor([ids], device=base.device), use_cache=False).last_hidden_state
    return hidden[0, -1].float()
