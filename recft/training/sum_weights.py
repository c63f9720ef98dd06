"""The weights of a sum of systems that make outcomes most likely: of candidates, of yes and no, of numbers.

All are drawn towards equal weights with the strength of a few records, so that a small validation split cannot throw a
system out by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["PRIOR_RECORDS", "Feature", "Group", "conditional", "linear", "logistic", "moments"]

PRIOR_RECORDS = 5.0
"""How many records' weight the wish for equal weights has."""

Feature = np.ndarray

Group = tuple[Feature, np.ndarray, np.ndarray]
"""One record's candidates by system, (C, S), what each is worth, (C,), above 0 for a target, and the log of how many
items each stands for, (C,)."""


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


def conditional(groups: Sequence[Group], n_systems: int) -> np.ndarray:
    """The weights of a softmax over each record's candidates, (S,): first one for all, then each its own."""
    if not groups or not n_systems:
        return np.ones(n_systems)
    together = [(features.sum(axis=1, keepdims=True), worth, stands) for features, worth, stands in groups]
    # A handful of records that all are right, or by chance all wrong, must not make it endless, or less than nothing.
    equal, strength = np.full(1, 1 / n_systems), np.full(1, PRIOR_RECORDS * n_systems)
    common = _newton(lambda weight: _sum(moments(together, weight), _towards(equal, strength, weight)), equal)
    middle, each = np.repeat(common, n_systems), np.full(n_systems, PRIOR_RECORDS)
    return _newton(lambda weights: _sum(moments(groups, weights), _towards(middle, each, weights)), middle)


def _sum(one: Moments, other: Moments) -> Moments:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def moments(groups: Sequence[Group], weights: np.ndarray) -> Moments:
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


def linear(features: Feature, truth: np.ndarray) -> np.ndarray:
    """Ridge regression drawn towards equal weights that sum to 1, and its intercept, (S + 1,)."""
    wide, n_systems = np.c_[features, np.ones(len(features))], features.shape[1]
    prior = np.r_[np.full(n_systems, PRIOR_RECORDS), 1e-6]
    middle = np.r_[np.full(n_systems, 1 / max(n_systems, 1)), 0.0]
    return np.asarray(np.linalg.solve(wide.T @ wide + np.diag(prior), wide.T @ truth + prior * middle))


def logistic(features: Feature, truth: np.ndarray) -> np.ndarray:
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
