"""Probabilities that mean what they say: a correction fitted on validation, saved with the model and its exports.

    temperature   p' = softmax(log p / T); of yes or no sigmoid(logit p / T)      (Guo et al. 2017, arXiv 1706.04599)
    isotonic      p' = the best non-decreasing step function of p, its steps joined by lines
                  (Zadrozny and Elkan, Transforming classifier scores into accurate probability estimates, 2002)

A temperature keeps every order; isotonic regression may tie neighbours and wants some hundreds of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["calibrated", "fit_calibration"]

SMALLEST = 1e-6
"""Probabilities stay so far from 0 and 1: a certain answer that is wrong would cost everything."""


def fit_calibration(kind: str, scores: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What `calibrated` takes: the correction that makes validation's outcomes most likely.

    Args:
        kind: `temperature` or `isotonic`.
        scores: probabilities of yes, (P,), or of each class, (P, C).
        truth: 1 for yes, else 0; of classes the right one's number, (P,).
    """
    if kind == "temperature":
        return {"kind": kind, "temperature": _temperature(scores, truth)}
    steps, values = _isotonic(scores, truth.astype(np.float64))
    return {"kind": kind, "from": steps.tolist(), "to": values.tolist()}


def calibrated(calibration: Mapping[str, Any] | None, scores: np.ndarray) -> np.ndarray:
    """The corrected probabilities, of the shape of `scores`; themselves where there is no correction.

    >>> calibrated({"kind": "temperature", "temperature": 2.0}, np.array([0.5, 0.9])).round(2).tolist()
    [0.5, 0.75]
    """
    if calibration is None:
        return scores
    if calibration["kind"] == "isotonic":
        found = np.interp(scores, calibration["from"], calibration["to"])
        return np.asarray(np.clip(found, SMALLEST, 1 - SMALLEST))
    return _softened(_logs(scores), float(calibration["temperature"]))


def _logs(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of classes (P, C), or of yes and no (P,) as their log-odds."""
    kept = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    return np.log(kept) if scores.ndim == 2 else np.log(kept) - np.log1p(-kept)


def _softened(logs: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logs / temperature
    if logs.ndim == 1:
        return np.asarray(1 / (1 + np.exp(-scaled)))
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def _temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """The temperature of the least log-loss: golden-section search over its logarithm."""
    logs = _logs(scores)

    def loss(log_temperature: float) -> float:
        found = _softened(logs, float(np.exp(log_temperature)))
        right = found[np.arange(len(truth)), truth] if found.ndim == 2 else np.where(truth > 0, found, 1 - found)
        return float(-np.log(np.maximum(right, 1e-300)).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def _isotonic(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each step begins and ends, and its height: pool adjacent violators, equal scores first made one."""
    different, place = np.unique(scores, return_inverse=True)
    weights = np.bincount(place).astype(np.float64)
    heights = np.bincount(place, weights=truth) / weights
    pools: list[list[float]] = []  # height, weight, first score, last score
    for height, weight, score in zip(heights, weights, different, strict=True):
        pools.append([height, weight, score, score])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            later, before = pools.pop(), pools.pop()
            both = before[1] + later[1]
            pools.append([(before[0] * before[1] + later[0] * later[1]) / both, both, before[2], later[3]])
    ends = [(end, pool[0]) for pool in pools for end in dict.fromkeys((pool[2], pool[3]))]
    return np.array([end for end, _ in ends]), np.array([height for _, height in ends])
