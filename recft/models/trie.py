"""All items of a catalogue as one tree of their tokens: what they share is computed once, what is none is never met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from recft.errors import ModelError, problem

__all__ = ["NOTHING", "Piece", "Trie", "spread"]

NOTHING = -1
"""No node: the root's parent and token, and what a token leads to where no item goes on with it."""

Array = np.ndarray


@dataclass(frozen=True)
class Piece:
    """Some nodes of a trie that are computed together: each with all its ancestors, so that nothing else is needed.

    Attributes:
        token: (M,) of each node, in the order of a walk that goes down first; the first is the root.
        depth: (M,) tokens from the root.
        first: (M,) the node's place in the walk over the whole trie.
        last: (M,) where its subtree ends there: i descends from j, or is j, where first[j] <= first[i] < last[j].
        row: (E,) ascending: which of the M each new edge starts from.
        leads: (E,) the token on it.
        child: (E,) the node that it leads to. Each node but the root is the child of one edge of one piece.
    """

    token: Array
    depth: Array
    first: Array
    last: Array
    row: Array
    leads: Array
    child: Array


@dataclass(frozen=True)
class Trie:
    """A trie in tensors. Nodes are numbered level by level, brothers by token: children stand next to each other.

    Attributes:
        token: (n,) the token that leads to each node; the root is node 0.
        parent: (n,) the node before it.
        depth: (n,) its tokens from the root.
        children: (n + 1,) node i's children are the nodes `children[i]` to `children[i + 1]`.
        held: (n + 1,) the items that end at node i are `items[held[i]:held[i + 1]]`.
        items: (N,) item numbers, ascending within a node: equal texts end at one node.
        end_id: the token that closes every item, or None where the sequences came with their own ends.
    """

    token: Tensor
    parent: Tensor
    depth: Tensor
    children: Tensor
    held: Tensor
    items: Tensor
    end_id: int | None

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], end_id: int | None = None) -> Trie:
        """The trie of the items' tokens; with `end_id` behind each, no item ends inside another.

        Raises:
            ModelError: there is no sequence, or one without a token.
        """
        lengths = np.fromiter((len(sequence) for sequence in sequences), np.int64, len(sequences))
        _refuse(lengths)
        flat = np.fromiter(chain.from_iterable(sequences), np.int64, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        if end_id is not None:
            flat = np.insert(flat, starts + lengths, end_id)
            starts, lengths = starts + np.arange(len(lengths)), lengths + 1
        token, parent, depth, ends = _levels(flat, starts, lengths)
        n_children = np.bincount(parent[1:], minlength=len(token))
        n_items = np.bincount(ends, minlength=len(token))
        return cls(
            torch.from_numpy(token),
            torch.from_numpy(parent),
            torch.from_numpy(depth),
            torch.from_numpy(np.concatenate([[1], 1 + np.cumsum(n_children)])),
            torch.from_numpy(np.concatenate([[0], np.cumsum(n_items)])),
            torch.from_numpy(np.argsort(ends, kind="stable")),
            end_id,
        )

    def to(self, device: torch.device) -> Trie:
        """The same on a device."""
        if device == self.token.device:
            return self
        tensors = (self.token, self.parent, self.depth, self.children, self.held, self.items)
        token, parent, depth, children, held, items = (tensor.to(device) for tensor in tensors)
        return Trie(token, parent, depth, children, held, items, self.end_id)

    @property
    def n_nodes(self) -> int:
        """The root counts."""
        return len(self.token)

    @cached_property
    def n_inner(self) -> int:
        """Nodes with children: those that a model computes, the root among them."""
        return int((self.children.diff() > 0).sum())

    @cached_property
    def node_of_item(self) -> Tensor:
        """(N,) the node at which each item ends."""
        found = torch.empty_like(self.items)
        found[self.items] = torch.repeat_interleave(self.held.diff())
        return found

    @cached_property
    def levels(self) -> list[tuple[int, int]]:
        """The first node of each depth and the one after its last, root first."""
        sizes = torch.bincount(self.depth).tolist()
        ends = np.cumsum(sizes).tolist()
        return [(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    @cached_property
    def _keys(self) -> Tensor:
        # Ascending, because nodes are numbered by parent, then by token.
        return self.parent * self._base + self.token

    @cached_property
    def _base(self) -> int:
        return int(self.token.max()) + 1

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """Where each token leads from each node; `NOTHING` from `NOTHING`, and where no item goes on like this."""
        wanted = nodes * self._base + tokens
        found = torch.searchsorted(self._keys, wanted).clamp(max=self.n_nodes - 1)
        right = (self._keys[found] == wanted) & (tokens < self._base)  # larger ones would be another node's
        return torch.where(right, found, NOTHING)

    @cached_property
    def _walk(self) -> tuple[Array, Array, Array]:
        """The inner nodes in the order of a walk, and (n,) each one's place in it and the size of its subtree."""
        children = self.children.cpu().numpy()
        inner = np.diff(children) > 0
        size, place = inner.astype(np.int64), np.zeros(self.n_nodes, np.int64)
        below = []  # sums over the children's sizes, for the way down
        for low, high in reversed(self.levels):
            sums = np.concatenate([[0], np.cumsum(size[children[low] : children[high]])])
            before = children[low : high + 1] - children[low]
            size[low:high] += np.diff(sums[before])
            below.append((sums, before))
        for (low, high), (sums, before) in zip(self.levels, reversed(below), strict=True):
            counts = np.diff(before)
            earlier = sums[:-1] - np.repeat(sums[before[:-1]], counts)
            place[children[low] : children[high]] = np.repeat(place[low:high], counts) + 1 + earlier
        order = np.empty(int(inner.sum()), np.int64)
        order[place[inner]] = np.flatnonzero(inner)
        return order, place, size

    def pieces(self, most: int) -> list[Piece]:
        """The inner nodes in pieces of at most `most`, or a little more where an item is longer than half of it.

        A piece is a stretch of the walk and the ancestors of its first node: all others' ancestors lie in it.
        """
        order, place, size = self._walk
        parent, children = self.parent.cpu().numpy(), self.children.cpu().numpy()
        token, depth = self.token.cpu().numpy(), self.depth.cpu().numpy()
        found, start = [], 0
        while start < len(order):
            above: list[int] = []
            node = parent[order[start]]
            while node != NOTHING:
                above.append(node)
                node = parent[node]
            new = order[start : start + max(most - len(above), most // 2, 1)]
            start += len(new)
            nodes = np.concatenate([np.array(above[::-1], np.int64), new])
            counts = children[new + 1] - children[new]
            row = np.repeat(np.arange(len(above), len(nodes)), counts)
            child = np.repeat(children[new], counts) + spread(counts)
            first = place[nodes]
            found.append(Piece(token[nodes], depth[nodes], first, first + size[nodes], row, token[child], child))
        return found


def spread(counts: Array) -> Array:
    """0 to c - 1 for each count c, one behind the other.

    >>> spread(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    starts = np.cumsum(counts) - counts
    ranks: Array = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return ranks


def _refuse(lengths: Array) -> None:
    if not len(lengths):
        raise ModelError(problem("trie", "no sequences", "a catalogue has one item at least", "add items"))
    if not lengths.all():
        row = int(lengths.argmin())
        raise ModelError(
            problem(
                "trie", f"sequence {row} has no token", "every item's text has one token at least", "give it a text"
            )
        )


def _levels(flat: Array, starts: Array, lengths: Array) -> tuple[Array, Array, Array, Array]:
    """Token, parent and depth of each node, and at which node each sequence ends.

    One sort a level: memory is that of the tokens, however much longer one sequence is than the others.
    """
    base = int(flat.max()) + 1
    at = np.zeros(len(lengths), np.int64)
    tokens, parents, sizes = [np.array([NOTHING])], [np.array([NOTHING])], [1]
    rows, n_nodes = np.arange(len(lengths)), 1
    while len(rows):
        depth = len(sizes) - 1
        keys, which = np.unique(at[rows] * base + flat[starts[rows] + depth], return_inverse=True)
        at[rows] = n_nodes + which
        n_nodes += len(keys)
        tokens.append(keys % base)
        parents.append(keys // base)
        sizes.append(len(keys))
        rows = rows[lengths[rows] > depth + 1]
    return np.concatenate(tokens), np.concatenate(parents), np.repeat(np.arange(len(sizes)), sizes), at
