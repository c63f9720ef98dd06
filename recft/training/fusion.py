"""Several systems as one: a weighted sum of their standardised scores, the weights fitted on validation.

Rankings and classes: a softmax over each record's candidates of sum_k w_k z_k, where z_k is system k's score made
comparable (mean 0 and deviation 1 among a record's candidates; of classes log p). Where a whole catalogue is ranked,
each system has a second term, `<system>:rank`, minus the log of 10 + the item's rank by it (the mean rank of equal
scores): a score's scale says little about how sure one can be of its first places. Judged lists are few and short:
there the metric itself decides (`ascent.py`). Yes or no: a logistic regression on
log-odds (Wolpert, Stacked generalization, 1992), of scores that are no probabilities on how many of validation's
deviations they are from its mean; numbers: a linear one. `sum_weights.py` finds the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from recft.training.ascent import ascend
from recft.training.exam import Exam, System, need_block, own_scores, places
from recft.training.scoring import score
from recft.training.sum_weights import Feature, Group, conditional, linear, logistic

__all__ = ["Fusion", "fit_fusion"]

MOST_RECORDS = 5_000
"""Validation records of a fit."""

BLOCK_FEATURES = 1 << 21
"""Terms of candidates that are held at a time: 16 MiB."""

BEST_OF_EACH, MOST_OTHERS = 100, 200
"""Of a whole catalogue the fit sees the targets, what some system puts among its first so many, and a sample of all
others that stands for them."""

RANK = ":rank"
RANK_OFFSET = 10.0

Scale = tuple[float, float, float]
"""The mean, the deviation and the least of a system's scores; what it never scored counts as its least."""


@dataclass(frozen=True)
class Fusion:
    """A fitted weighted sum.

    Attributes:
        weights: of each system, in order; then of their ranks, where there are any.
        intercept: of labels and values.
        n: validation records (or pairs) that it was fitted on.
        scales: of labels, each system whose scores are no probabilities -> what its scores were on validation.
    """

    weights: Mapping[str, float]
    intercept: float
    n: int
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def system(self, exam: Exam, systems: Mapping[str, System]) -> System:
        """The sum as a system on an exam."""
        chosen = {name: systems[name] for name in self.weights if not name.endswith(RANK)}
        weights = np.array([self.weights[name] for name in chosen])
        output = exam.task.output

        def block(rows: np.ndarray) -> np.ndarray:
            summed = np.zeros((len(rows), len(exam.items)))
            # One system's terms at a time: all of a large catalogue's together would be many times its scores.
            for name, system in chosen.items():
                scores = np.asarray(need_block(exam, system)(rows), np.float64)
                for term, compute in _terms(exam, name).items():
                    summed += self.weights[term] * compute(scores)
            return _softmax(summed) if output == "classes" else summed

        def pairs(rows: np.ndarray) -> np.ndarray:
            summed = _pair_features(exam, chosen, rows, self.scales) @ weights + self.intercept
            return np.asarray(1 / (1 + np.exp(-summed)) if output == "labels" else summed)

        if output == "classes" or (output == "ranking" and exam.candidates != "judged"):
            return System(
                block, lambda rows: own_scores(exam.records, rows, block(rows)), probabilities=output != "ranking"
            )
        return System(None, pairs, probabilities=output != "ranking")


def fit_fusion(exam: Exam, systems: Mapping[str, System]) -> Fusion:
    """The weights that make validation's outcomes most likely; of judged lists, those for which the metric is best."""
    names = list(systems)
    if exam.task.output in ("labels", "values"):
        scales = _scales(exam, systems)
        features = _pair_features(exam, systems, np.arange(len(exam.records)), scales)
        truth = exam.records.grades if exam.task.output == "values" else exam.records.grades > 0
        found = (linear if exam.task.output == "values" else logistic)(features, truth.astype(np.float64))
        weights = dict(zip(names, found[:-1].tolist(), strict=True))
        return Fusion(weights, float(found[-1]), len(features), scales)
    if exam.task.output == "ranking" and not _ranks_too(exam):
        found = _judged_weights(exam, systems)
        return Fusion(dict(zip(names, found.tolist(), strict=True)), 0.0, len(exam.records))
    names += [f"{name}{RANK}" for name in systems] if _ranks_too(exam) else []
    groups = _candidate_features(exam, systems)
    found = conditional(groups, len(names))
    return Fusion(dict(zip(names, found.tolist(), strict=True)), 0.0, len(groups))


def _judged_weights(exam: Exam, systems: Mapping[str, System]) -> np.ndarray:
    """The weights of judged lists, (S,): those for which the exam's metric is best."""
    features = _pair_features(exam, systems, np.arange(len(exam.records)))

    def values(weights: np.ndarray) -> np.ndarray:
        summed = features @ weights
        return score(exam, System(None, lambda rows: summed[places(exam.records, rows)])).per_record[exam.names[0]]

    return ascend(values, len(systems))


def _ranks_too(exam: Exam) -> bool:
    return exam.task.output == "ranking" and exam.candidates != "judged"


def _terms(exam: Exam, name: str) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """A system's terms by the names of their weights, each as what it makes of the system's scores, (B, N)."""
    if exam.task.output == "classes":
        return {name: lambda block: np.log(np.clip(block, 1e-9, 1.0))}
    return {name: partial(_standard, axis=1)} | ({f"{name}{RANK}": _log_ranks} if _ranks_too(exam) else {})


def _stack(exam: Exam, systems: Mapping[str, System], rows: np.ndarray) -> Feature:
    """Every item's terms: its standardised score by each system, then its rank by each, (B, N, F)."""
    found: dict[str, Feature] = {}
    for name, system in systems.items():
        scores = np.asarray(need_block(exam, system)(rows), np.float64)
        found |= {term: compute(scores) for term, compute in _terms(exam, name).items()}
    in_order = [*systems, *(term for term in found if term not in systems)]
    return np.stack([found[term] for term in in_order], axis=-1)


def _log_ranks(block: np.ndarray) -> np.ndarray:
    """Minus the log of each score's rank in its row, (B, N); equal scores have their mean rank."""
    found = np.empty(block.shape)
    for row, scores in enumerate(block):
        ordered = np.sort(-scores)
        above, up_to = (np.searchsorted(ordered, -scores, side=side) for side in ("left", "right"))
        found[row] = -np.log((above + up_to - 1) / 2 + RANK_OFFSET)
    return found


def _standard(scores: np.ndarray, axis: int) -> np.ndarray:
    """Mean 0 and deviation 1 along an axis; what was never scored stands as low as the lowest."""
    if not scores.size:
        return scores
    known = np.isfinite(scores)
    lowest = np.where(known, scores, np.inf).min(axis=axis, keepdims=True)
    filled = np.where(known, scores, np.where(np.isfinite(lowest), lowest, 0.0))
    spread = filled.std(axis=axis, keepdims=True)
    # Of equal scores what is left is rounding, and no order.
    rounding = 1e-12 * np.abs(filled).max(axis=axis, keepdims=True)
    return np.asarray((filled - filled.mean(axis=axis, keepdims=True)) / np.where(spread > rounding, spread, np.inf))


def _scales(exam: Exam, systems: Mapping[str, System]) -> dict[str, Scale]:
    """Where the scores that are no probabilities lie on a split.

    Within a record nothing could be told: the records of yes and no often have one candidate each.
    """
    found: dict[str, Scale] = {}
    for name, system in systems.items():
        if exam.task.output == "labels" and not system.probabilities:
            scores = _own(system, np.arange(len(exam.records)))
            known = scores[np.isfinite(scores)]
            filled = np.where(np.isfinite(scores), scores, known.min(initial=np.inf)) if len(known) else np.zeros(1)
            found[name] = float(filled.mean()), float(filled.std()), float(filled.min())
    return found


def _scaled(scores: np.ndarray, scale: Scale) -> np.ndarray:
    """Scores in a scale's deviations from its mean; what was never scored stands as low as the lowest there."""
    mean, deviation, lowest = scale
    # Of equal scores what is left is rounding, and no order.
    if deviation <= 1e-12 * max(abs(mean), abs(lowest)):
        return np.zeros(len(scores))
    return (np.where(np.isfinite(scores), scores, lowest) - mean) / deviation


def _own(system: System, rows: np.ndarray) -> np.ndarray:
    """The scores of the rows' own pairs, (P,)."""
    scores = np.asarray(system.pairs(rows), np.float64)
    return scores[:, 0] if scores.ndim == 2 else scores


def _pair_features(
    exam: Exam, systems: Mapping[str, System], rows: np.ndarray, scales: Mapping[str, Scale] | None = None
) -> Feature:
    """The rows' own pairs by system, (P, S): log-odds, numbers, scores in a scale, or standardised by record."""
    columns = []
    sizes = np.diff(exam.records.offsets)[rows]
    for name, system in systems.items():
        scores = _own(system, rows)
        if exam.task.output == "ranking":
            starts = np.cumsum(sizes)[:-1]
            scores = np.concatenate([_standard(part, axis=0) for part in np.split(scores, starts)] or [scores])
        elif scales is not None and name in scales:
            scores = _scaled(scores, scales[name])
        elif exam.task.output == "labels":
            kept = np.clip(scores, 1e-6, 1 - 1e-6)
            scores = np.log(kept) - np.log1p(-kept)
        columns.append(scores)
    return np.stack(columns, axis=-1) if columns else np.zeros((int(sizes.sum()), 0))


def _candidate_features(exam: Exam, systems: Mapping[str, System]) -> list[Group]:
    """The candidates of validation records that have a target; of a large catalogue a part of them."""
    rows = np.unique(np.linspace(0, len(exam.records) - 1, min(MOST_RECORDS, len(exam.records))).round().astype(int))
    # Some systems have a lot to do before their first score: they are asked for many records at once.
    size = max(1, BLOCK_FEATURES // max(1, len(exam.items) * len(systems)))
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    found = [
        _whole_group(exam, features, int(row), len(systems))
        for part in blocks
        for row, features in zip(part, _stack(exam, systems, part), strict=True)
    ]
    return [
        (features.astype(np.float32), worth / worth.sum(), stands)
        for features, worth, stands in found
        if (worth > 0).any() and len(worth) > 1
    ]


def _whole_group(exam: Exam, features: Feature, row: int, n_systems: int) -> Group:
    records, n_items = exam.records, len(exam.items)
    own = places(records, np.array([row]))
    worth = np.zeros(n_items)
    worth[records.items[own]] = records.grades[own]
    if exam.task.output == "classes":
        return features, worth, np.zeros(n_items)
    masked = records.history(row) if exam.settings.mask_history else np.zeros(0, np.int32)
    kept, stands = _sample(features[:, :n_systems], worth > 0, masked, row)
    return features[kept], worth[kept], stands


def _sample(features: np.ndarray, targets: np.ndarray, masked: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The items that the fit sees, and the log of how many each stands for."""
    depth = min(BEST_OF_EACH, len(features))
    near = targets.copy()
    near[np.argpartition(-features, depth - 1, axis=0)[:depth].ravel()] = True
    able = np.ones(len(features), bool)
    able[masked] = False
    near, others = np.flatnonzero(near & able), np.flatnonzero(~near & able)
    drawn = np.random.default_rng([seed, 4]).permutation(others)[:MOST_OTHERS]
    stands = np.log(len(others) / max(len(drawn), 1)) if len(drawn) else 0.0
    return np.concatenate([near, drawn]), np.concatenate([np.zeros(len(near)), np.full(len(drawn), stands)])


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
