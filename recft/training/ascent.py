"""The weights of a sum for which a metric is best: coordinate ascent from the best single system, bagged.

A likelihood of judged lists rewards every pair of products in the right order; ndcg@10 asks for the first ten. With few
queries the difference is larger than what a second system adds (Metzler and Croft, Linear feature-based models for
information retrieval, 2007). One ascent fits the luck of its queries, so the mean over resampled queries is taken
(Breiman, Bagging predictors, 1996).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["ascend"]

STEPS = (-0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3)
MOST_ROUNDS = 4
BAGS = 15


def ascend(values: Callable[[np.ndarray], np.ndarray], n_systems: int, seed: int = 0) -> np.ndarray:
    """Weights that sum to 1, (S,).

    Args:
        values: weights -> the metric of each record, (R,), NaN where it is undefined; higher is better.
        n_systems: S.
        seed: of the resampled records.
    """
    known: dict[tuple[float, ...], np.ndarray] = {}

    def of(weights: np.ndarray) -> np.ndarray:
        # Resamples ask for the same weights again and again.
        key = tuple(weights.round(6).tolist())
        if key not in known:
            known[key] = values(weights)
        return known[key]

    n_records, draw = len(of(np.eye(n_systems)[0])), np.random.default_rng(seed)
    found = [_climb(of, n_systems, draw.integers(0, n_records, n_records)) for _ in range(BAGS)]
    return np.asarray(np.mean(found, axis=0))


def _climb(of: Callable[[np.ndarray], np.ndarray], n_systems: int, rows: np.ndarray) -> np.ndarray:
    """One ascent on some records, from whichever system is best alone."""

    def mean(weights: np.ndarray) -> float:
        chosen = of(weights)[rows]
        return float(np.nanmean(chosen)) if not np.isnan(chosen).all() else 0.0

    alone = np.eye(n_systems)
    weights = max(alone, key=mean)
    best = mean(weights)
    for _ in range(MOST_ROUNDS):
        before = best
        for system in range(n_systems):
            tried = [weights + step * alone[system] for step in STEPS]
            scored = [(mean(one), place) for place, one in enumerate(tried) if one[system] >= 0 and one.sum() > 0]
            value, place = max(scored)
            if value > best + 1e-9:
                best, weights = value, tried[place]
        if best == before:
            break
    return np.asarray(weights / weights.sum())
