"""What every metric meets: of which table it is computed, in which form it is asked for, and which way is up."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recft import registry
from recft.errors import RecipeError, problem
from recft.metrics._tables import Labels, Lists, Ranks, Sorted, Ties, refuse_nan
from recft.schema import Output

__all__ = [
    "Labels",
    "Lists",
    "ListsScore",
    "Metric",
    "Output",
    "PointwiseScore",
    "RankingScore",
    "Ranks",
    "Sorted",
    "Ties",
    "depth",
    "mean",
    "parse",
    "refuse_nan",
]

PACKAGE = "recft.metrics"

_WORDS: dict[str, tuple[str, str]] = {
    "ranking": ("rankings", "ranks items"),
    "labels": ("yes-or-no answers", "answers yes or no"),
    "values": ("predicted numbers", "predicts numbers"),
    "classes": ("classes", "chooses among classes"),
    "likelihood": ("likelihoods", "says how likely replies are"),
}
"""What a metric of each output scores, and what a task of it does."""

RankingScore = Callable[[Ranks, int | None], np.ndarray]
"""(ranks, cutoff) -> the score of each record, (R,), NaN where it has no relevant item."""

PointwiseScore = Callable[[Labels, np.ndarray], float]
"""(labels, weights of the pairs (P,)) -> one score, NaN where it is undefined."""

ListsScore = Callable[[Lists, int | None], np.ndarray | float]
"""(lists, cutoff) -> the score of each record, (R,), NaN where it has no list; or one score of all lists together."""


@dataclass(frozen=True)
class Metric:
    """One metric: of rankings, of scored pairs, of the lists themselves, or of several of these.

    Attributes:
        summary: one line for people.
        ranking: the score of each record.
        pointwise: the score of all pairs.
        lists: the score of what was shown, whether right or wrong.
        left_out: how many groups the pointwise score leaves out because it is undefined on them.
        outputs: the pointwise outputs that it can score.
        of_judged: its ranks are over all judged items, whatever the grade.
        higher_is_better: which way is up.
        needs_cutoff: a score of a ranking or of lists that says nothing without a cutoff.
        needs_probabilities: a pointwise score of more than the order of scores: a popularity count has none.
    """

    summary: str
    ranking: RankingScore | None = None
    pointwise: PointwiseScore | None = None
    lists: ListsScore | None = None
    left_out: Callable[[Labels], int] | None = None
    outputs: tuple[str, ...] = ("labels",)
    of_judged: bool = False
    higher_is_better: bool = True
    needs_cutoff: bool = False
    needs_probabilities: bool = False

    def can_score(self, output: str, with_cutoff: bool) -> bool:
        """Whether it can be computed of an output, with or without a cutoff."""
        if output == "ranking":
            return (self.ranking is not None or self.lists is not None) and (with_cutoff or not self.needs_cutoff)
        return self.pointwise is not None and output in self.outputs and not with_cutoff


def parse(expression: str, output: Output | None = None) -> tuple[str, int | None]:
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
    if not any(metric.can_score(one, cutoff is not None) for one in ([output] if output else _WORDS)):
        raise RecipeError(problem(f"metric {expression}", *_misuse(metric, name, output)))
    return name, cutoff


def depth(expressions: Sequence[str]) -> int:
    """The deepest cutoff of those expressions that are scored on lists: so many places must be kept.

    >>> depth(["ndcg@100", "coverage@10", "novelty@20"])
    20
    """
    parsed = [parse(expression) for expression in expressions]
    return max((cutoff or 0 for name, cutoff in parsed if registry.load(PACKAGE, name).lists is not None), default=0)


def mean(values: np.ndarray) -> tuple[float, int]:
    """The mean of a score over the records that have one, and how many they are; NaN over none.

    >>> mean(np.array([0.5, np.nan, 1.0]))
    (0.75, 2)
    """
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else float("nan")), len(defined)


def _misuse(metric: Metric, name: str, output: str | None) -> tuple[str, str, str]:
    """Value, rule and fix for a metric that cannot be computed in the form it was asked for."""
    of = ["ranking"] * (metric.ranking is not None or metric.lists is not None)
    of += list(metric.outputs) if metric.pointwise is not None else []
    if output is not None and output not in of:
        scored = " or ".join(_WORDS[one][0] for one in of)
        return f"{name} scores {scored}", f"this task {_WORDS[output][1]}", f"take {_others(output)}"
    if metric.needs_cutoff and output in (None, "ranking"):
        return "has no cutoff", f"{name} of a whole ranking is the same for every model", f"for example {name}@10"
    scored = _WORDS[output or of[0]][0]
    return "has a cutoff", f"{name} of {scored} has none", f"write {name}"


def _others(output: str) -> str:
    """The metrics that can score an output, for people."""
    named = [(name, registry.load(PACKAGE, name)) for name in registry.names(PACKAGE)]
    found = [
        f"{name}@10" if output == "ranking" and metric.needs_cutoff else name
        for name, metric in named
        if metric.can_score(output, output == "ranking")
    ]
    return f"one of {', '.join(found)}"
