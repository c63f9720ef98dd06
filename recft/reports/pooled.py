"""A row of a comparison, pooled over seeds and folds: its scores, and how far it is from another row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recft import registry
from recft.metrics import _base as metrics
from recft.metrics import _intervals as intervals

__all__ = ["Row", "Rules", "difference", "entry"]

Rules = frozenset[tuple[str, str]]
"""Hash of the data, and the task and all else of the protocol, as text."""


@dataclass(frozen=True)
class Row:
    """One row of the comparison, pooled over seeds and folds.

    Attributes:
        name: for people.
        per_record: metric -> mean over seeds of each (fold, record), (R,); rankings.
        labels: the scored pairs of each seed, folds laid side by side; all but rankings.
        names: the metrics of the labels that the row has a score of: a popularity count has no log loss.
        clusters: whose record or pair it is, (R,) or (P,).
        n_runs: how many runs are in it.
        rules: the data and the protocols that it was scored under.
    """

    name: str
    per_record: Mapping[str, np.ndarray]
    labels: Sequence[metrics.Labels]
    names: Sequence[str]
    clusters: np.ndarray
    n_runs: int
    rules: Rules

    def scorer(self, metric: str) -> metrics.PointwiseScore | None:
        """The mean over seeds of a pointwise metric, as a function of pair weights; None where it has none."""
        score = _pointwise(metric)
        return None if score is None else _mean_of(score, self.labels)


def _pointwise(metric: str) -> metrics.PointwiseScore | None:
    member: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(metric)[0])
    return member.pointwise


def _mean_of(score: metrics.PointwiseScore, tables: Sequence[metrics.Labels]) -> metrics.PointwiseScore:
    """The mean of a score over tables of the same pairs, whatever table it is asked for."""
    return lambda _labels, weights: float(np.mean([score(labels, weights) for labels in tables]))


def entry(row: Row) -> dict[str, Any]:
    """The row as a comparison holds it: scores with their intervals."""
    scores: dict[str, float | None] = {}
    ci: dict[str, list[float] | None] = {}
    for metric, values in row.per_record.items():
        defined = values[~np.isnan(values)]
        scores[metric] = float(defined.mean()) if len(defined) else None
        interval = intervals.interval(values, row.clusters)
        ci[metric] = list(interval) if interval else None
    for metric in row.names:
        if (score := row.scorer(metric)) is not None:
            value = score(row.labels[0], np.ones(len(row.clusters)))
            interval = intervals.pointwise_interval(score, row.labels[0])
            scores[metric] = value if value == value else None
            ci[metric] = list(interval) if interval else None
    counted = [int((~np.isnan(values)).sum()) for values in row.per_record.values()]
    return {
        "run": row.name,
        "runs": row.n_runs,
        "n": max(counted, default=len(row.clusters)),
        "scores": scores,
        "ci": ci,
    }


def difference(ours: Row, theirs: Row) -> dict[str, Any]:
    """How far one row is above another on the same records, with p and Holm's p; nothing where they share none."""
    # Other texts of the same items are what is compared; other candidates or masks are another question.
    if {rest for _, rest in ours.rules} != {rest for _, rest in theirs.rules}:
        return {}
    if len(ours.clusters) != len(theirs.clusters) or not (ours.clusters == theirs.clusters).all():
        return {}
    found: dict[str, Any] = {}
    for metric in [name for name in ours.per_record if name in theirs.per_record]:
        pair = ours.per_record[metric], theirs.per_record[metric], ours.clusters
        found[metric] = _as_json(intervals.paired(*pair), intervals.p_value(*pair))
    for metric in [name for name in ours.names if name in theirs.names]:
        if (score := _pointwise(metric)) is not None:
            found[metric] = _of_pairs(score, ours, theirs)
    ps = {metric: one["p"] for metric, one in found.items() if one["p"] is not None}
    for metric, p in intervals.holm(ps).items():
        found[metric]["p_holm"] = p
    return found


def _of_pairs(score: metrics.PointwiseScore, ours: Row, theirs: Row) -> dict[str, Any]:
    """The difference of means over seeds: a user's pairs are drawn, or exchanged, in all seeds at once."""
    mine, other = _mean_of(score, ours.labels), _mean_of(score, theirs.labels)

    def above(labels: metrics.Labels, weights: np.ndarray) -> float:
        return mine(labels, weights) - other(labels, weights)

    everything = np.ones(len(ours.clusters))
    first = ours.labels[0]
    found = intervals.Difference(above(first, everything), intervals.pointwise_interval(above, first), len(everything))
    # Of unlike numbers of seeds each stands beside others in turn, all equally often.
    turns = range(math.lcm(len(ours.labels), len(theirs.labels)))
    tables = [_joined(*(row.labels[turn % len(row.labels)] for row in (ours, theirs))) for turn in turns]
    return _as_json(found, intervals.pointwise_p_value(_mean_of(score, tables), first, theirs.labels[0]))


def _joined(ours: metrics.Labels, theirs: metrics.Labels) -> metrics.Labels:
    """Both rows' pairs in one table, as the test weighs them: ours, then theirs."""
    return metrics.Labels(
        np.concatenate([ours.scores, theirs.scores]),
        np.concatenate([ours.labels, theirs.labels]),
        np.concatenate([ours.groups, theirs.groups]),
    )


def _as_json(found: intervals.Difference, p: float | None) -> dict[str, Any]:
    ci = list(found.interval) if found.interval else None
    return {"mean": found.mean, "ci": ci, "n": found.n, "p": p, "p_holm": None}
