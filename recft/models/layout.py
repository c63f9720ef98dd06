"""Texts laid out for one pass: what they share is computed once, and none sees another.

Texts that begin alike (all candidates of one history, all positions of one history, a chosen and a rejected reply) form
a tree: each text is a way from its root, and a token sees the tokens on its own way, at the place that it has there. A
causal model then computes for every token what it would compute in that text alone. Trees stand one behind the other in
rows of a few widths, which the least work decides: wide rows leave less padding, narrow ones cost less attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Family", "Layout", "families", "lay_out"]

Array = np.ndarray

WIDTHS = tuple(sorted(part << power for power in range(4, 20) for part in (2, 3)))
"""Widths of rows: few different shapes, so that kernels are set up once."""

SHARED = 0.25
"""Texts stand in one tree where they begin alike for at least this share of the shorter one."""

MOST = 512
"""Tokens of a tree, about: attention within it grows with their square, while a beginning that is read again costs its
length. Four beginnings have room in any tree."""


LONG = 32
"""Tokens of a beginning that is worth keeping as keys and values for many texts."""


@dataclass(frozen=True)
class Layout:
    """One pass: n texts in R rows of T tokens.

    Attributes:
        texts: (n,) the numbers of the texts.
        ids: (R, T) token ids; 0 where nothing stands.
        positions: (R, T) the place of each token in its own text.
        last: (R, T) token k of a row is seen by its tokens q with k <= q < last[k], and by no other.
        ways: the tokens of each text, as places in the flattened rows, one text behind the other.
        starts: (n + 1,) where each text's begin in `ways`.
        n_tokens: how many tokens stand in the rows.
    """

    texts: Array
    ids: Array
    positions: Array
    last: Array
    ways: Array
    starts: Array
    n_tokens: int

    @property
    def ends(self) -> Array:
        """(n,) the last token of each text, as a place in the flattened rows."""
        ends: Array = self.ways[self.starts[1:] - 1]
        return ends


@dataclass(frozen=True)
class _Tree:
    """Some texts that begin alike, in the order of a walk that goes down first: M tokens; fields as in `Layout`."""

    texts: list[int]
    ids: Array
    positions: Array
    last: Array
    ways: list[Array]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Family:
    """More texts of one beginning than a tree holds.

    Attributes:
        texts: the numbers of the texts.
        common: how many tokens they all begin with.
    """

    texts: list[int]
    common: int


def families(sequences: Sequence[Sequence[int]]) -> list[Family]:
    """The families among some texts: their beginning is long, and what comes after it would fill several trees.

    sequences: token ids of each text, one at least.
    """
    order, shared = _sorted(sequences)
    found: list[Family] = []

    def size(start: int, stop: int, common: int) -> int:
        return sum(len(sequences[text]) - common for text in order[start:stop])

    def collect(start: int, stop: int, outer: int) -> list[int]:
        """The texts of a run that no family has taken, after the families inside it."""
        common = min(shared[start + 1 : stop], default=0)
        if common - outer < LONG or size(start, stop, common) <= 2 * MOST:
            return order[start:stop]
        ends = [place for place in range(start + 1, stop) if shared[place] == common]
        own = [text for low, high in pairwise([start, *ends, stop]) for text in collect(low, high, common)]
        if len(own) > 1:
            found.append(Family(own, common))
        return []

    ends = [place for place in range(1, len(order)) if shared[place] < LONG]
    for low, high in pairwise([0, *ends, len(order)]):
        collect(low, high, 0)
    return found


def lay_out(sequences: Sequence[Sequence[int]], chunk_tokens: int, attention_tokens: float) -> list[Layout]:
    """Passes that compute all texts, each text in one of them.

    Args:
        sequences: token ids of each text, one at least.
        chunk_tokens: of a pass; a tree that is longer has a pass of its own.
        attention_tokens: a row of so many tokens costs as much in attention as in everything else.
    """
    rows = _rows(_trees(sequences), attention_tokens) if sequences else {}
    passes = []
    for width in sorted(rows, reverse=True):
        every, most = rows[width], max(1, chunk_tokens // width)
        n_passes = -(-len(every) // most)
        # Of like size, so that all of a width have one shape, or two.
        bounds = [len(every) * number // n_passes for number in range(n_passes + 1)]
        passes += [_layout(every[low:high], width) for low, high in pairwise(bounds)]
    return passes


def _trees(sequences: Sequence[Sequence[int]]) -> list[_Tree]:
    order, shared = _sorted(sequences)
    trees: list[_Tree] = []
    start, size = 0, 0
    for place, text in enumerate(order):
        length, common = len(sequences[text]), shared[place]
        alike = common >= SHARED * min(length, len(sequences[order[place - 1]]))
        if place > start and not (alike and size + length - common <= max(MOST, 4 * common)):
            trees.append(_tree(sequences, order[start:place], shared[start:place]))
            start = place
        size = length if place == start else size + length - common
    if order:
        trees.append(_tree(sequences, order[start:], shared[start:]))
    return trees


def _sorted(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The texts in order of their tokens, and with how many tokens each begins as the one before it."""
    keys = [np.asarray(sequence, ">u4").tobytes() for sequence in sequences]  # bytes sort as the numbers would
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    return order, _shared([sequences[text] for text in order])


def _shared(ordered: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each text begins with as the one before it does; 0 for the first."""
    lengths = np.array([len(sequence) for sequence in ordered], np.int64)
    if len(lengths) < 2:
        return [0] * len(lengths)
    flat = np.concatenate([np.asarray(sequence, np.int64) for sequence in ordered])
    starts = np.cumsum(lengths) - lengths
    least = np.minimum(lengths[:-1], lengths[1:])
    firsts = np.cumsum(least) - least
    place = np.arange(int(least.sum())) - np.repeat(firsts, least)
    equal = flat[np.repeat(starts[:-1], least) + place] == flat[np.repeat(starts[1:], least) + place]
    until = np.where(equal, np.repeat(least, least), place)
    return [0, *np.minimum.reduceat(until, firsts).tolist()]


def _tree(sequences: Sequence[Sequence[int]], texts: list[int], shared: list[int]) -> _Tree:
    """The tree of some texts in order; `shared` says how each begins as the one before it."""
    ids, positions, ways = [], [], []
    way, size = np.zeros(0, np.int64), 0
    last = np.zeros(sum(len(sequences[text]) for text in texts), np.int64)
    for number, text in enumerate(texts):
        kept = shared[number] if number else 0
        new = np.asarray(sequences[text][kept:], np.int64)
        last[way[kept:]] = size  # this text does not go through them, and no later one does
        way = np.concatenate([way[:kept], np.arange(size, size + len(new))])
        ids.append(new)
        positions.append(np.arange(kept, kept + len(new)))
        ways.append(way)
        size += len(new)
    last[way] = size
    return _Tree(texts, np.concatenate(ids), np.concatenate(positions), last[:size], ways)


def _rows(trees: list[_Tree], attention_tokens: float) -> dict[int, list[list[_Tree]]]:
    """The rows of each width, of all ways that were tried the one with the least work."""
    ordered = sorted(trees, key=len, reverse=True)
    largest, mean = len(ordered[0]), sum(map(len, ordered)) / len(ordered)
    found: dict[int, list[list[_Tree]]] = {}
    least = np.inf
    for width in WIDTHS:
        if width < mean:
            continue
        rows = _packed(ordered, width)
        work = sum(len(some) * width * (1 + width / attention_tokens) for width, some in rows.items())
        if work < least:
            found, least = rows, work
        filled = mean * len(ordered) / sum(len(some) * width for width, some in rows.items())
        if filled > 0.98 or width >= max(largest, 2 * MOST):
            break  # wider rows would only cost more attention
    return found


def _packed(ordered: list[_Tree], narrowest: int) -> dict[int, list[list[_Tree]]]:
    """Each tree in the row that it fills best, the largest trees first (best fit decreasing); by the rows' width."""
    most = next(width for width in WIDTHS if width >= max(narrowest, len(ordered[0])))
    rows: dict[int, list[list[_Tree]]] = {}
    with_room: list[list[list[_Tree]]] = [[] for _ in range(most + 1)]
    any_with = np.zeros(most + 1, bool)
    for tree in ordered:
        size = len(tree)
        room = size + int(np.argmax(any_with[size:]))
        if any_with[room]:
            row = with_room[room].pop()
            any_with[room] = bool(with_room[room])
        else:
            room = next(width for width in WIDTHS if width >= max(size, narrowest))
            row = []
            rows.setdefault(room, []).append(row)
        row.append(tree)
        with_room[room - size].append(row)
        any_with[room - size] = True
    return rows


def _layout(rows: list[list[_Tree]], width: int) -> Layout:
    shape = len(rows), width
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    last = np.tile(np.arange(1, width + 1), (len(rows), 1))  # nothing sees padding but itself
    texts: list[int] = []
    ways: list[Array] = []
    n_tokens = 0
    for row, some in enumerate(rows):
        start = 0
        for tree in some:
            here = slice(start, start + len(tree))
            ids[row, here], positions[row, here], last[row, here] = tree.ids, tree.positions, tree.last + start
            texts += tree.texts
            ways += [way + row * width + start for way in tree.ways]
            start += len(tree)
        n_tokens += start
    starts = np.cumsum([0, *(len(way) for way in ways)])
    return Layout(np.array(texts, np.int64), ids, positions, last, np.concatenate(ways), starts, n_tokens)
