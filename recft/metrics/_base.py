"""What every metric meets, and the two small tables that metrics are computed from.

`Ranks` says where relevant items stand, which is all a ranking metric needs; `Labels` holds scored yes-or-no
pairs. Ties count as the expected value over random order within the tie, in closed form and never by the order
of a file (McSherry and Najork, Computing information retrieval performance measures efficiently in the presence
of tied scores, 2008).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from recft import registry
from recft.errors import ModelError, RecipeError, problem

__all__ = [
    "Labels",
    "Metric",
    "PointwiseScore",
    "RankingScore",
    "Ranks",
    "Sorted",
    "Ties",
    "mean",
    "parse",
    "refuse_nan",
]

PACKAGE = "recft.metrics"


@dataclass(frozen=True)
class Ties:
    """The groups of tied candidates that hold a relevant item, by record and from the best score down.

    Attributes:
        records: the record of each group, (G,).
        greater: candidates above the group, (G,).
        tied: candidates in the group, (G,).
        relevant: relevant items in the group, (G,).
        before: relevant items above the group, (G,).
        of: the group of each relevant item, (P,).
    """

    records: np.ndarray
    greater: np.ndarray
    tied: np.ndarray
    relevant: np.ndarray
    before: np.ndarray
    of: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """Where the relevant items of each record stand among its candidates.

    Attributes:
        offsets: record r owns the relevant items `offsets[r]:offsets[r + 1]`, (R + 1,), int64.
        grades: of each relevant item, above 0, (P,), float64.
        greater: candidates that score strictly higher, (P,), int64.
        tied: candidates of the same score, itself counted, (P,), int64.
        n_candidates: (R,), int64.
    """

    offsets: np.ndarray
    grades: np.ndarray
    greater: np.ndarray
    tied: np.ndarray
    n_candidates: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def n_relevant(self) -> np.ndarray:
        """How many relevant items each record has, (R,)."""
        return np.diff(self.offsets)

    @cached_property
    def records(self) -> np.ndarray:
        """The record of each relevant item, (P,)."""
        return np.repeat(np.arange(len(self)), self.n_relevant)

    @cached_property
    def ties(self) -> Ties:
        """The tie groups."""
        order = np.lexsort((self.greater, self.records))  # (P,)
        records, greater = self.records[order], self.greater[order]
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (records[1:] != records[:-1]) | (greater[1:] != greater[:-1])
        first = np.flatnonzero(is_first)  # (G,)
        of = np.empty(len(order), dtype=np.int64)
        of[order] = np.cumsum(is_first) - 1
        return Ties(
            records=records[first],
            greater=greater[first],
            tied=self.tied[order][first],
            relevant=np.diff(first, append=len(order)),
            before=first - self.offsets[records[first]],
            of=of,
        )

    def within(self, cutoff: int | None) -> np.ndarray:
        """The chance that each relevant item stands among the first `cutoff`, (P,)."""
        if cutoff is None:
            return np.ones(len(self.grades))
        chance: np.ndarray = np.clip(cutoff - self.greater, 0, self.tied) / self.tied
        return chance

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum over each record of a value per relevant item, (R,)."""
        totals: np.ndarray = np.bincount(self.records, weights=values, minlength=len(self))
        return totals

    def ratio(self, above: np.ndarray, below: np.ndarray) -> np.ndarray:
        """The quotient, (R,), NaN where a record has no relevant item and so has no score."""
        out = np.full(len(self), np.nan)
        np.divide(above, below, out=out, where=self.n_relevant > 0)
        return out


@dataclass(frozen=True)
class Sorted:
    """An order of pairs, and where each run of equal ones starts in it."""

    order: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class Labels:
    """Scored yes-or-no pairs.

    Attributes:
        scores: (P,), float64; probabilities, unless only AUC is asked for.
        labels: (P,), 0 or 1.
        groups: the cluster (user) of each pair, (P,), int64.

    Raises:
        ModelError: a score is not a number.
    """

    scores: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def __post_init__(self) -> None:
        refuse_nan(self.scores)

    @cached_property
    def by_score(self) -> Sorted:
        """Pairs by score upwards; kept, so that a bootstrap sorts once."""
        order = np.argsort(self.scores, kind="stable")
        return Sorted(order, _run_starts(self.scores[order]))

    @cached_property
    def by_group_and_score(self) -> Sorted:
        """Pairs by group, then by score upwards."""
        order = np.lexsort((self.scores, self.groups))
        return Sorted(order, _run_starts(self.groups[order], self.scores[order]))


RankingScore = Callable[[Ranks, int | None], np.ndarray]
"""(ranks, cutoff) -> the score of each record, (R,), NaN where it has no relevant item."""

PointwiseScore = Callable[[Labels, np.ndarray], float]
"""(labels, weights of the pairs (P,)) -> one score, NaN where it is undefined."""


@dataclass(frozen=True)
class Metric:
    """One metric, as a ranking metric, as a pointwise one, or both.

    Attributes:
        summary: one line for people.
        ranking: the score of each record.
        pointwise: the score of all pairs.
        left_out: how many groups the pointwise score leaves out because it is undefined on them.
        higher_is_better: which way is up.
        needs_cutoff: a ranking score that says nothing without a cutoff.
        needs_probabilities: a pointwise score of more than the order of scores: a popularity count has none.
    """

    summary: str
    ranking: RankingScore | None = None
    pointwise: PointwiseScore | None = None
    left_out: Callable[[Labels], int] | None = None
    higher_is_better: bool = True
    needs_cutoff: bool = False
    needs_probabilities: bool = False


def parse(expression: str, output: Literal["ranking", "labels"] | None = None) -> tuple[str, int | None]:
    """The metric's registered name and the cutoff.

    Args:
        expression: `ndcg@10`, `mrr`, `log_loss`.
        output: what the task's output is; where given, the metric must be able to score it.

    >>> parse("ndcg@10"), parse("log_loss")
    (('ndcg', 10), ('log-loss', None))

    Raises:
        RecipeError: no such metric, no such form, or not for this output.
    """
    match = re.fullmatch(r"([A-Za-z][\w-]*)(?:@([1-9][0-9]{0,8}))?", expression.strip())
    if match is None:
        raise RecipeError(
            problem("metric", f"'{expression}'", "a name, or name@cutoff with a cutoff from 1", "for example ndcg@10")
        )
    metric: Metric = registry.load(PACKAGE, match[1])
    name = match[1].replace("_", "-")
    cutoff = int(match[2]) if match[2] else None
    as_ranking = metric.ranking is not None and (cutoff is not None or not metric.needs_cutoff)
    as_labels = metric.pointwise is not None and cutoff is None
    if not {None: as_ranking or as_labels, "ranking": as_ranking, "labels": as_labels}[output]:
        raise RecipeError(problem(f"metric {expression}", *_misuse(metric, name, output)))
    return name, cutoff


def mean(values: np.ndarray) -> tuple[float, int]:
    """The mean of a score over the records that have one, and how many they are; NaN over none.

    >>> mean(np.array([0.5, np.nan, 1.0]))
    (0.75, 2)
    """
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), len(defined)


def refuse_nan(scores: np.ndarray) -> None:
    """Nothing; a score that is not a number has no place in an order.

    Raises:
        ModelError: there is one.
    """
    n_bad = int(np.isnan(scores).sum())
    if n_bad:
        raise ModelError(
            problem(
                "scores",
                f"{n_bad} of {scores.size} are not a number",
                "every candidate has a score",
                "lower tune.learning_rate, or set model.compute_dtype: float32",
            )
        )


def _misuse(metric: Metric, name: str, output: str | None) -> tuple[str, str, str]:
    """Value, rule and fix for a metric that cannot be computed in the form it was asked for."""
    if output == "labels" and metric.pointwise is None:
        return f"{name} scores rankings", "this task answers yes or no", "take auc, gauc, log_loss or the like"
    if output == "ranking" and metric.ranking is None:
        return f"{name} scores yes-or-no answers", "this task ranks items", "take ndcg@10, recall@20 or the like"
    if metric.needs_cutoff and output != "labels":
        return "has no cutoff", f"{name} of a whole ranking is the same for every model", f"for example {name}@10"
    return "has a cutoff", f"{name} of yes-or-no answers has none", f"write {name}"


def _run_starts(*keys: np.ndarray) -> np.ndarray:
    """Where runs of equal keys start in sorted arrays."""
    is_first = np.zeros(len(keys[0]), dtype=bool)
    is_first[:1] = True
    for key in keys:
        is_first[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(is_first)
