"""Several systems as one: a weighted sum of their standardised scores, the weights fitted on validation.

Rankings and classes: a softmax over each record's candidates of sum_k w_k z_k, where z_k is system k's score made
comparable (mean 0 and deviation 1 among a record's candidates; of classes log p). Where a whole catalogue is ranked,
each system has a second term, `<system>:rank`, minus the log of 10 + the item's rank by it (the mean rank of equal
scores): a score's scale says little about how sure one can be of its first places. Yes or no: a logistic regression on
log-odds (Wolpert, Stacked generalization, 1992), numbers: a linear one. The weights are drawn towards equal ones with
the strength of a few records, so that a small validation split cannot throw a system out by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recft.training.exam import Exam, System, need_block, own_scores, places

__all__ = ["Fusion", "fit_fusion"]

PRIOR_RECORDS = 5.0
"""How many records' weight the wish for equal weights has."""

MOST_RECORDS = 5_000
"""Validation records of a fit."""

BLOCK_FEATURES = 1 << 21
"""Terms of candidates that are held at a time: 16 MiB."""

BEST_OF_EACH, MOST_OTHERS = 100, 200
"""Of a whole catalogue the fit sees the targets, what some system puts among its first so many, and a sample of all
others that stands for them."""

RANK = ":rank"
RANK_OFFSET = 10.0

Feature = np.ndarray


@dataclass(frozen=True)
class Fusion:
    """A fitted weighted sum.

    Attributes:
        weights: of each system, in order; then of their ranks, where there are any.
        intercept: of labels and values.
        n: validation records (or pairs) that it was fitted on.
    """

    weights: Mapping[str, float]
    intercept: float
    n: int

    def system(self, exam: Exam, systems: Mapping[str, System]) -> System:
        """The sum as a system on an exam."""
        weights = np.array(list(self.weights.values()))
        chosen = [systems[name] for name in self.weights if not name.endswith(RANK)]
        output = exam.task.output

        def block(rows: np.ndarray) -> np.ndarray:
            summed: np.ndarray = _stack(exam, chosen, rows) @ weights  # (B, N)
            return np.asarray(_softmax(summed) if output == "classes" else summed)

        def pairs(rows: np.ndarray) -> np.ndarray:
            summed = _pair_features(exam, chosen, rows) @ weights + self.intercept
            return np.asarray(1 / (1 + np.exp(-summed)) if output == "labels" else summed)

        if output == "classes" or (output == "ranking" and exam.candidates != "judged"):
            return System(
                block, lambda rows: own_scores(exam.records, rows, block(rows)), probabilities=output != "ranking"
            )
        return System(None, pairs, probabilities=output != "ranking")


def fit_fusion(exam: Exam, systems: Mapping[str, System]) -> Fusion:
    """The weights that make validation's outcomes most likely."""
    names = list(systems)
    if exam.task.output in ("labels", "values"):
        features = _pair_features(exam, list(systems.values()), np.arange(len(exam.records)))
        truth = exam.records.grades if exam.task.output == "values" else exam.records.grades > 0
        found = (_linear if exam.task.output == "values" else _logistic)(features, truth.astype(np.float64))
        weights = dict(zip(names, found[:-1].tolist(), strict=True))
        return Fusion(weights, float(found[-1]), len(features))
    names += [f"{name}{RANK}" for name in systems] if _ranks_too(exam) else []
    groups = _candidate_features(exam, list(systems.values()))
    found = _conditional(groups, len(names))
    return Fusion(dict(zip(names, found.tolist(), strict=True)), 0.0, len(groups))


def _ranks_too(exam: Exam) -> bool:
    return exam.task.output == "ranking" and exam.candidates != "judged"


def _stack(exam: Exam, systems: Sequence[System], rows: np.ndarray) -> Feature:
    """Every item's terms: its standardised score by each system, then its rank by each, (B, N, F)."""
    blocks = [np.asarray(need_block(exam, system)(rows), np.float64) for system in systems]
    if exam.task.output == "classes":
        return np.stack([np.log(np.clip(block, 1e-9, 1.0)) for block in blocks], axis=-1)
    ranks = [_log_ranks(block) for block in blocks] if _ranks_too(exam) else []
    return np.stack([*(_standard(block, axis=1) for block in blocks), *ranks], axis=-1)


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


Group = tuple[Feature, np.ndarray, np.ndarray]
"""One record's candidates by system, (C, S), what each is worth, (C,), above 0 for a target, and the log of how many
items each stands for, (C,)."""


def _candidate_features(exam: Exam, systems: Sequence[System]) -> list[Group]:
    """The candidates of validation records that have a target; of a large catalogue a part of them."""
    rows = np.unique(np.linspace(0, len(exam.records) - 1, min(MOST_RECORDS, len(exam.records))).round().astype(int))
    if exam.task.output == "ranking" and exam.candidates == "judged":
        found = [_judged_group(exam, systems, int(row)) for row in rows]
    else:
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


def _judged_group(exam: Exam, systems: Sequence[System], row: int) -> Group:
    one = np.array([row])
    worth = exam.records.grades[places(exam.records, one)].astype(np.float64)
    return _pair_features(exam, systems, one), worth, np.zeros(len(worth))


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


Moments = tuple[float, np.ndarray, np.ndarray]
"""A convex loss, its gradient and its Hessian."""


def _newton(step: Callable[[np.ndarray], Moments], start: np.ndarray) -> np.ndarray:
    """Where a convex loss is least."""
    found = start
    loss, gradient, hessian = step(found)
    for _ in range(100):
        move = np.linalg.solve(hessian, gradient)
        # A long step on a saturated softmax overshoots, and the next one as far the other way: a step that does not
        # make the loss smaller is halved.
        share = min(1.0, 2.0 / max(float(np.linalg.norm(move)), 1e-12))
        while True:
            there = step(found - share * move)
            if there[0] <= loss or share < 1e-9:
                break
            share /= 2
        found = found - share * move
        loss, gradient, hessian = there
        if np.linalg.norm(move) < 1e-8:
            break
    return found


def _towards(middle: np.ndarray, strength: np.ndarray, weights: np.ndarray) -> Moments:
    """What a wish for the weights `middle` adds to loss, gradient and Hessian."""
    off = weights - middle
    return float(strength @ off**2) / 2, strength * off, np.diag(strength)


def _conditional(groups: Sequence[Group], n_systems: int) -> np.ndarray:
    """The weights of a softmax over each record's candidates, (S,): first one for all, then each its own."""
    if not groups or not n_systems:
        return np.ones(n_systems)
    together = [(features.sum(axis=1, keepdims=True), worth, stands) for features, worth, stands in groups]
    # A handful of records that all are right, or by chance all wrong, must not make it endless, or less than nothing.
    equal, strength = np.full(1, 1 / n_systems), np.full(1, PRIOR_RECORDS * n_systems)
    common = _newton(lambda weight: _sum(_moments(together, weight), _towards(equal, strength, weight)), equal)
    middle, each = np.repeat(common, n_systems), np.full(n_systems, PRIOR_RECORDS)
    return _newton(lambda weights: _sum(_moments(groups, weights), _towards(middle, each, weights)), middle)


def _sum(one: Moments, other: Moments) -> Moments:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _moments(groups: Sequence[Group], weights: np.ndarray) -> Moments:
    """The negative log-likelihood, its gradient and its Hessian."""
    loss, gradient, hessian = 0.0, np.zeros(len(weights)), np.zeros((len(weights), len(weights)))
    for features, worth, stands in groups:
        summed = features @ weights + stands
        highest = float(summed.max())
        chance = np.exp(summed - highest)
        total = float(chance.sum())
        chance /= total
        mean = chance @ features
        loss += highest + float(np.log(total)) - float(worth @ summed)
        gradient += mean - worth @ features
        hessian += (features * chance[:, None]).T @ features - np.outer(mean, mean)
    return loss, gradient, hessian


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

    def step(weights: np.ndarray) -> Moments:
        summed = wide @ weights
        chance = 1 / (1 + np.exp(-np.clip(summed, -60, 60)))
        loss = float(np.logaddexp(0, summed).sum() - truth @ summed)
        hessian = (wide * (chance * (1 - chance))[:, None]).T @ wide
        return _sum((loss, wide.T @ (chance - truth), hessian), _towards(middle, prior, weights))

    return _newton(step, middle)
