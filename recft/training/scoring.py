"""What a system scores on an exam: its metrics over all records, and of each."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recft import registry
from recft.metrics import _base as metrics
from recft.metrics._ranks import gains, ranks_of_pairs
from recft.training.ahead import Ahead
from recft.training.block_ranking import BlockRanking, Candidates, candidates_of
from recft.training.exam import Encode, Exam, System, blocks, model_system, need_block

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["Scored", "label_values", "pointwise", "ranking_values", "score", "score_all", "score_model"]


AHEAD_BYTES = 1 << 29
"""Of scores in memory at a time, up to which the next ones are computed while these are ranked."""


@dataclass(frozen=True)
class Scored:
    """What one row of the table scored.

    Attributes:
        values: metric -> score.
        per_record: metric -> score of each record, (R,), NaN where undefined (rankings).
        labels: scored pairs (all but rankings).
        probabilities: whether their scores mean what they say.
        pairs: which of the records' pairs each of them is.
        ranks: where relevant items stand (rankings).
        n: records (or pairs) that count.
        left_out: records without a relevant candidate, or users with one class.
        top: item numbers of each record's first places, (R, k), -1 beyond its candidates (full rankings).
        top_scores: their scores.
    """

    values: dict[str, float]
    per_record: dict[str, np.ndarray] = field(default_factory=dict)
    labels: metrics.Labels | None = None
    probabilities: bool = True
    pairs: np.ndarray | None = None
    ranks: metrics.Ranks | None = None
    n: int = 0
    left_out: int = 0
    top: np.ndarray | None = None
    top_scores: np.ndarray | None = None


def score_model(exam: Exam, encode: Encode) -> Scored:
    """What a model scores."""
    return score(exam, model_system(exam, encode))


def score(exam: Exam, system: System) -> Scored:
    """What a system scores."""
    return score_all(exam, {"": system})[""]


def score_all(exam: Exam, systems: Mapping[str, System]) -> dict[str, Scored]:
    """What several systems score; a block of scores that several of them read, as sums do, is computed once."""
    import torch

    if exam.task.output != "ranking" or exam.candidates == "judged":
        return {name: _score(exam, system) for name, system in systems.items()}
    depth = max(exam.top, metrics.depth(exam.names))
    judged = any(_metric(name, "ranking").of_judged for name in exam.names)
    threads = torch.get_num_threads()
    rankings = {name: BlockRanking(exam, system, depth, judged) for name, system in systems.items()}
    parts = blocks(np.arange(len(exam.records)), len(exam.items))

    def computed(number: int) -> tuple[Candidates, dict[str, np.ndarray]]:
        part = parts[number]
        return candidates_of(exam, part), {name: need_block(exam, system)(part) for name, system in systems.items()}

    # Ranking is one thread's work: the other cores compute the next scores, where those of two parts have room.
    held = 2 * 4 * len(systems) * len(exam.items) * max(map(len, parts), default=0)
    with contextlib.closing(Ahead(computed, len(parts), threads > 1 and held <= AHEAD_BYTES)) as ahead:
        for number, part in enumerate(parts):
            candidates, scores = ahead.take(number)
            for name, ranking in rankings.items():
                ranking.add(part, scores.pop(name), candidates, threads)
    found = {}
    for name in systems:
        done = rankings.pop(name)  # one at a time: what is put together is as large as its parts
        found[name] = _of_ranks(exam, done.ranks, done.judged if judged else None, done.top, done.top_scores)
    return found


def _score(exam: Exam, system: System) -> Scored:
    rows = np.arange(len(exam.records))
    if exam.task.output == "ranking":
        return _of_pairs(exam, system.pairs(rows))
    if exam.task.output == "classes":
        assert system.block is not None  # noqa: S101  # what reads contexts has one
        right = _right(exam.records)
        truth = exam.records.items[right].astype(np.int64)
        owners = np.searchsorted(exam.records.offsets, right, side="right") - 1
        return _labelled(exam, system.block(owners), truth, right, system.probabilities)
    found, every = system.pairs(rows), np.arange(len(exam.records.items))
    if exam.task.output == "likelihood":
        right = np.flatnonzero(exam.records.grades > 0)
        return _labelled(exam, found[right, 0], found[right, 1], right, True)
    truth = exam.records.grades if exam.task.output == "values" else (exam.records.grades > 0).astype(np.int64)
    return _labelled(exam, found, truth, every, system.probabilities)


def _right(records: Records) -> np.ndarray:
    """The pair of each record's right class, (R,)."""
    right = np.flatnonzero(records.grades > 0)
    owners = np.searchsorted(records.offsets, right, side="right") - 1
    return right[np.unique(owners, return_index=True)[1]]


def _of_pairs(exam: Exam, scores: np.ndarray) -> Scored:
    """Rankings of each record's own candidates."""
    records = exam.records
    scores = scores[:, 0] if scores.ndim == 2 else scores
    ranks = ranks_of_pairs(scores, gains(records.grades, exam.settings.gain), records.offsets)
    judged = ranks_of_pairs(scores, np.ones(len(scores)), records.offsets)
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    order = np.lexsort((records.items, -scores, owners))
    place = np.arange(len(order)) - records.offsets[owners]
    depth = max(exam.top, metrics.depth(exam.names))
    top = np.full((len(records), depth), -1, np.int32)
    top_scores = np.full((len(records), depth), np.nan, np.float32)
    shown = place < depth
    top[owners[shown], place[shown]] = records.items[order[shown]]
    top_scores[owners[shown], place[shown]] = scores[order[shown]]
    return _of_ranks(exam, ranks, judged, top, top_scores)


def _of_ranks(
    exam: Exam, ranks: metrics.Ranks, judged: metrics.Ranks | None, top: np.ndarray, top_scores: np.ndarray
) -> Scored:
    values, per_record = ranking_values(exam, ranks, judged, top)
    n = int((ranks.n_relevant > 0).sum())
    return Scored(values, per_record, ranks=ranks, n=n, left_out=len(ranks) - n, top=top, top_scores=top_scores)


def ranking_values(
    exam: Exam, ranks: metrics.Ranks, judged: metrics.Ranks | None, top: np.ndarray | None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The exam's metrics of a ranking: over all records, and of each record where a metric has such a score.

    Metrics of judged items or of lists are left out where these are not given.
    """
    values: dict[str, float] = {}
    per_record: dict[str, np.ndarray] = {}
    popularity = np.zeros(len(exam.items), np.int64) if exam.popularity is None else exam.popularity
    for expression in exam.names:
        cutoff = metrics.parse(expression, "ranking")[1]
        metric = _metric(expression, "ranking")
        found: np.ndarray | float
        if metric.ranking is not None:
            chosen = judged if metric.of_judged else ranks
            if chosen is None:
                continue
            found = metric.ranking(chosen, cutoff)
        elif top is not None:
            assert metric.lists is not None  # noqa: S101  # parse has seen to it
            found = metric.lists(metrics.Lists(top, popularity, exam.items, exam.known_of_items), cutoff)
        else:
            continue
        if isinstance(found, np.ndarray):
            per_record[expression] = found
            values[expression] = metrics.mean(found)[0]
        else:
            values[expression] = float(found)
    return values, per_record


def _metric(expression: str, output: metrics.Output) -> metrics.Metric:
    found: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(expression, output)[0])
    return found


def _labelled(exam: Exam, scores: np.ndarray, truth: np.ndarray, pairs: np.ndarray, probabilities: bool) -> Scored:
    owners = np.searchsorted(exam.records.offsets, pairs, side="right") - 1
    clusters = np.unique(np.asarray(exam.records.keys, dtype=object).astype(str), return_inverse=True)[1]
    labels = metrics.Labels(scores.astype(np.float64), truth, clusters[owners].astype(np.int64))
    values = label_values(exam, labels, probabilities)
    left_out = 0
    for expression in exam.names:
        count = pointwise(expression, exam.task.output).left_out
        left_out = count(labels) if count is not None else left_out
    return Scored(values, labels=labels, probabilities=probabilities, pairs=pairs, n=len(labels), left_out=left_out)


def label_values(exam: Exam, labels: metrics.Labels, probabilities: bool = True) -> dict[str, float]:
    """The exam's metrics over scored pairs; NaN for those that want probabilities where there are none."""
    values: dict[str, float] = {}
    for expression in exam.names:
        metric = pointwise(expression, exam.task.output)
        assert metric.pointwise is not None  # noqa: S101  # parse has seen to it
        if metric.needs_probabilities and not probabilities:
            values[expression] = np.nan
        else:
            values[expression] = metric.pointwise(labels, np.ones(len(labels)))
    return values


def pointwise(expression: str, output: str = "labels") -> Any:
    """The metric object of a pointwise expression."""
    return registry.load(metrics.PACKAGE, metrics.parse(expression, output)[0])  # type: ignore[arg-type]
