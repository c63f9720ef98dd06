"""The exam that a split sets, and the systems that sit it: a model, an exported one or a classic row, all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.errors import ModelError, problem
from recft.schema import EvalSettings, TaskSettings
from recft.tasks._base import Task, Text, scored

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
]

Encode = Callable[[Sequence[Text]], np.ndarray]
"""Texts -> (N, K) float32."""

BLOCK_SCORES = 1 << 24
"""Scores of a block of records: 64 MiB of float32."""


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


@dataclass(frozen=True)
class System:
    """What scores the records of an exam.

    Attributes:
        block: rows (B,) -> the score of every item, (B, N); of classes their probabilities. None where a system scores
            the records' own pairs alone.
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
        every = np.stack([_every(exam, encode, int(row)) for row in rows])  # (R, N)
        return System(lambda part: every[part], lambda part: own_scores(records, part, every[part]))
    contexts = encode(task.contexts(config, records, rows, exam.items))  # (R, D)
    if exam.candidates == "judged":
        used, place = np.unique(records.items, return_inverse=True)
        vectors = encode(task.candidates(config, [exam.items[item] for item in used]))[place]  # (P, D)
        owners = np.repeat(rows, np.diff(records.offsets))
        products = np.einsum("pd,pd->p", contexts[owners], vectors)
        return System(None, lambda part: products[places(records, part)])
    catalogue = encode(task.candidates(config, exam.items))  # (N, D)

    def block(part: np.ndarray) -> np.ndarray:
        found: np.ndarray = contexts[part] @ catalogue.T
        return found

    return System(block, lambda part: own_scores(records, part, block(part)))


def _written(exam: Exam, encoder: Any) -> System:
    """A likelihood model's scores of the whole catalogue: exact, or of what a beam search writes."""
    records, n_items = exam.records, len(exam.items)
    bodies = exam.task.contexts(exam.config, records, np.arange(len(records)), exam.items)
    tails = exam.task.candidates(exam.config, exam.items)
    way, _, beams = exam.settings.decoding.partition(" ")
    if way == "exact":
        every = encoder.catalogue(bodies, tails)  # (R, N)
        return System(lambda part: every[part], lambda part: own_scores(records, part, every[part]))
    items, scores = encoder.generated(bodies, tails, int(beams), way == "free")  # (R, beams)

    def block(part: np.ndarray) -> np.ndarray:
        found = np.full((len(part), n_items + 2), -np.inf, np.float32)
        # -1 and -2, no item and an invalid one, land in the two last columns.
        np.put_along_axis(found, items[part], scores[part], axis=1)
        return found[:, :n_items]

    invalid = np.where(items == -2, scores, -np.inf) if way == "free" else None
    return System(block, lambda part: own_scores(records, part, block(part)), invalid=invalid)


def _every(exam: Exam, encode: Encode, row: int) -> np.ndarray:
    """The score of every item for one record, read together with it, (N,)."""
    alone = exam.records.take(np.array([row])).with_every(len(exam.items))
    texts = exam.task.pairs(exam.config, alone, np.zeros(1, int), exam.items)
    found = exam.task.scores(exam.config, encode(texts))
    return np.asarray(found[:, 0] if found.ndim == 2 else found, np.float32)


def classic_system(
    exam: Exam, scores: Callable[[Records, np.ndarray], np.ndarray], probabilities: bool = False
) -> System:
    """A classic row as a system: `scores` gives every item's score for some rows, (B, N)."""

    def block(part: np.ndarray) -> np.ndarray:
        return np.asarray(scores(exam.records, part), np.float32)

    def pairs(part: np.ndarray) -> np.ndarray:
        parts = [own_scores(exam.records, some, block(some)) for some in blocks(part, len(exam.items))]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    return System(block, pairs, probabilities)


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
    size = max(1, BLOCK_SCORES // max(n_items, 1))
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
