"""The small tables that metrics are computed from.

`Ranks` says where relevant items stand, which is all a ranking metric needs; `Labels` holds scored pairs and what is
true of them; `Lists` holds what was shown. Ties count as the expected value over random order within the tie, in
closed form and never by the order of a file (McSherry and Najork, Computing information retrieval performance
measures efficiently in the presence of tied scores, 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from recft.errors import ModelError, RecipeError, problem

__all__ = ["EMPTY", "INVALID", "Labels", "Lists", "Ranks", "Sorted", "Ties", "refuse_nan"]

EMPTY = -1
"""A place of a list that holds no item."""

INVALID = -2
"""A place of a list that holds an output which is no item of the catalogue."""


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
        pairs: which of the records' pairs each relevant item is, (P,), int64: what slices select by.
    """

    offsets: np.ndarray
    grades: np.ndarray
    greater: np.ndarray
    tied: np.ndarray
    n_candidates: np.ndarray
    pairs: np.ndarray

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
    """Scored pairs, and what is true of them.

    Attributes:
        scores: (P,), float64: probabilities of yes (unless only AUC is asked for), predicted numbers, or sums of
            log-probabilities in nats; of classes (P, C), a probability each.
        labels: (P,): 0 or 1, the true number, the number of the true class, or the count of tokens.
        groups: the cluster (user) of each pair, (P,), int64.

    Raises:
        ModelError: a score is not a number.
    """

    scores: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    _kept: dict[Callable[[Labels], np.ndarray], np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        refuse_nan(self.scores)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, mask: np.ndarray) -> Labels:
        """The pairs that a mask (P,) selects, as a slice does."""
        return Labels(self.scores[mask], self.labels[mask], self.groups[mask])

    def once(self, compute: Callable[[Labels], np.ndarray]) -> np.ndarray:
        """What a module's function computes of these pairs; kept, so that a bootstrap computes it once."""
        if compute not in self._kept:
            self._kept[compute] = compute(self)
        return self._kept[compute]

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


@dataclass(frozen=True)
class Lists:
    """What was shown: the first places of each record.

    Attributes:
        top: item numbers, (R, depth), int32; -1 (`EMPTY`) where there is no item, -2 (`INVALID`) where an output is
            no item of the catalogue.
        popularity: how many training events took each item, (N,), int64.
        texts: the item texts, N.
        kept: what metrics have found out of the catalogue, for other lists of the same one.
    """

    top: np.ndarray
    popularity: np.ndarray
    texts: Sequence[str]
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.top)

    def where(self, mask: np.ndarray) -> Lists:
        """The lists of the records that a mask (R,) selects."""
        return Lists(self.top[mask], self.popularity, self.texts, self.kept)

    def first(self, cutoff: int | None) -> np.ndarray:
        """The first `cutoff` places of each list, (R, cutoff); fewer only where the whole catalogue is fewer.

        Raises:
            RecipeError: fewer places were kept than are asked for.
        """
        depth = self.top.shape[1]
        if cutoff is not None and depth < min(cutoff, len(self.popularity)):
            raise RecipeError(
                problem("eval.metrics", f"a cutoff of {cutoff}", f"lists hold {depth} places", f"take @{depth}")
            )
        return self.top[:, :cutoff]


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


def _run_starts(*keys: np.ndarray) -> np.ndarray:
    """Where runs of equal keys start in sorted arrays."""
    is_first = np.zeros(len(keys[0]), dtype=bool)
    is_first[:1] = True
    for key in keys:
        is_first[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(is_first)
