"""BM25: how often the query's words stand in an item's text, rare words counting more.

    score(q, d) = sum over words w of q of idf(w) * f / (f + k1 * (1 - b + b * |d| / mean |d|))
    idf(w) = ln(1 + (N - n + 1/2) / (n + 1/2))

f is how often w stands in d, n the number of items with w, N that of all items; k1 0.9 and b 0.4 suit short texts and
stand first in the grid. Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009); the
idf is the one that is never negative. The constant factor k1 + 1 is left out: it moves no rank. A word that stands
twice in the query counts twice. Words are `recft.data.text.words`, so Chinese is searched by pairs of characters.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.data.text import words
from recft.errors import DataError, problem

if TYPE_CHECKING:
    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "Bm25", "Index"]


@dataclass(frozen=True)
class Index:
    """The catalogue, word by word: word v stands in `items[starts[v]:starts[v + 1]]` with those `weights`."""

    vocabulary: dict[str, int]
    starts: np.ndarray
    items: np.ndarray
    weights: np.ndarray
    n_items: int

    @classmethod
    def build(cls, texts: Iterable[str], k1: float = 0.9, b: float = 0.4) -> Index:
        """The index of the texts, in their order."""
        vocabulary: dict[str, int] = {}
        tokens, lengths = array("q"), array("q")
        for text in texts:
            found = words(text)
            lengths.append(len(found))
            tokens.extend(vocabulary.setdefault(word, len(vocabulary)) for word in found)
        size = np.array(lengths, dtype=np.int64)  # (N,)
        # One number for each (word, item), so that one sort gives the postings and their counts together.
        keys = np.array(tokens, dtype=np.int64) * max(len(size), 1) + np.repeat(np.arange(len(size)), size)
        keys, counts = np.unique(keys, return_counts=True)
        owners, items = np.divmod(keys, max(len(size), 1))
        n_with = np.bincount(owners, minlength=len(vocabulary))
        idf = np.log1p((len(size) - n_with + 0.5) / (n_with + 0.5))
        length_norm = k1 * (1 - b + b * size / max(size.mean() if len(size) else 0.0, 1e-9))
        return cls(
            vocabulary=vocabulary,
            starts=np.concatenate([[0], np.cumsum(n_with)]),
            items=items,
            weights=idf[owners] * counts / (counts + length_norm[items]),
            n_items=len(size),
        )

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """The score of every item for each query, (len(queries), N), float32; 0 where no word is shared."""
        out = np.zeros((len(queries), self.n_items), dtype=np.float32)
        row = np.empty(self.n_items)
        for i, query in enumerate(queries):
            row.fill(0.0)
            # In order of the word's number: items with equal words then get equal sums, hence exact ties.
            for word, times in sorted(Counter(self._known(query)).items()):
                span = slice(self.starts[word], self.starts[word + 1])
                row[self.items[span]] += times * self.weights[span]
            out[i] = row
        return out

    def _known(self, query: str) -> list[int]:
        return [self.vocabulary[word] for word in words(query) if word in self.vocabulary]


@dataclass(frozen=True)
class Bm25:
    """The baseline; it is fitted on the catalogue's text alone and sees no judgement."""

    tables: tuple[Table, ...] = ("queries", "texts")
    outputs: tuple[str, ...] = ("ranking",)
    summary: str = "shared words, rare ones counting more"
    grid: tuple[Mapping[str, Any], ...] = (
        {"k1": 0.9, "b": 0.4},
        {"k1": 0.4, "b": 0.2},
        {"k1": 1.2, "b": 0.75},
        {"k1": 2.0, "b": 0.4},
    )
    probabilities: bool = False
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The index of the catalogue."""
        index = Index.build(known.store.item_texts, settings["k1"], settings["b"])
        # As bytes: an array of strings gives every word the room of the longest.
        spelled = "\n".join(index.vocabulary).encode()
        return {
            "words": np.frombuffer(spelled, np.uint8),
            "starts": index.starts,
            "items": index.items,
            "weights": index.weights,
        }

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The sum over the query's words, for every item.

        Raises:
            DataError: the records have no query.
        """
        if records.queries is None:
            raise DataError(
                problem("eval.baselines", "bm25 has no query to read", "bm25 needs a queries table", "remove bm25")
            )
        spelled = arrays["words"].tobytes().decode()
        vocabulary = {word: number for number, word in enumerate(spelled.split("\n") if spelled else [])}
        index = Index(vocabulary, arrays["starts"], arrays["items"], arrays["weights"], len(store.item_ids))
        return index.scores([records.queries[row] for row in rows])


MEMBER = Bm25()
