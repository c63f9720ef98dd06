"""Several systems as one: a weighted sum of their standardised scores, the weights fitted on validation.

Rankings and classes: a softmax over each record's candidates of sum_k w_k z_k, where z_k is system k's score made
comparable (mean 0 and deviation 1 among a record's candidates; of classes log p). Yes or no: a logistic regression on
log-odds (Wolpert, Stacked generalization, 1992), numbers: a linear one. The weights are drawn towards equal ones with
the strength of a few records, so that a small validation split cannot throw a system out by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recft.training.scoring import Exam, System, need_block, places

__all__ = ["Fusion", "fit_fusion"]

PRIOR_RECORDS = 5.0
"""How many records' weight the wish for equal weights has."""

MOST_FEATURES = 30_000_000
"""Scores of candidates by systems that the fit holds at once: 120 MB."""

Feature = np.ndarray


@dataclass(frozen=True)
class Fusion:
    """A fitted weighted sum.

    Attributes:
        weights: of each system, in order.
        intercept: of labels and values.
        n: validation records (or pairs) that it was fitted on.
    """

    weights: Mapping[str, float]
    intercept: float
    n: int

    def system(self, exam: Exam, systems: Mapping[str, System]) -> System:
        """The sum as a system on an exam."""
        names, weights = list(self.weights), np.array(list(self.weights.values()))
        output = exam.task.output

        def block(rows: np.ndarray) -> np.ndarray:
            summed = _stack(exam, [systems[name] for name in names], rows) @ weights  # (B, N)
            return np.asarray(_softmax(summed) if output == "classes" else summed)

        def pairs(rows: np.ndarray) -> np.ndarray:
            summed = _pair_features(exam, [systems[name] for name in names], rows) @ weights + self.intercept
            return 1 / (1 + np.exp(-summed)) if output == "labels" else summed

        ranked = output in ("ranking", "classes") and exam.candidates != "judged"
        return System(block if ranked else None, pairs, probabilities=output != "ranking")


def fit_fusion(exam: Exam, systems: Mapping[str, System]) -> Fusion:
    """The weights that make validation's outcomes most likely."""
    names = list(systems)
    if exam.task.output in ("labels", "values"):
        features = _pair_features(exam, list(systems.values()), np.arange(len(exam.records)))
        truth = exam.records.grades if exam.task.output == "values" else exam.records.grades > 0
        found = (_linear if exam.task.output == "values" else _logistic)(features, truth.astype(np.float64))
        weights = dict(zip(names, found[:-1].tolist(), strict=True))
        return Fusion(weights, float(found[-1]), len(features))
    groups = _candidate_features(exam, list(systems.values()))
    found = _conditional(groups, len(names))
    return Fusion(dict(zip(names, found.tolist(), strict=True)), 0.0, len(groups))


def _stack(exam: Exam, systems: Sequence[System], rows: np.ndarray) -> Feature:
    """Every item's standardised scores by system, (B, N, S)."""
    blocks = [np.asarray(need_block(exam, system)(rows), np.float64) for system in systems]
    if exam.task.output == "classes":
        return np.stack([np.log(np.clip(block, 1e-9, 1.0)) for block in blocks], axis=-1)
    return np.stack([_standard(block, axis=1) for block in blocks], axis=-1)


def _standard(scores: np.ndarray, axis: int) -> np.ndarray:
    """Mean 0 and deviation 1 along an axis; what was never scored stands as low as the lowest."""
    finite = np.where(np.isfinite(scores), scores, np.nan)
    lowest = np.nan_to_num(np.nanmin(finite, axis=axis, keepdims=True)) if finite.size else 0.0
    filled = np.where(np.isfinite(scores), scores, lowest)
    spread = filled.std(axis=axis, keepdims=True)
    return np.asarray((filled - filled.mean(axis=axis, keepdims=True)) / np.where(spread > 0, spread, 1.0))


def _pair_features(exam: Exam, systems: Sequence[System], rows: np.ndarray) -> Feature:
    """The rows' own pairs by system, (P, S): log-odds, numbers, or scores standardised within each record."""
    columns = []
    sizes = np.diff(exam.records.offsets)[rows]
    for system in systems:
        scores = np.asarray(system.pairs(rows), np.float64)
        scores = scores[:, 0] if scores.ndim == 2 else scores
        if exam.task.output == "ranking" or (exam.task.output == "labels" and not system.probabilities):
            starts = np.cumsum(sizes)[:-1]
            scores = np.concatenate([_standard(part, axis=0) for part in np.split(scores, starts)] or [scores])
        elif exam.task.output == "labels":
            kept = np.clip(scores, 1e-6, 1 - 1e-6)
            scores = np.log(kept) - np.log1p(-kept)
        columns.append(scores)
    return np.stack(columns, axis=-1) if columns else np.zeros((int(sizes.sum()), 0))


Group = tuple[Feature, np.ndarray]
"""One record's candidates by system, (C, S), and what each is worth, (C,), above 0 for a target."""


def _candidate_features(exam: Exam, systems: Sequence[System]) -> list[Group]:
    """The candidates of validation records that have a target; of a large catalogue fewer records are taken."""
    records, n_items = exam.records, len(exam.items)
    judged = exam.candidates == "judged"
    most = len(records) if judged else max(50, MOST_FEATURES // max(1, n_items * len(systems)))
    rows = np.linspace(0, len(records) - 1, min(most, len(records))).round().astype(int)
    groups = []
    for row in np.unique(rows):
        one = np.array([row])
        own = places(records, one)
        if judged:
            worth, features = records.grades[own].astype(np.float64), _pair_features(exam, systems, one)
        else:
            features = _stack(exam, systems, one)[0]
            worth = np.zeros(n_items)
            worth[records.items[own]] = records.grades[own]
            if exam.settings.mask_history:
                kept = np.ones(n_items, bool)
                kept[records.history(int(row))] = False
                features, worth = features[kept], worth[kept]
        if (worth > 0).any() and len(worth) > 1:
            groups.append((features.astype(np.float32), worth / worth.sum()))
    return groups


def _newton(step: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """Where the gradient of a convex loss vanishes; `step` gives gradient and Hessian."""
    found = start
    for _ in range(50):
        gradient, hessian = step(found)
        move = np.linalg.solve(hessian, gradient)
        # A long step on a softmax can overshoot: it is kept to a length of 2.
        found = found - move * min(1.0, 2.0 / max(float(np.linalg.norm(move)), 1e-12))
        if np.linalg.norm(move) < 1e-8:
            break
    return found


def _conditional(groups: Sequence[Group], n_systems: int) -> np.ndarray:
    """The weights of a softmax over each record's candidates, (S,): first one for all, then each its own."""
    if not groups or not n_systems:
        return np.ones(n_systems)
    common = _newton(
        lambda weight: _moments([(features.sum(axis=1, keepdims=True), worth) for features, worth in groups], weight),
        np.zeros(1),
    )[0]
    middle = np.full(n_systems, common)

    def step(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gradient, hessian = _moments(groups, weights)
        return gradient + PRIOR_RECORDS * (weights - middle), hessian + PRIOR_RECORDS * np.eye(n_systems)

    return _newton(step, middle)


def _moments(groups: Sequence[Group], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of the negative log-likelihood, the latter with a trace that keeps it invertible."""
    gradient, hessian = np.zeros(len(weights)), 1e-6 * np.eye(len(weights))
    for features, worth in groups:
        chance = _softmax((features @ weights)[None])[0]
        mean = chance @ features
        gradient += mean - worth @ features
        hessian += (features * chance[:, None]).T @ features - np.outer(mean, mean)
    return gradient, hessian


def _softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _linear(features: Feature, truth: np.ndarray) -> np.ndarray:
    """Ridge regression drawn towards equal weights that sum to 1, and its intercept, (S + 1,)."""
    wide, n_systems = np.c_[features, np.ones(len(features))], features.shape[1]
    prior = np.r_[np.full(n_systems, PRIOR_RECORDS), 1e-6]
    middle = np.r_[np.full(n_systems, 1 / max(n_systems, 1)), 0.0]
    return np.asarray(np.linalg.solve(wide.T @ wide + np.diag(prior), wide.T @ truth + prior * middle))


def _logistic(features: Feature, truth: np.ndarray) -> np.ndarray:
    """Logistic regression drawn towards equal weights that sum to 1, and its intercept, (S + 1,)."""
    wide, n_systems = np.c_[features, np.ones(len(features))], features.shape[1]
    prior = np.r_[np.full(n_systems, PRIOR_RECORDS), 1e-6]
    middle = np.r_[np.full(n_systems, 1 / max(n_systems, 1)), 0.0]

    def step(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chance = 1 / (1 + np.exp(-np.clip(wide @ weights, -60, 60)))
        gradient = wide.T @ (chance - truth) + prior * (weights - middle)
        return gradient, (wide * (chance * (1 - chance))[:, None]).T @ wide + np.diag(prior)

    return _newton(step, middle)
