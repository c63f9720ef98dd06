"""Items written out token by token: beam search that can only write items, and one that may write anything.

Beams are rows of tensors. No beam's keys and values are ever copied: all tokens of all beams of a history stay
packed behind it, and what a beam inherits from another is a row of the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recft.errors import ModelError, problem
from recft.models.packed import Before, batches_by_length, check, hidden_of, read
from recft.models.token_log_p import capped, log_p, row_blocks, vocabulary
from recft.models.trie import NOTHING, Trie, spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["INVALID", "generate", "generate_free"]

INVALID = -2
"""Stands for an output that is no item of the catalogue."""

NEVER = -torch.inf


_Found = tuple[np.ndarray, np.ndarray]
"""Items (B, top) and scores (B, top)."""


@dataclass(frozen=True)
class _Edges:
    """What may come next, of all beams of all histories, history by history.

    Attributes:
        history: (E,) ascending.
        origin: (E,) which of the history's beams it goes on from.
        token: (E,).
        node: (E,) where it leads in the trie, or `NOTHING`.
        score: (E,) log p of all tokens up to it.
        ends: (E,) whether an output ends with it.
        goes: (E,) whether a beam can go on with it.
    """

    history: Tensor
    origin: Tensor
    token: Tensor
    node: Tensor
    score: Tensor
    ends: Tensor
    goes: Tensor


class _Beams:
    """The packed tokens of all beams, and which of them each beam has written."""

    def __init__(self, base: PreTrainedModel, bodies: Sequence[Sequence[int]]) -> None:
        self.base = base
        self.before: Before = read(base, bodies, keep=True)
        n = len(bodies)
        self.written = torch.zeros(n, 1, 0, dtype=torch.bool, device=base.device)  # (B, K, S)
        self.depth = 0

    def write(self, origin: Tensor, token: Tensor) -> Tensor:
        """Writes a token each, (B, K), onto the beams `origin` as they were; gives the hidden states, (B, K, D)."""
        n_rows, n_beams = token.shape
        inherited = self.written.gather(1, origin[:, :, None].expand(-1, -1, self.written.shape[2]))
        itself = torch.eye(n_beams, dtype=torch.bool, device=token.device).expand(n_rows, -1, -1)
        self.written = torch.cat([inherited, itself], dim=2)
        hidden = hidden_of(self.base, self.before, token, torch.full_like(token, self.depth), self.written)
        self.depth += 1
        return hidden


@torch.no_grad()
def generate(
    base: PreTrainedModel,
    bodies: Sequence[Sequence[int]],
    trie: Trie,
    beams: int,
    top: int,
    chunk_tokens: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """The best items that a beam search finds, and the sums of log p of their tokens, in nats.

    At each step every beam goes on to all of its children in the trie. Items that end there are kept, `top` of them,
    and take no beam's place; the best `beams` of the rest go on. With as many beams as the trie has nodes with
    children at its widest depth, the items are those of `score_catalogue`.

    Args:
        base: a causal model with its head, in evaluation mode.
        bodies: token ids of each history.
        trie: the catalogue.
        beams: for each history.
        top: how many items are wanted.
        chunk_tokens: tokens of histories and beams at a time; bounds memory.

    Returns:
        Items (B, top) int64, best first, those of equal score by number, -1 where there are no more; scores (B, top)
        float32, -inf there.

    Raises:
        ModelError: the model cannot read packed tokens, or a body is empty.
    """
    trie = trie.to(base.device)
    check(base, max(map(len, bodies), default=0) + int(trie.depth[-1]))
    return _by_batches(bodies, beams, top, chunk_tokens, lambda chosen: _search(base, chosen, trie, beams, top))


@torch.no_grad()
def generate_free(
    base: PreTrainedModel,
    bodies: Sequence[Sequence[int]],
    trie: Trie,
    beams: int = 1,
    top: int = 1,
    max_tokens: int = 64,
    chunk_tokens: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """What the model writes when nothing holds it to the catalogue: greedily with one beam, else by beam search.

    Args:
        base: a causal model with its head, in evaluation mode.
        bodies: token ids of each history.
        trie: the catalogue, built with the token that ends an item.
        beams: for each history.
        top: how many outputs are wanted.
        max_tokens: of an output, its end token among them; what has not ended by then is no item.
        chunk_tokens: tokens of histories and beams at a time; bounds memory.

    Returns:
        As of `generate`, with -2 where an output is no item of the catalogue.

    Raises:
        ModelError: the model cannot read packed tokens, a body is empty, or the trie has no end token.
    """
    if trie.end_id is None:
        raise ModelError(
            problem("trie", "no end token", "an output ends with the token that ends an item", "build it with end_id")
        )
    trie = trie.to(base.device)
    check(base, max(map(len, bodies), default=0) + max_tokens)
    return _by_batches(
        bodies, beams, top, chunk_tokens, lambda chosen: _search(base, chosen, trie, beams, top, max_tokens)
    )


def _by_batches(
    bodies: Sequence[Sequence[int]],
    beams: int,
    top: int,
    chunk_tokens: int,
    search: Callable[[list[Sequence[int]]], _Found],
) -> _Found:
    items = np.full((len(bodies), top), NOTHING, np.int64)
    scores = np.full((len(bodies), top), NEVER, np.float32)
    for rows in batches_by_length(bodies, beams, chunk_tokens):
        items[rows], scores[rows] = search([bodies[row] for row in rows])
    return items, scores


def _search(
    base: PreTrainedModel,
    bodies: Sequence[Sequence[int]],
    trie: Trie,
    beams: int,
    top: int,
    max_tokens: int | None = None,
) -> _Found:
    """Beam search of one batch: inside the trie, or anywhere where `max_tokens` is given."""
    written = _Beams(base, bodies)
    score = torch.zeros(len(bodies), 1, device=base.device)
    node, origin = torch.zeros_like(score, dtype=torch.long), torch.zeros_like(score, dtype=torch.long)
    token = written.before.last[:, None]
    kept = _Kept.none(len(bodies), top, base.device)
    n_steps = int(trie.depth[-1]) if max_tokens is None else max_tokens
    for step in range(n_steps):
        hidden = written.write(origin, token)
        if max_tokens is None:
            edges = _children(base, trie, hidden, node, score)
        else:
            edges = _any_tokens(base, trie, hidden, node, score, beams, step == n_steps - 1)
        kept = kept.and_those_of(trie, edges)
        score, best = _best(edges.history, edges.score.masked_fill(~edges.goes, NEVER), len(bodies), beams)
        origin, token, node = edges.origin[best], edges.token[best], edges.node[best]
        # Log p only falls: where the best beam is below the worst that is kept, nothing better can come.
        score = score.masked_fill(score[:, :1] < kept.score[:, -1:], NEVER)
        if not bool((score > NEVER).any()):
            break
    return _items(trie, kept, top)


def _count(starts: Tensor, node: Tensor) -> Tensor:
    """How many children, or items, each node has; none has `NOTHING`."""
    inside = node.clamp(min=0)
    return torch.where(node >= 0, starts[inside + 1] - starts[inside], 0)


def _children(base: PreTrainedModel, trie: Trie, hidden: Tensor, node: Tensor, score: Tensor) -> _Edges:
    """All children of all living beams. node, score: (B, K)."""
    n_beams = node.shape[1]
    flat = torch.where(score > NEVER, node, NOTHING).flatten()
    counts = _count(trie.children, flat)
    owner = torch.repeat_interleave(counts)
    rank = torch.arange(len(owner), device=node.device) - (counts.cumsum(0) - counts)[owner]
    child = trie.children[flat[owner]] + rank
    token = trie.token[child]
    value = score.flatten()[owner] + log_p(base, hidden.flatten(0, 1), owner, token)
    ends, goes = _count(trie.held, child) > 0, _count(trie.children, child) > 0
    return _Edges(owner // n_beams, owner % n_beams, token, child, value, ends, goes)


def _any_tokens(
    base: PreTrainedModel, trie: Trie, hidden: Tensor, node: Tensor, score: Tensor, beams: int, cut_off: bool
) -> _Edges:
    """The 2·beams best tokens of any kind of each history, best first: enough, however many of them end."""
    assert trie.end_id is not None  # noqa: S101  # `generate_free` has looked
    n_rows, n_beams = node.shape
    width = min(2 * beams, vocabulary(base))  # of one beam
    flat = hidden.flatten(0, 1)
    found = [capped(base, flat[low:high]).log_softmax(dim=1).topk(width) for low, high in row_blocks(base, len(flat))]
    value = score[:, :, None] + torch.cat([part.values for part in found]).view(n_rows, n_beams, width)
    tokens = torch.cat([part.indices for part in found]).view(n_rows, -1)
    values, best = value.view(n_rows, -1).topk(min(2 * beams, n_beams * width))
    origin, token = best // width, tokens.gather(1, best)
    history = torch.arange(n_rows, device=node.device)[:, None].expand_as(best)
    goes = token != trie.end_id
    # An output that would not be among the best beams, were it none, has not been found by them.
    ends = (~goes | cut_off) & (torch.arange(best.shape[1], device=node.device) < beams)
    leads = trie.step(node.gather(1, origin), token)
    return _Edges(*(part.flatten() for part in (history, origin, token, leads, values, ends, goes)))


def _best(history: Tensor, score: Tensor, n_rows: int, most: int) -> tuple[Tensor, Tensor]:
    """Scores and places of each history's best edges, (B, up to `most`), best first; -inf where there are fewer."""
    counts = torch.bincount(history, minlength=n_rows)
    starts = counts.cumsum(0) - counts
    table = score.new_full((n_rows, int(counts.max())), NEVER)
    table[history, torch.arange(len(history), device=history.device) - starts[history]] = score
    values, column = table.topk(min(most, table.shape[1]), dim=1)
    return values, (starts[:, None] + column).clamp(max=len(history) - 1)


@dataclass(frozen=True)
class _Kept:
    """The best outputs so far, best first: the node where each ended, or `INVALID`, or `NOTHING`; (B, top)."""

    node: Tensor
    score: Tensor

    @classmethod
    def none(cls, n_rows: int, top: int, device: torch.device) -> _Kept:
        node = torch.full((n_rows, top), NOTHING, device=device)
        return cls(node, torch.full((n_rows, top), NEVER, device=device))

    def and_those_of(self, trie: Trie, edges: _Edges) -> _Kept:
        score, best = _best(edges.history, edges.score.masked_fill(~edges.ends, NEVER), *self.node.shape)
        # What ends where no item does is none: another text, or the beginning of an item that was cut off.
        output = torch.where(_count(trie.held, edges.node[best]) > 0, edges.node[best], INVALID)
        node = torch.where(score > NEVER, output, NOTHING)
        score, place = torch.cat([self.score, score], dim=1).topk(self.node.shape[1], dim=1)
        return _Kept(torch.cat([self.node, node], dim=1).gather(1, place), score)


def _items(trie: Trie, kept: _Kept, top: int) -> _Found:
    """The items of the kept nodes: all of equal texts, by number."""
    node, score = kept.node.flatten(), kept.score.flatten().cpu().numpy()
    counts = _count(trie.held, node).clamp(max=top) + (node == INVALID)
    owner = torch.repeat_interleave(counts)
    rank = torch.arange(len(owner), device=node.device) - (counts.cumsum(0) - counts)[owner]
    place = (trie.held[node.clamp(min=0)][owner] + rank).clamp(max=len(trie.items) - 1)
    item = torch.where(node[owner] == INVALID, INVALID, trie.items[place]).cpu().numpy()
    owners = owner.cpu().numpy()
    history, value = owners // top, score[owners]
    order = np.lexsort((item, -value, history))
    column = spread(np.bincount(history, minlength=len(kept.node)))
    order, column = order[column < top], column[column < top]
    items = np.full((len(kept.node), top), NOTHING, np.int64)
    scores = np.full((len(kept.node), top), NEVER, np.float32)
    items[history[order], column], scores[history[order], column] = item[order], value[order]
    return items, scores
