"""The trie of a catalogue: against a tree of dictionaries, walks, pieces, speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import ModelError
from recft.models.trie import NOTHING, Trie

END = 9
SEQUENCES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=20)


def slow(sequences: list[list[int]]) -> list[tuple[tuple[int, ...], list[int]]]:
    """Every node as the tokens to it, in the trie's order, with the items that end there."""
    paths = {tuple(sequence[:n]) for sequence in sequences for n in range(len(sequence) + 1)}
    ordered = sorted(paths, key=lambda path: (len(path), path))
    return [(path, [i for i, sequence in enumerate(sequences) if tuple(sequence) == path]) for path in ordered]


def paths_of(trie: Trie) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, trie.n_nodes):
        paths.append((*paths[int(trie.parent[node])], int(trie.token[node])))
    return paths


@given(SEQUENCES, st.booleans())
def test_it_is_the_tree_of_all_beginnings(sequences: list[list[int]], closed: bool) -> None:
    trie = Trie.build(sequences, END if closed else None)
    expected = slow([[*sequence, END] for sequence in sequences] if closed else sequences)
    paths = paths_of(trie)
    assert paths == [path for path, _ in expected]
    assert trie.depth.tolist() == [len(path) for path in paths]
    for node, (path, items) in enumerate(expected):
        assert trie.items[trie.held[node] : trie.held[node + 1]].tolist() == items
        children = range(int(trie.children[node]), int(trie.children[node + 1]))
        assert [paths[child] for child in children] == [p for p, _ in expected if p[:-1] == path and p]
        if closed and items:
            assert not children, "no item ends inside another"
    for item, node in enumerate(trie.node_of_item.tolist()):
        assert list(paths[node]) == [*sequences[item], END][: len(paths[node])]
    assert [trie.depth[low:high].unique().tolist() for low, high in trie.levels] == [
        [d] for d in range(len(trie.levels))
    ]


@given(SEQUENCES)
def test_a_step_leads_where_some_item_goes_on_and_else_to_nothing(sequences: list[list[int]]) -> None:
    trie = Trie.build(sequences, END)
    paths = paths_of(trie)
    nodes, tokens = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(-1, len(paths)), torch.arange(12), indexing="ij")
    )
    for node, token, led in zip(nodes.tolist(), tokens.tolist(), trie.step(nodes, tokens).tolist(), strict=True):
        wanted = (*paths[node], token) if node != NOTHING else None
        assert led == (paths.index(wanted) if wanted in paths else NOTHING)


@given(SEQUENCES, st.integers(1, 12))
def test_pieces_hold_every_inner_node_with_its_ancestors(sequences: list[list[int]], most: int) -> None:
    trie = Trie.build(sequences, END)
    paths = paths_of(trie)
    met: list[int] = []
    for piece in trie.pieces(most):
        assert len(piece.token) <= max(most, most // 2 + int(trie.depth.max()), int(trie.depth.max()) + 1)
        assert piece.depth[0] == 0
        sees = (piece.first[None] <= piece.first[:, None]) & (piece.first[:, None] < piece.last[None])
        assert (np.diff(piece.row) >= 0).all()
        for row, token, child in zip(piece.row, piece.leads, piece.child, strict=True):
            above = [int(t) for t in piece.token[sees[row]][1:]]
            assert (*above, token) == paths[child], "what a node sees are its ancestors and itself"
            assert piece.depth[row] == len(above)
        met += piece.child.tolist()
    assert sorted(met) == list(range(1, len(paths)))


@pytest.mark.parametrize(("sequences", "words"), [([], "no sequences"), ([[1], []], "sequence 1 has no token")])
def test_what_has_no_tokens_is_refused(sequences: Any, words: str) -> None:
    with pytest.raises(ModelError, match=rf"trie: {words}.*rule:.*fix:"):
        Trie.build(sequences, END)


def test_a_long_title_among_many_short_ones_costs_its_own_length_only() -> None:
    draw = np.random.default_rng(0)
    sequences = draw.integers(0, 5000, (20_000, 8)).tolist()
    sequences.append(list(range(3000)))
    begun = time.perf_counter()
    trie = Trie.build(sequences, 5000)
    pieces = trie.pieces(1024)
    assert time.perf_counter() - begun < 5
    assert int(trie.depth.max()) == 3001
    assert sum(len(piece.child) for piece in pieces) == trie.n_nodes - 1
    assert trie.n_inner == trie.n_nodes - 20_001
