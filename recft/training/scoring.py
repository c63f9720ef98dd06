"""What a function of texts scores on a split: the same for the base, the tuned model, and an exported one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recft import registry
from recft.metrics import _base as metrics
from recft.metrics._ranks import concat, ranks_of, ranks_of_pairs
from recft.schema import EvalSettings, TaskSettings
from recft.tasks._base import Task, Text

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["Encode", "Exam", "Scored", "few_records", "score_model", "score_rows"]

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
        settings: candidates and masks.
        top: how many items of each ranking are kept for people to read.
    """

    task: Task
    config: TaskSettings
    records: Records
    items: Sequence[str]
    names: tuple[str, ...]
    settings: EvalSettings
    top: int = 20


@dataclass(frozen=True)
class Scored:
    """What one row of the table scored.

    Attributes:
        values: metric -> score.
        per_record: metric -> score of each record, (R,), NaN where undefined (rankings).
        labels: scored pairs (yes or no).
        n: records (or pairs) that count.
        left_out: records without a relevant candidate, or users with one class.
        top: item numbers of each record's first places, (R, k), -1 beyond its candidates (full rankings).
        top_scores: their scores.
    """

    values: dict[str, float]
    per_record: dict[str, np.ndarray] = field(default_factory=dict)
    labels: metrics.Labels | None = None
    n: int = 0
    left_out: int = 0
    top: np.ndarray | None = None
    top_scores: np.ndarray | None = None


def few_records(exam: Exam, most: int) -> Exam:
    """The exam on at most so many records, spread over the split."""
    records = exam.records
    if len(records) <= most:
        return exam
    chosen = np.linspace(0, len(records) - 1, most).round().astype(int)
    spans = [np.arange(records.offsets[row], records.offsets[row + 1]) for row in chosen]
    pairs = np.concatenate(spans)
    part = replace(
        records,
        keys=[records.keys[row] for row in chosen],
        queries=None if records.queries is None else [records.queries[row] for row in chosen],
        users=None if records.users is None else records.users[chosen],
        starts=None if records.starts is None else records.starts[chosen],
        cuts=None if records.cuts is None else records.cuts[chosen],
        times=None if records.times is None else records.times[chosen],
        offsets=np.cumsum([0, *(len(span) for span in spans)]),
        items=records.items[pairs],
        grades=records.grades[pairs],
    )
    return replace(exam, records=part)


def score_model(exam: Exam, encode: Encode) -> Scored:
    """What a model scores."""
    if exam.task.output == "labels":
        rows = np.arange(len(exam.records))
        outputs = encode(exam.task.pairs(exam.config, exam.records, rows, exam.items))
        return _labelled(exam, exam.task.scores(outputs))
    rows = np.arange(len(exam.records))
    contexts = encode(exam.task.contexts(exam.config, exam.records, rows, exam.items))  # (R, D)
    if exam.settings.candidates == "judged":
        used, place = np.unique(exam.records.items, return_inverse=True)
        vectors = encode(exam.task.candidates(exam.config, [exam.items[item] for item in used]))[place]  # (P, D)
        owners = np.repeat(rows, np.diff(exam.records.offsets))
        return _judged(exam, np.einsum("pd,pd->p", contexts[owners], vectors))
    catalogue = encode(exam.task.candidates(exam.config, exam.items))  # (N, D)
    return _ranked(exam, lambda part: contexts[part] @ catalogue.T)


def score_rows(exam: Exam, scores: Callable[[Records, np.ndarray], np.ndarray]) -> Scored:
    """What a classic baseline scores: (records, rows) -> (B, N)."""
    if exam.task.output == "ranking" and exam.settings.candidates == "all":
        return _ranked(exam, lambda part: scores(exam.records, part))
    pairs = np.empty(len(exam.records.items), np.float32)
    offsets = exam.records.offsets
    for part in _blocks(len(exam.records), len(exam.items)):
        block = scores(exam.records, part)
        owners = np.repeat(np.arange(len(part)), np.diff(offsets)[part])
        here = slice(offsets[part[0]], offsets[part[-1] + 1])
        pairs[here] = block[owners, exam.records.items[here]]
    return _labelled(exam, pairs, are_probabilities=False) if exam.task.output == "labels" else _judged(exam, pairs)


def _blocks(n_records: int, n_items: int) -> list[np.ndarray]:
    size = max(1, BLOCK_SCORES // max(n_items, 1))
    return [np.arange(start, min(start + size, n_records)) for start in range(0, n_records, size)]


def _ranked(exam: Exam, scores: Callable[[np.ndarray], np.ndarray]) -> Scored:
    """Full rankings, a block of records at a time."""
    records, parts = exam.records, []
    depth = min(exam.top, len(exam.items))
    top = np.full((len(records), depth), -1, np.int32)
    top_scores = np.full((len(records), depth), np.nan, np.float32)
    for part in _blocks(len(records), len(exam.items)):
        block = np.asarray(scores(part), np.float32)
        excluded = np.zeros(block.shape, bool) if exam.settings.mask_history else None
        if excluded is not None:
            for row, record in enumerate(part):
                excluded[row, records.history(int(record))] = True
        offsets = records.offsets[part[0] : part[-1] + 2]
        parts.append(ranks_of(block, offsets, records.items, records.grades, excluded))
        top[part], top_scores[part] = _best(block, excluded, depth)
    return _of_ranks(exam, concat(parts), top, top_scores)


def _best(scores: np.ndarray, excluded: np.ndarray | None, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `depth` items of each row, equal scores by item number, and their scores."""
    shown = scores if excluded is None else np.where(excluded, -np.inf, scores)
    candidates = np.argpartition(-shown, depth - 1, axis=1)[:, :depth]
    found = np.take_along_axis(shown, candidates, axis=1)
    order = np.lexsort((candidates, -found), axis=1)
    best, values = np.take_along_axis(candidates, order, axis=1), np.take_along_axis(found, order, axis=1)
    return np.where(np.isneginf(values), -1, best), values


def _judged(exam: Exam, scores: np.ndarray) -> Scored:
    return _of_ranks(exam, ranks_of_pairs(scores, exam.records.grades, exam.records.offsets))


def _of_ranks(
    exam: Exam, ranks: metrics.Ranks, top: np.ndarray | None = None, top_scores: np.ndarray | None = None
) -> Scored:
    per_record = {}
    for expression in exam.names:
        name, cutoff = metrics.parse(expression, "ranking")
        metric: metrics.Metric = registry.load(metrics.PACKAGE, name)
        assert metric.ranking is not None  # noqa: S101  # parse has seen to it
        per_record[expression] = metric.ranking(ranks, cutoff)
    n = int((ranks.n_relevant > 0).sum())
    values = {name: metrics.mean(scores)[0] for name, scores in per_record.items()}
    return Scored(values, per_record, None, n, len(ranks) - n, top, top_scores)


def _labelled(exam: Exam, scores: np.ndarray, are_probabilities: bool = True) -> Scored:
    records = exam.records
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    clusters = np.unique(np.asarray(records.keys, dtype=object).astype(str), return_inverse=True)[1]
    labels = metrics.Labels(
        scores.astype(np.float64), (records.grades > 0).astype(np.int64), clusters[owners].astype(np.int64)
    )
    values: dict[str, float] = {}
    left_out = 0
    for expression in exam.names:
        metric = pointwise(expression)
        assert metric.pointwise is not None  # noqa: S101  # parse has seen to it
        if metric.needs_probabilities and not are_probabilities:
            values[expression] = np.nan
            continue
        values[expression] = metric.pointwise(labels, np.ones(len(scores)))
        if metric.left_out is not None:
            left_out = metric.left_out(labels)
    return Scored(values, labels=labels, n=len(scores), left_out=left_out)


def pointwise(expression: str) -> Any:
    """The metric object of a pointwise expression."""
    return registry.load(metrics.PACKAGE, metrics.parse(expression, "labels")[0])
