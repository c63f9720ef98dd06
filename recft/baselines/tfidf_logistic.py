"""TF-IDF + logistic regression: the class of a text from its words and runs of 3 to 5 characters.

    x(d, t) = (1 + ln f) * (ln((1 + n) / (1 + n(t))) + 1), words and runs each scaled to length 1
    p(c | d) = softmax over c of (w0(c) + w(c) x(d))
    min over w of -C * sum of ln p(right class | d) + 1 / 2 |w|^2 (w0 aside)

f is how often t stands in d, n the number of texts, n(t) that of texts with t. Salton and Buckley, Term-weighting
approaches in automatic text retrieval (1988); the weights by L-BFGS. Words are `recft.data.text.words`, so Chinese is
read by pairs of characters; runs go over the normalised text, spaces included. Terms are numbered by a checksum
(Weinberger and others, Feature hashing for large scale multitask learning, 2009) into a million places: it is the
same on every machine, and needs no list of words.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known, spans
from recft.data.text import normalise, words
from recft.errors import DataError, problem

if TYPE_CHECKING:
    import torch

    from recft.data.store import Records, Store, Table

__all__ = ["MEMBER", "TfidfLogistic"]

PLACES = 1 << 20
LONGEST = 2_000
_ROUNDS = 200
_FAMILIES = 2  # words, and runs of characters


@dataclass(frozen=True)
class _Terms:
    """Terms of texts: text d has `places[starts[d]:starts[d + 1]]`, those many `times`, each of a family."""

    starts: np.ndarray
    places: np.ndarray
    times: np.ndarray
    families: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Terms:
        starts, places, times, families = [0], list[int](), list[int](), list[int]()
        for text in texts:
            for family, found in enumerate((_hashed("w", words(text)), _hashed("c", _runs(text)))):
                for place, count in sorted(found.items()):
                    places.append(place)
                    times.append(count)
                    families.append(family)
            starts.append(len(places))
        return cls(np.array(starts), np.array(places, np.int64), np.array(times, float), np.array(families, np.int64))


def _hashed(kind: str, terms: Sequence[str]) -> Counter[int]:
    return Counter(zlib.crc32(f"{kind}{term}".encode("utf-8", "surrogatepass")) % PLACES for term in terms)


def _runs(text: str) -> list[str]:
    """Runs of 3 to 5 characters of the first 2,000, with the space before and after."""
    padded = f" {normalise(text)[:LONGEST]} "
    return [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]


def _weighted(terms: _Terms, known_places: np.ndarray, idf: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The texts as sparse vectors over the known places: starts (D + 1,), columns and values."""
    owners, _ = spans(terms.starts[:-1], terms.starts[1:])
    column = np.searchsorted(known_places, terms.places)
    seen = column < len(known_places)
    seen[seen] = known_places[column[seen]] == terms.places[seen]
    owners, column, families = owners[seen], column[seen], terms.families[seen]
    values = (1 + np.log(terms.times[seen])) * idf[column]
    groups = owners * _FAMILIES + families
    n_texts = len(terms.starts) - 1
    lengths = np.sqrt(np.bincount(groups, weights=values**2, minlength=_FAMILIES * n_texts))
    starts = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=n_texts))])
    return starts, column, (values / np.maximum(lengths[groups], 1e-12)).astype(np.float32)


def _times(starts: np.ndarray, columns: np.ndarray, values: np.ndarray, dense: torch.Tensor) -> torch.Tensor:
    """A sparse matrix times a dense one, (D, C)."""
    from torch.nn.functional import embedding_bag

    rows = torch_of(columns.astype(np.int64))
    offsets, weights = torch_of(starts[:-1].astype(np.int64)), torch_of(values)
    if not len(rows) or not len(offsets):
        return dense.new_zeros((len(offsets), dense.shape[1]))
    return embedding_bag(rows, dense, offsets, mode="sum", per_sample_weights=weights)


def torch_of(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor of its own."""
    import torch

    return torch.from_numpy(np.array(array, order="C"))


def _learned(
    sparse: tuple[np.ndarray, np.ndarray, np.ndarray], shares: np.ndarray, n_columns: int, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weights (V, C) and w0 (C,) that minimise the loss above.

    shares: of each class for each text, (D, C), rows summing to 1.
    """
    import torch

    starts, columns, values = sparse
    order = np.argsort(columns, kind="stable")
    owners, _ = spans(starts[:-1], starts[1:])
    turned = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=n_columns))]), owners[order], values[order]
    right = torch_of(shares.astype(np.float32))  # (D, C)
    weights = torch.zeros((n_columns, shares.shape[1]))
    intercept = torch.zeros(shares.shape[1])
    if not len(right):
        return weights.numpy(), intercept.numpy()
    decay = 1 / (c * len(right))  # the loss over C times the number of texts: its tolerances then mean the same
    search = torch.optim.LBFGS(
        [weights, intercept], max_iter=_ROUNDS, history_size=10, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        # By hand: the gradient of the sparse product is the turned matrix times the errors, and needs no graph.
        found = torch.log_softmax(_times(starts, columns, values, weights) + intercept, dim=1)
        errors = (found.exp() - right) / len(right)
        weights.grad = _times(*turned, errors) + decay * weights
        intercept.grad = errors.sum(dim=0)
        return float(-(right * found).sum() / len(right) + 0.5 * decay * (weights**2).sum())

    search.step(loss)
    return weights.numpy(), intercept.numpy()


@dataclass(frozen=True)
class TfidfLogistic:
    """The baseline."""

    tables: tuple[Table, ...] = ("texts",)
    outputs: tuple[str, ...] = ("classes",)
    summary: str = "words and runs of characters, weighed by logistic regression (TF-IDF)"
    grid: tuple[Mapping[str, Any], ...] = ({"c": 10.0}, {"c": 3.0}, {"c": 30.0})
    probabilities: bool = True
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The terms' places, their idf, and the weights of each class."""
        records, n_classes = known.records, len(known.store.item_ids)
        terms = _Terms.of(_texts(records, np.arange(len(records))))
        owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
        yes = records.grades > 0
        shares = np.zeros((len(records), n_classes))
        shares[owners[yes], records.items[yes]] = 1.0
        labelled = shares.sum(axis=1) > 0
        shares[~labelled] = 1 / max(n_classes, 1)  # a text without a class says nothing
        shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
        places, n_with = np.unique(terms.places, return_counts=True)
        idf = np.log((1 + len(records)) / (1 + n_with)) + 1
        weights, intercept = _learned(_weighted(terms, places, idf), shares, len(places), settings["c"])
        return {"places": places, "idf": idf, "weights": weights, "intercept": intercept}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """The probability of each class, rows summing to 1, (B, C)."""
        terms = _Terms.of(_texts(records, rows))
        found = _times(*_weighted(terms, arrays["places"], arrays["idf"]), torch_of(arrays["weights"]))
        logits = found.numpy().astype(float) + arrays["intercept"]
        logits -= logits.max(axis=1, keepdims=True, initial=-np.inf) if logits.size else 0.0
        shares = np.exp(logits)
        return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


def _texts(records: Records, rows: np.ndarray) -> list[str]:
    if records.queries is None:
        raise DataError(
            problem(
                "eval.baselines",
                "tfidf-logistic has no text to read",
                "tfidf-logistic needs a table of texts",
                "remove tfidf-logistic",
            )
        )
    return [records.queries[row] for row in rows]


MEMBER = TfidfLogistic()
