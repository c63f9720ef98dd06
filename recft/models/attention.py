"""Attention for 16-bit models on a CPU, in tiles that stay in its caches; imports torch.

transformers' eager attention goes over the (T, T) scores of all heads a dozen times in float32, torch's own kernel
is slow in its backward pass in 16 bits. Here each tile of scores is made, masked, normalized and used while it is in
the cache, as matrix products of 16 bits that sum in float32. Query heads that share a key head are one product, so
keys are not repeated. Keys that no query of a tile may see are left out: in a wide row of packed texts that is most
of them. What autograd keeps is the probabilities, in the activations' dtype.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LENGTHS", "NAME", "attend", "pays", "put_in"]

NAME = "recft_tiles"
"""The name of our attention in a model's configuration."""

QUERIES = 128
"""Queries of a tile: with fewer the products are too small, with more there are fewer keys to leave out."""

SCORES = 2**20
"""Scores of a tile: 2 MiB in 16 bits, what a core's own cache holds."""

LENGTHS = torch.int32
"""The dtype of a mask that says how long the texts of a row are."""

NEVER = -1e30
"""What is added to a score that no query may see is below this in every dtype that has it; float16's is -65504."""


@dataclass(frozen=True)
class Tile:
    """Rows, queries and keys of one product: each from, up to."""

    rows: slice
    queries: slice
    keys: slice


def pays(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `model`, which knows transformers' attention interface, is faster with ours there."""
    config: Any = model.config.get_text_config()
    plain = getattr(config, "attn_logit_softcapping", None) is None and getattr(model, "_supports_sdpa", False)
    return device.type == "cpu" and dtype.itemsize == 2 and bool(plain)


def put_in(model: PreTrainedModel) -> None:
    """Lets every attention module of `model` compute with ours."""
    model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What the queries read, (B, T, heads, size), and None in the place of probabilities.

    Args:
        module: the attention module.
        query: (B, heads, T, size).
        key: (B, key heads, S, size), S at least T where a cache comes first.
        value: (B, key heads, S, size).
        attention_mask: (B or 1, heads or 1, T, S or more): added to scores, or true where a query may see. Or of one
            row the lengths of texts that stand in it side by side, (1, 1, 1, n) int32: a token sees its own text, all
            of it.
        dropout: of the probabilities; with any the work is left to SDPA.
        scaling: of the scores; 1/√size where absent.
        is_causal: whether without a mask a query sees only what comes before it; the module's own where absent.
        options: what transformers hands on besides.

    Raises:
        ValueError: texts side by side are asked for with what this cannot do.
    """
    if attention_mask is not None and attention_mask.dtype == LENGTHS:
        if dropout or _more_is_asked(None, options) or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
            # To leave the texts to one another would be silently wrong.
            raise ValueError("texts side by side: one row, with nothing before it, and no dropout, bias or cap")
        return _side_by_side(query, key, value, attention_mask, scaling), None
    if (
        dropout
        or query.device.type != "cpu"
        or torch.compiler.is_compiling()
        or _more_is_asked(attention_mask, options)
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **options)
    if attention_mask is not None and attention_mask.shape[2:] != (query.shape[2], key.shape[2]):
        attention_mask = attention_mask[..., : key.shape[2]].expand(-1, -1, query.shape[2], -1)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and query.shape[2] > 1:
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
        attention_mask = seen.tril_(key.shape[2] - query.shape[2])[None, None]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _seen(query, key, value, attention_mask, scale), None


def _seen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return _with_gradients(query, key, value, mask, scale)
    return _forward(query, key, value, mask, scale, _tiles(query, key, mask))[0]


def _more_is_asked(mask: Tensor | None, options: dict[str, Any]) -> bool:
    extras = ("position_bias", "softcap", "cache", "s_aux")
    return (mask is not None and mask.requires_grad) or any(options.get(name) is not None for name in extras)


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scaling: float | None) -> Tensor:
    """Texts of one row that see themselves, without padding: neighbours of one length are a batch of their own.

    Raises:
        ValueError: the lengths are of other tokens.
    """
    batches = [(length, len(list(some))) for length, some in groupby(lengths.flatten().tolist())]
    if sum(length * n for length, n in batches) != query.shape[2]:
        raise ValueError(f"texts side by side: {query.shape[2]} tokens, and lengths of others")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Split, not sliced: a slice's gradient would be as large as the row, for every batch.
    cut = (part[0].split([length * n for length, n in batches], dim=1) for part in (query, key, value))
    found = []
    for (length, n), *parts in zip(batches, *cut, strict=True):
        asked, known, read = (part.unflatten(1, (n, length)).transpose(0, 1) for part in parts)
        found.append(_seen(asked, known, read, None, scale).flatten(0, 1))  # (n·length, heads, size)
    return torch.cat(found)[None]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.tiles, ctx.scale = _tiles(query, key, mask), scale
        out, chances = _forward(query, key, value, mask, scale, ctx.tiles, keep=True)
        ctx.save_for_backward(query, key, value, *chances)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *chances = ctx.saved_tensors
        return (*_backward(out, query, key, value, chances, ctx.scale, ctx.tiles), None, None)


_with_gradients: Callable[..., Tensor] = _Attend.apply


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    tiles: Sequence[Tile],
    keep: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """What is read, (B, T, heads, size), and with `keep` the probabilities of every tile."""
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    chances = []
    for tile in tiles:
        asked, known, read = _asked(query, tile, groups), _known(key, tile), _known(value, tile)
        if mask is None:
            scores = torch.baddbmm(_nothing(asked), asked, known.transpose(1, 2), beta=0, alpha=scale)
        else:
            scores = _added(mask, query, tile, key.shape[1])
            scores.baddbmm_(asked, known.transpose(1, 2), alpha=scale)
        torch.softmax(scores, dim=-1, out=scores)
        _put(out, tile, groups, scores @ read)
        if keep:
            chances.append(scores)
    return out, chances


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chances: Sequence[Tensor],
    scale: float,
    tiles: Sequence[Tile],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, in their shapes and laid out as linear layers want them."""
    groups = query.shape[1] // key.shape[1]
    # A key that several tiles see gathers its gradient, in float32; else each place is written once.
    several = len({tile.queries.start for tile in tiles}) > 1
    of_query = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3])
    of_key, of_value = (_room(part, several) for part in (key, value))
    for tile, chance in zip(tiles, chances, strict=True):
        asked, known, read = _asked(query, tile, groups), _known(key, tile), _known(value, tile)
        sent = _asked(grad.transpose(1, 2), tile, groups)
        _gather(of_value, tile, chance.transpose(1, 2) @ sent, several)
        scores = sent @ read.transpose(1, 2)
        torch.ops.aten._softmax_backward_data.out(scores, chance, -1, chance.dtype, grad_input=scores)
        _put(of_query, tile, groups, torch.baddbmm(_nothing(asked), scores, known, beta=0, alpha=scale))
        part = torch.baddbmm(_nothing(asked), scores.transpose(1, 2), asked, beta=0, alpha=scale)
        _gather(of_key, tile, part, several)
    return of_query.transpose(1, 2), of_key.to(key.dtype).transpose(1, 2), of_value.to(value.dtype).transpose(1, 2)


def _asked(query: Tensor, tile: Tile, groups: int) -> Tensor:
    """A tile's queries, all heads of a key head under one another: (rows·key heads, groups·T', size)."""
    part = query[tile.rows, :, tile.queries]
    return part.reshape(-1, groups * part.shape[2], part.shape[3])


def _known(key: Tensor, tile: Tile) -> Tensor:
    """A tile's keys or values: (rows·key heads, S', size)."""
    return key[tile.rows, :, tile.keys].flatten(0, 1)


def _added(mask: Tensor, query: Tensor, tile: Tile, n_keys: int) -> Tensor:
    """What is added to a tile's scores, (rows·key heads, groups·T', S'), in memory of its own."""
    rows = tile.rows if mask.shape[0] > 1 else slice(None)
    part = mask[rows, :, tile.queries, tile.keys]
    lowest = torch.finfo(query.dtype).min
    if part.dtype == torch.bool:
        part = query.new_zeros(part.shape).masked_fill_(~part, lowest)
    elif part.dtype != query.dtype:
        part = part.clamp(min=lowest)
    groups = query.shape[1] // n_keys
    part = part[:, :, None] if mask.shape[1] == 1 else part.unflatten(1, (n_keys, groups))
    n_rows = tile.rows.stop - tile.rows.start
    scores = query.new_empty(n_rows, n_keys, groups, *part.shape[3:])
    scores.copy_(part)
    return scores.view(n_rows * n_keys, -1, part.shape[4])


def _nothing(like: Tensor) -> Tensor:
    # What baddbmm with beta = 0 does not read.
    return like.new_empty(1, 1, 1)


def _put(out: Tensor, tile: Tile, groups: int, part: Tensor) -> None:
    """Writes a tile's (rows·key heads, groups·T', size) into (B, T, heads, size)."""
    place = out[tile.rows, tile.queries].unflatten(2, (-1, groups)).permute(0, 2, 3, 1, 4)
    place.copy_(part.view(place.shape))


def _room(part: Tensor, several: bool) -> Tensor:
    n_rows, n_heads, n_keys, size = part.shape
    if several:
        return part.new_zeros(n_rows, n_keys, n_heads, size, dtype=torch.float32)
    return part.new_empty(n_rows, n_keys, n_heads, size)


def _gather(out: Tensor, tile: Tile, part: Tensor, several: bool) -> None:
    """Writes or adds a tile's (rows·key heads, S', size) into (B, S, key heads, size)."""
    place = out[tile.rows, tile.keys].transpose(1, 2)
    (place.add_ if several else place.copy_)(part.view(place.shape))


def _tiles(query: Tensor, key: Tensor, mask: Tensor | None) -> list[Tile]:
    """Rows and queries cut so that a tile's scores fit, with the keys that any of its queries may see."""
    n_rows, n_heads, n_queries, _ = query.shape
    n_keys = key.shape[2]
    size = -(-n_queries // -(-n_queries // QUERIES))
    blocks = [slice(start, min(start + size, n_queries)) for start in range(0, n_queries, size)]
    spans = _spans(mask, blocks) if mask is not None and len(blocks) > 1 else [[(0, n_keys)]] * len(blocks)
    step = max(1, SCORES // (n_heads * size * n_keys))
    tiles = []
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        for block, span in zip(blocks, spans, strict=True):
            seen = span[rows] if len(span) > 1 else span
            keys = slice(min(first for first, _ in seen), max(last for _, last in seen))
            tiles.append(Tile(rows, block, keys))
    return tiles


_read: tuple[weakref.ref[Tensor], int, list[list[tuple[int, int]]]] | None = None
"""The mask that was read last, its version and its spans: all layers of a pass have the same one."""


def _spans(mask: Tensor, blocks: Sequence[slice]) -> list[list[tuple[int, int]]]:
    """For every block of queries and every row of the mask: the keys that are seen, from, up to."""
    global _read
    known = _read
    if known is not None and known[0]() is mask and known[1] == mask._version and len(known[2]) == len(blocks):
        return known[2]
    seen = mask if mask.dtype == torch.bool else mask > NEVER
    spans = []
    for block in blocks:
        any_ = seen[:, :, block].any(dim=2).any(dim=1).int()  # (B, S)
        first, after = any_.argmax(dim=1), any_.shape[1] - any_.flip(1).argmax(dim=1)
        # Queries that see nothing are padding: they may read what they like.
        spans.append(list(zip(first.tolist(), after.tolist(), strict=True)))
    _read = (weakref.ref(mask), mask._version, spans)
    return spans


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)
