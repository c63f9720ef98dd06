"""The exam that a split sets, and the systems that sit it: a model, an exported one or a classic row, all alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.errors import ModelError, problem
from recft.schema import EvalSettings, TaskSettings
from recft.tasks._base import Task, Text, scored
from recft.training.kept_scores import KeptScores

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = [
    "Encode",
    "Exam",
    "System",
    "blocks",
    "classic_system",
    "corrected",
    "few_records",
    "model_system",
    "need_block",
    "own_scores",
    "places",
    "product",
]

Encode = Callable[[Sequence[Text]], np.ndarray]
"""Texts -> (N, K) float32."""

BLOCK_SCORES, LEAST_ROWS = 1 << 22, 16
"""Scores of a block of records: 16 MiB of float32, which a processor's last cache holds; but so many records at least,
for which a product reads the catalogue's vectors once."""

KEPT_SCORES = 1 << 24
"""Scores of records that are computed together where what comes before the first one is dear."""


@dataclass(frozen=True)
class Exam:
    """What is asked: the records of a split, and how they are scored.

    Attributes:
        task: the task's object.
        config: its settings.
        records: the split.
        items: texts of the catalogue by item number.
        names: metrics, such as `ndcg@10`.
        settings: gain and masks.
        candidates: `all`, `judged` or `sampled N`: what rankings are of.
        popularity: training events of each item, (N,); for metrics of lists.
        top: how many items of each ranking are kept for people to read.
        known_of_items: what metrics of lists have found out of the catalogue, for all rows of a table.
    """

    task: Task
    config: TaskSettings
    records: Records
    items: Sequence[str]
    names: tuple[str, ...]
    settings: EvalSettings
    candidates: str = "all"
    popularity: np.ndarray | None = None
    top: int = 20
    known_of_items: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class System:
    """What scores the records of an exam.

    Attributes:
        block: rows (B,) -> the score of every item, (B, N); of classes their probabilities. None where a system scores
            the records' own pairs alone. What it gives is only looked at: others may be given the same array.
        pairs: rows (B,) -> the score of the rows' own pairs, in order, (P,); of a likelihood (P, 2).
        probabilities: whether scores mean what they say: probabilities or numbers, not only an order.
        invalid: where the system writes freely, the scores of each record's outputs that were no item of the
            catalogue, (R, O), -inf for those that were: they take the places of items.
    """

    block: Callable[[np.ndarray], np.ndarray] | None
    pairs: Callable[[np.ndarray], np.ndarray]
    probabilities: bool = True
    invalid: np.ndarray | None = None


def corrected(system: System, correct: Callable[[np.ndarray], np.ndarray]) -> System:
    """The system with its probabilities corrected."""
    block = system.block
    return replace(
        system,
        block=None if block is None else lambda rows: correct(block(rows)),
        pairs=lambda rows: correct(system.pairs(rows)),
    )


def few_records(exam: Exam, most: int) -> Exam:
    """The exam on at most so many records, spread over the split."""
    if len(exam.records) <= most:
        return exam
    chosen = np.linspace(0, len(exam.records) - 1, most).round().astype(int)
    return replace(exam, records=exam.records.take(chosen))


def model_system(exam: Exam, encode: Encode) -> System:
    """A model as a system; all its outputs are computed here, so that it may change afterwards."""
    task, config, records = exam.task, exam.config, exam.records
    rows, reads = np.arange(len(records)), exam.task.reads(exam.config)
    if reads == "contexts":
        found = task.scores(config, encode(task.contexts(config, records, rows, exam.items)))  # (R, C)
        return System(lambda part: found[part], lambda part: own_scores(records, part, found[part]))
    if reads == "pairs" and (task.output != "ranking" or exam.candidates == "judged"):
        found = scored(
            task, config, encode(task.pairs(config, records, rows, exam.items)), records, rows
        )  # (P,) or (P, 2)
        return System(None, lambda part: found[places(records, part)])
    # A task that has contexts of their own lets all items share them; others are read item by item.
    if reads == "pairs" and hasattr(task, "contexts") and hasattr(encode, "catalogue"):
        return _written(exam, encode)
    if reads == "pairs":
        return _kept(exam, (_every(exam, encode, int(row))[None] for row in rows))
    contexts = encode(task.contexts(config, records, rows, exam.items))  # (R, D)
    # What has a cache of items' vectors reads those it knows there.
    encode = getattr(encode, "items", encode)
    if exam.candidates == "judged":
        used, place = np.unique(records.items, return_inverse=True)
        vectors = encode(task.candidates(config, [exam.items[item] for item in used]))[place]  # (P, D)
        owners = np.repeat(rows, np.diff(records.offsets))
        products = np.einsum("pd,pd->p", contexts[owners], vectors)
        return System(None, lambda part: products[places(records, part)])
    multiply = product(encode(task.candidates(config, exam.items)))  # (N, D)
    return _by_blocks(exam, lambda part: multiply(contexts[part]))


def product(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What gives the products of contexts (B, D) with all N vectors (N, D), (B, N) float32."""
    import torch

    # Columns that lie one after the other are multiplied faster, and few rows at a time most of all.
    columns = torch.from_numpy(np.ascontiguousarray(vectors.T, np.float32))  # (D, N)

    def multiply(contexts: np.ndarray) -> np.ndarray:
        found = np.empty((len(contexts), columns.shape[1]), np.float32)
        torch.mm(torch.from_numpy(np.ascontiguousarray(contexts, np.float32)), columns, out=torch.from_numpy(found))
        return found

    return multiply


def _written(exam: Exam, encoder: Any) -> System:
    """A likelihood model's scores of the whole catalogue: exact, or of what a beam search writes."""
    records, n_items = exam.records, len(exam.items)
    bodies = exam.task.contexts(exam.config, records, np.arange(len(records)), exam.items)
    tails = exam.task.candidates(exam.config, exam.items)
    way, _, beams = exam.settings.decoding.partition(" ")
    if way == "exact":
        size = max(1, KEPT_SCORES // max(n_items, 1))
        parts = (bodies[start : start + size] for start in range(0, len(bodies), size))
        return _kept(exam, (encoder.catalogue(part, tails) for part in parts))
    items, scores = encoder.generated(bodies, tails, int(beams), way == "free")  # (R, beams)

    def block(part: np.ndarray) -> np.ndarray:
        found = np.full((len(part), n_items + 2), -np.inf, np.float32)
        # -1 and -2, no item and an invalid one, land in the two last columns.
        np.put_along_axis(found, items[part], scores[part], axis=1)
        return found[:, :n_items]

    invalid = np.where(items == -2, scores, -np.inf) if way == "free" else None
    return replace(_by_blocks(exam, block), invalid=invalid)


def _every(exam: Exam, encode: Encode, row: int) -> np.ndarray:
    """The score of every item for one record, read together with it, (N,)."""
    alone = exam.records.take(np.array([row])).with_every(len(exam.items))
    texts = exam.task.pairs(exam.config, alone, np.zeros(1, int), exam.items)
    found = exam.task.scores(exam.config, encode(texts))
    return np.asarray(found[:, 0] if found.ndim == 2 else found, np.float32)


def _kept(exam: Exam, found: Iterable[np.ndarray]) -> System:
    """Scores (B, N) of one block of records after the other as a system."""
    every = KeptScores(len(exam.records), len(exam.items))
    for scores in found:
        every.add(scores)
    return _by_blocks(exam, every)


def _by_blocks(exam: Exam, compute: Callable[[np.ndarray], np.ndarray], probabilities: bool = True) -> System:
    """What computes a block of records as a system; pairs too are read from blocks, one at a time."""
    block = _Latest(compute)

    def pairs(part: np.ndarray) -> np.ndarray:
        parts = [own_scores(exam.records, some, block(some)) for some in blocks(part, len(exam.items))]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    return System(block, pairs, probabilities)


class _Latest:
    """Scores of rows, computed once for all that ask with the same array, for as long as that lives.

    Sums read the blocks of systems that have rows of their own in the table.
    """

    def __init__(self, compute: Callable[[np.ndarray], np.ndarray]) -> None:
        self._compute = compute
        self._rows: weakref.ref[np.ndarray] | None = None
        self._found: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self._found is not None and self._rows is not None and self._rows() is rows:
            return self._found
        self._found = None  # not held while the next ones are computed
        found = self._compute(rows)
        self._rows, self._found = weakref.ref(rows, self._forget), found
        return found

    def _forget(self, rows: weakref.ref[np.ndarray]) -> None:
        if rows is self._rows:
            self._rows = self._found = None


def classic_system(
    exam: Exam, scores: Callable[[Records, np.ndarray], np.ndarray], probabilities: bool = False
) -> System:
    """A classic row as a system: `scores` gives every item's score for some rows, (B, N)."""
    return _by_blocks(exam, lambda part: np.asarray(scores(exam.records, part), np.float32), probabilities)


def places(records: Records, rows: np.ndarray) -> np.ndarray:
    """The places of the rows' own pairs, in order."""
    sizes = np.diff(records.offsets)[rows]
    starts = records.offsets[rows] - np.r_[0, np.cumsum(sizes)[:-1]] if len(rows) else np.zeros(0, int)
    found: np.ndarray = np.arange(sizes.sum()) + np.repeat(starts, sizes)
    return found


def own_scores(records: Records, rows: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The scores of the rows' own pairs from those of every item."""
    owners = np.repeat(np.arange(len(rows)), np.diff(records.offsets)[rows])
    found: np.ndarray = block[owners, records.items[places(records, rows)]]
    return found


def blocks(rows: np.ndarray, n_items: int) -> list[np.ndarray]:
    """The rows in parts whose scores of every item can be held at once."""
    size = max(LEAST_ROWS, BLOCK_SCORES // max(n_items, 1))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def need_block(exam: Exam, system: System) -> Callable[[np.ndarray], np.ndarray]:
    """The system's scores of every item.

    Raises:
        ModelError: it scores the records' own candidates alone.
    """
    if system.block is None:
        raise ModelError(
            problem(
                "eval.candidates",
                f"{exam.candidates}",
                "this needs the score of every item",
                "set eval.candidates: all",
            )
        )
    return system.block
