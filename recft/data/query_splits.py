"""Dividing judged queries into train, valid and test, once or in folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recft.data.judgements import Judgements
from recft.data.splits import check_not_empty, check_shares, part_sizes
from recft.data.store import Split
from recft.errors import RecipeError, problem
from recft.schema import SplitSettings

__all__ = ["QueryDraft", "split_queries"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class QueryDraft:
    """The queries of one split, as places in the judgements: pairs are `rows[offsets[r]:offsets[r + 1]]`."""

    queries: Ints
    offsets: Ints
    rows: Ints


def split_queries(judgements: Judgements, settings: SplitSettings) -> Mapping[Split, QueryDraft]:
    """The queries of every split.

    With folds: the queries in order of first appearance, shuffled once; fold i is every `folds`-th from i on.

    Raises:
        RecipeError: this split needs interactions, or there is no such fold.
        DataError: a split that was asked for has no record.
    """
    by = settings.by or "query"
    if by not in ("query", "cold_items"):
        raise RecipeError(
            problem("data.split.by", f"'{by}'", "judgements have no users or times", "query or cold_items")
        )
    check_shares(settings)
    if settings.folds is not None and (settings.fold >= settings.folds or by != "query"):
        raise RecipeError(
            problem(
                "data.split.fold",
                f"fold {settings.fold} of {settings.folds}, by {by}",
                "folds are of queries and counted from 0",
                f"a fold from 0 to {settings.folds - 1} by query",
            )
        )
    drafts = _query_folds(judgements, settings) if by == "query" else _cold_judgements(judgements, settings)
    check_not_empty({split: len(draft.queries) for split, draft in drafts.items()}, settings)
    return drafts


def _query_folds(judgements: Judgements, settings: SplitSettings) -> dict[Split, QueryDraft]:
    order = np.arange(len(judgements.keys))
    np.random.default_rng(settings.seed).shuffle(order)
    if settings.folds is not None:
        test = order[settings.fold :: settings.folds]
        rest = order[~np.isin(order, test)]
        # Drawn anew: the shuffle above fixes the folds, and valid is not to depend on where a fold begins.
        np.random.default_rng([settings.seed, settings.fold, 1]).shuffle(rest)
        _, n_valid = part_sizes(len(rest), settings)
    else:
        n_test, n_valid = part_sizes(len(order), settings)
        test, rest = order[:n_test], order[n_test:]
    parts: dict[Split, Ints] = {"train": rest[n_valid:], "valid": rest[:n_valid], "test": test}
    everything = np.ones(len(judgements.items), bool)
    return {split: _judged(judgements, np.sort(part), everything) for split, part in parts.items()}


def _cold_judgements(judgements: Judgements, settings: SplitSettings) -> dict[Split, QueryDraft]:
    """Some judged items are in test or valid alone; a query may stand in several splits with other items."""
    items = np.unique(judgements.items)
    np.random.default_rng(settings.seed).shuffle(items)
    n_test, n_valid = part_sizes(len(items), settings)
    test, valid = (np.isin(judgements.items, part) for part in (items[:n_test], items[n_test : n_test + n_valid]))
    masks: dict[Split, NDArray[np.bool_]] = {"train": ~test & ~valid, "valid": valid, "test": test}
    queries = np.arange(len(judgements.keys))
    return {split: _judged(judgements, queries, mask) for split, mask in masks.items()}


def _judged(judgements: Judgements, queries: Ints, mask: NDArray[np.bool_]) -> QueryDraft:
    """The pairs of `queries` where `mask` holds; queries without a pair drop out."""
    owner = np.repeat(np.arange(len(judgements.keys)), np.diff(judgements.offsets))
    rows = np.flatnonzero(mask & np.isin(owner, queries))
    chosen, counts = np.unique(owner[rows], return_counts=True)
    return QueryDraft(chosen, np.r_[0, np.cumsum(counts)].astype(np.int64), rows)
