"""Logistic regression on a handful of named features: the probability that this user says yes to this item.

    p(u, i) = 1 / (1 + exp(-(w0 + sum over features of w f(u, i))))
    min over w of -sum of log-likelihood over training pairs + regularisation / 2 * |w|^2 (w0 aside)

    popularity   log of how many took i, against the mean item
    trend        the same of the last month, against all time
    bought       log of how often u took i
    lately       sum over u's events with i of exp(-age / 60 days)
    company      i's cosine similarity to u's history (item-KNN, 100 nearest), over the root of its length
    activity     log of the length of u's history
    item_rating  what i's ratings have beyond the mean, damped by 5
    user_rating  what u's ratings have beyond the mean and the items', damped by 5
    taste        mean of what u's ratings of i's neighbours have beyond the mean, by similarity, damped

The last three are 0 where there are no ratings. Fitted by Newton's method (iteratively reweighted least squares;
Hastie, Tibshirani and Friedman, The elements of statistical learning, 4.4.1). A pair must not be told by features
that counted the pair itself: the weights are learned on the latest 30% of the known records, from features of the
log up to then; the features are then counted anew on all that is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from recft.baselines._base import Arrays, Known
from recft.baselines._history import DAY_SECONDS, last_weights, summed_weights
from recft.baselines._pairs import Pairs, log_of, nearest, spread
from recft.baselines._ratings import Means, damped, of_histories

if TYPE_CHECKING:
    from recft.data.store import Log, Records, Store, Table

__all__ = ["FEATURES", "MEMBER", "Logistic", "newton"]

FEATURES = (
    "popularity",
    "trend",
    "bought",
    "lately",
    "company",
    "activity",
    "item_rating",
    "user_rating",
    "taste",
)
LEARNED_SHARE = 0.3
MOST_RECORDS = 2_000
NEIGHBOURS = 100
DAMPING = 5.0
_BLOCK_SCORES = 1 << 22


def _facts(log: Log, n_items: int) -> dict[str, np.ndarray]:
    """What the features are made of, as arrays."""
    now = int(log.times.max(initial=0))
    pairs = Pairs.of(log, n_items)
    lengths = np.sqrt(pairs.item_squares)

    def row(item: int) -> np.ndarray:
        sims: np.ndarray = pairs.shared(item) / np.maximum(lengths * lengths[item], 1e-12)
        sims[item] = 0.0
        return sims

    recent = np.bincount(log.items[now - log.times < 30 * DAY_SECONDS], minlength=n_items)
    means, items = Means(0.0, 0.0, 0.0), np.zeros(n_items)
    if log.ratings is not None:
        means = Means.of(log.ratings)
        items = damped(log.items, log.ratings - means.mean, n_items, DAMPING)
    popularity = _relative(pairs.item_squares)
    trend = _relative(recent) - _relative(np.bincount(log.items, minlength=n_items))
    facts = {"popularity": popularity, "trend": trend, "item_rating": items, "mean": np.array(means.mean)}
    return nearest(n_items, row, NEIGHBOURS) | {name: part.astype(np.float32) for name, part in facts.items()}


def _relative(counts: np.ndarray) -> np.ndarray:
    """Log of each count against their mean; the same for a log twice as long."""
    logs: np.ndarray = np.log(counts / max(counts.mean() if len(counts) else 0.0, 1e-9) + 0.1)
    return logs


def _features(facts: Arrays, records: Records, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Each feature of every item for those rows, each broadcast to (B, N)."""
    n_items = len(facts["popularity"])
    held = last_weights(records, rows, n_items)
    sizes = held.sum(axis=1, keepdims=True)
    company = spread(facts, held)
    owners, items, ratings = of_histories(records, rows)
    beyond = (ratings - facts["mean"] - facts["item_rating"][items]).astype(np.float32)
    users = damped(owners, beyond, len(rows), DAMPING)
    liked = np.zeros(held.shape, np.float32)
    if len(items):
        liked[owners, items] = beyond - users[owners].astype(np.float32)
    return {
        "popularity": facts["popularity"][None],
        "trend": facts["trend"][None],
        "bought": np.log1p(summed_weights(records, rows, n_items)),
        "lately": summed_weights(records, rows, n_items, 60.0),
        "company": company / np.sqrt(np.maximum(sizes, 1)),
        "activity": np.log1p(sizes),
        "item_rating": facts["item_rating"][None],
        "user_rating": users[:, None].astype(np.float32),
        "taste": spread(facts, liked) / (company + 1.0) if len(items) else np.zeros((1, 1), np.float32),
    }


def newton(features: np.ndarray, labels: np.ndarray, regularisation: float, rounds: int = 50) -> np.ndarray:
    """The weights, w0 first, that minimise the loss above, (F + 1,).

    Half steps where a whole one would not lower the loss, so that separable data do not run away.
    """
    x = np.concatenate([np.ones((len(features), 1)), features], axis=1)  # (P, F + 1)
    ridge = np.full(x.shape[1], regularisation)
    ridge[0] = 1e-3  # all yes has no finite w0

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - labels * z).sum() + 0.5 * (ridge * w * w).sum())

    weights, best = np.zeros(x.shape[1]), loss(np.zeros(x.shape[1]))
    for _ in range(rounds):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - labels) + ridge * weights
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + np.diag(ridge), gradient)
        size = 1.0
        while (found := loss(weights - size * step)) > best and size > 1e-6:
            size /= 2
        if found > best:
            break
        weights, gain, best = weights - size * step, best - found, found
        if gain < 1e-9 * max(abs(best), 1.0):
            break
    return weights


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))


@dataclass(frozen=True)
class Logistic:
    """The baseline."""

    tables: tuple[Table, ...] = ("interactions",)
    outputs: tuple[str, ...] = ("labels",)
    summary: str = "logistic regression on popularity, own purchases, company and ratings"
    grid: tuple[Mapping[str, Any], ...] = ({"regularisation": 1.0}, {"regularisation": 100.0})
    probabilities: bool = True
    by_default: bool = True
    most_items: int | None = None

    def fit(self, known: Known, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The weights of the features, and what the features are made of."""
        log, n_items, records = log_of(known, "logistic"), len(known.store.item_ids), known.records
        rows, early = np.arange(len(records)), log
        if records.times is not None and len(records):
            middle = np.quantile(records.times, 1 - LEARNED_SHARE, method="lower")
            late, before = np.flatnonzero(records.times > middle), log.times <= middle
            if len(late) and before.any():  # else all happened at once, and features count their own pairs
                rows, early = late, log.kept(before)
        if len(rows) > MOST_RECORDS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_RECORDS).round().astype(int)]
        features, labels = _pairs_of(_facts(early, n_items), records, rows)
        center, scale = np.zeros(len(FEATURES)), np.ones(len(FEATURES))
        if len(labels):
            center, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        weights = newton((features - center) / scale, labels, settings["regularisation"])
        slopes = weights[1:] / scale
        intercept = weights[0] - (slopes * center).sum()
        return _facts(log, n_items) | {"slopes": slopes, "intercept": np.array(intercept)}

    def scores(self, arrays: Arrays, store: Store, records: Records, rows: np.ndarray) -> np.ndarray:
        """The probability of yes for every item."""
        z = np.full((len(rows), len(store.item_ids)), float(arrays["intercept"]), np.float32)
        for name, values in _features(arrays, records, rows).items():
            z += np.float32(arrays["slopes"][FEATURES.index(name)]) * values
        return _sigmoid(z).astype(np.float32)


def _pairs_of(facts: Arrays, records: Records, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The features of all candidate pairs of those rows, (P, F), and whether each is yes, (P,)."""
    n_items = len(facts["popularity"])
    size = max(1, _BLOCK_SCORES // max(n_items, 1))
    features, labels = [np.empty((0, len(FEATURES)))], [np.empty(0)]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        found = _features(facts, records, part)
        spans = [np.arange(records.offsets[row], records.offsets[row + 1]) for row in part]
        pairs, owners = np.concatenate(spans), np.repeat(np.arange(len(part)), [len(span) for span in spans])
        shape = (len(part), n_items)
        columns = [np.broadcast_to(found[name], shape)[owners, records.items[pairs]] for name in FEATURES]
        features.append(np.stack(columns, axis=1))
        labels.append((records.grades[pairs] > 0).astype(float))
    return np.concatenate(features), np.concatenate(labels)


MEMBER = Logistic()
