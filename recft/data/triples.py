"""Knowledge-graph triples as part of an item's text: what is known of it, nearest first, within a budget of words.

Breadth first from the item: its own triples in the file's order, then those of their tails that are heads again. Each
node is followed once an item, so that circles end, and a fact that is met twice is told once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, one_line
from recft.data.items import Catalogue
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.tables import batches
from recft.data.text import words
from recft.schema import TriplesTable

__all__ = ["with_triples"]

_FACTS_A_CHUNK = 256


def with_triples(catalogue: Catalogue, table: TriplesTable, ledger: Ledger) -> tuple[Catalogue, dict[str, Any]]:
    """The catalogue with what the triples say of each item, and the same for the card; bad rows go to the ledger.

    Raises:
        DataError: the file or a column is missing.
    """
    graph = _Graph(_read(table, ledger), table.max_words)
    ids = catalogue.frame["id"]
    nodes = graph.numbers_of(ids)
    found = [graph.told(node, table.hops) for node in nodes.tolist()]
    texts = pl.Series([text or None for text, _, _ in found], dtype=pl.String)
    counts = np.array([count for _, count, _ in found], np.int64)
    card = {
        "triples": len(graph.tails),
        "hops": table.hops,
        "max_words": table.max_words,
        "of_unknown_heads": int((~graph.reached(nodes, table.hops)).sum()),
        "items_with": int((counts > 0).sum()),
        "items_cut_at_max_words": sum(cut for _, _, cut in found),
        "told_an_item": round(float(counts.mean()), 2),
    }
    return catalogue.with_field("data.triples", texts), card


def _read(table: TriplesTable, ledger: Ledger) -> pl.DataFrame:
    """head, relation, tail of every different triple, in the file's order."""
    path = Path(table.path)
    names = {"head": table.head, "relation": table.relation, "tail": table.tail}
    parts = []
    for batch in batches(path, list(names.values()), "data.triples", table.separator):
        rules = torn(batch)
        for part, name in names.items():
            rules.append(Rule(name, f"every triple needs a {part}", pl.col(name).is_null()))
            rules.append(Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)))
        sound = sift(batch, rules, ledger, path.name)
        parts.append(
            sound.select(pl.col(table.head).alias("head"), *(one_line(names[n]).alias(n) for n in ("relation", "tail")))
        )
    rows = pl.concat(parts)
    height = rows.height
    rows = rows.unique(maintain_order=True)
    ledger.dropped["exact duplicates of triples"] += height - rows.height
    return rows


class _Graph:
    """Triples by head: those of node n are `starts[n]:starts[n + 1]` of `relations` and `tails`."""

    def __init__(self, triples: pl.DataFrame, max_words: int) -> None:
        self.nodes = pl.concat([triples["head"], triples["tail"]]).unique(maintain_order=True)
        self.relation_names = triples["relation"].unique(maintain_order=True)
        heads = _numbers(triples["head"], self.nodes)
        order = np.argsort(heads, kind="stable")
        self.starts = np.zeros(len(self.nodes) + 1, np.int64)
        np.cumsum(np.bincount(heads, minlength=len(self.nodes)), out=self.starts[1:])
        self.heads = heads[order]
        self.relations = _numbers(triples["relation"], self.relation_names)[order]
        self.tails = _numbers(triples["tail"], self.nodes)[order]
        self.max_words = max_words
        self._counts: dict[str, int] = {}

    def numbers_of(self, ids: pl.Series) -> NDArray[np.int64]:
        """The node of each id, -1 where no triple names it."""
        return _numbers(ids, self.nodes)

    def told(self, node: int, hops: int) -> tuple[str, int, bool]:
        """What is told of a node, how many triples that is, and whether some were left out for want of words."""
        facts: dict[tuple[int, int], str] = {}
        left = self.max_words
        frontier, met = [node] if node >= 0 else [], {node}
        for _ in range(hops):
            following: list[int] = []
            for here in frontier:
                for fact in self._facts(here):
                    # The way back to the item tells nothing of it.
                    if fact in facts or fact[1] == node:
                        continue
                    text = f"{self.relation_names[fact[0]]}: {self.nodes[fact[1]]}"
                    left -= self._count(text)
                    if left < 0:
                        return "; ".join(facts.values()), len(facts), True
                    facts[fact] = text
                    if fact[1] not in met:
                        met.add(fact[1])
                        following.append(fact[1])
            frontier = following
        return "; ".join(facts.values()), len(facts), False

    def _facts(self, node: int) -> Iterator[tuple[int, int]]:
        """(relation, tail) of a node's triples, a few at a time: most of a large node's are never told."""
        last = int(self.starts[node + 1])
        for first in range(int(self.starts[node]), last, _FACTS_A_CHUNK):
            part = slice(first, min(first + _FACTS_A_CHUNK, last))
            yield from zip(self.relations[part].tolist(), self.tails[part].tolist(), strict=True)

    def _count(self, text: str) -> int:
        """The words of a fact; one of symbols alone counts as one."""
        if text not in self._counts:
            self._counts[text] = max(1, len(words(text)))
        return self._counts[text]

    def reached(self, nodes: NDArray[np.int64], hops: int) -> NDArray[np.bool_]:
        """Whether each triple's head is one of the nodes, or can be come to within the hops."""
        there = np.zeros(len(self.nodes), bool)
        there[nodes[nodes >= 0]] = True
        for _ in range(hops - 1):
            there[self.tails[there[self.heads]]] = True
        reached: NDArray[np.bool_] = there[self.heads]
        return reached


def _numbers(values: pl.Series, known: pl.Series) -> NDArray[np.int64]:
    """The place of each value among the known ones, which are all different; -1 where it is none of them."""
    places = known.alias("value").to_frame().with_row_index("place")
    rows = values.alias("value").to_frame().join(places, on="value", how="left", maintain_order="left")
    return rows["place"].cast(pl.Int64).fill_null(-1).to_numpy()
