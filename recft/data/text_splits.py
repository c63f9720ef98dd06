"""Dividing texts into train, valid and test: by files of their own, or by drawing.

What is drawn are keys: rows of one group, or of one normalised text, are on one side. Labels are drawn evenly, and
training keeps at least one key of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.splits import check_not_empty, check_shares, part_sizes
from recft.data.store import SPLITS, Split
from recft.data.texts import Texts
from recft.errors import DataError, problem
from recft.schema import SplitSettings

__all__ = ["TextDraft", "shared_texts", "split_texts"]

Ints = NDArray[np.int64]
TextDraft = Mapping[Split, Ints]
"""The rows of each split, in the files' order."""


def split_texts(texts: Texts, settings: SplitSettings) -> tuple[TextDraft, dict[str, Any]]:
    """The rows of every split, and what the card says of the cut.

    Raises:
        RecipeError: shares that leave nothing to train on.
        DataError: a split that was asked for has no row, or holds a label that training does not.
    """
    file = texts.frame["file"].to_numpy()
    given = texts.given
    # A share of 0 is no cut; a file that is given is one.
    cut = settings.model_copy(update=dict.fromkeys(given, 0.0))
    check_shares(cut)
    rows = np.flatnonzero(file == "train")
    units = _numbered(texts.frame["key"].gather(rows))
    labels = _labels(texts)
    strata = np.zeros(units.max(initial=-1) + 1, np.int64)
    if labels is not None:
        strata[units[::-1]] = labels[rows[::-1]]
    sides = _drawn(strata, cut)
    moved = 0 if labels is None else _with_every_label(sides, units, labels[rows])
    draft: dict[Split, Ints] = {
        split: np.flatnonzero(file == split) if split in given else rows[sides[units] == place]
        for place, split in enumerate(SPLITS)
    }
    # A file that is given is asked for, whatever the shares say.
    asked = settings.model_copy(update=dict.fromkeys(given, 0.1))
    check_not_empty({split: len(part) for split, part in draft.items()}, asked)
    if labels is not None:
        _check_labels(draft, labels, texts.names)
    card: dict[str, Any] = {"by": "file" if given else "query", "seed": settings.seed}
    if given:
        card["given"] = list(given)
    if settings.folds is not None:
        card |= {"folds": settings.folds, "fold": settings.fold}
    if moved:
        card["kept_in_training"] = moved
    return draft, card


def _numbered(keys: pl.Series) -> Ints:
    """The number of each row's key, in order of first appearance."""
    numbers = keys.unique(maintain_order=True).to_frame("key").with_row_index("number")
    rows = keys.to_frame("key").join(numbers, on="key", how="left", maintain_order="left")
    return rows["number"].to_numpy().astype(np.int64)


def _labels(texts: Texts) -> Ints | None:
    """(R,) label numbers, or None where texts have replies."""
    return texts.items.astype(np.int64) if texts.target == "label" else None


def _drawn(strata: Ints, settings: SplitSettings) -> Ints:
    """The split of each key, as its place in SPLITS: shuffled once, sorted by stratum, and dealt evenly."""
    sides = np.zeros(len(strata), np.int64)
    order = np.arange(len(strata))
    np.random.default_rng(settings.seed).shuffle(order)
    order = order[np.argsort(strata[order], kind="stable")]
    if settings.folds is not None:
        test = order[settings.fold :: settings.folds]
        rest = order[~np.isin(order, test)]
        # Drawn anew: the shuffle above fixes the folds, and valid is not to depend on where a fold begins.
        np.random.default_rng([settings.seed, settings.fold, 1]).shuffle(rest)
        rest = rest[np.argsort(strata[rest], kind="stable")]
        _, n_valid = part_sizes(len(rest), settings)
    else:
        n_test, n_valid = part_sizes(len(order), settings)
        test = _even(order, n_test)
        rest = order[~np.isin(order, test)]
    sides[test] = SPLITS.index("test")
    sides[_even(rest, n_valid)] = SPLITS.index("valid")
    return sides


def _even(order: Ints, n: int) -> Ints:
    """So many places of an order, as far apart as they can be."""
    n = min(n, len(order))
    return order[((np.arange(n) + 0.5) * len(order) / max(n, 1)).astype(np.int64)]


def _with_every_label(sides: Ints, units: Ints, labels: Ints) -> int:
    """Moves one key of each label that training would lack there, in place; how many have moved."""
    moved = 0
    for label in np.setdiff1d(labels, labels[sides[units] == 0]).tolist():
        there = units[labels == label]
        if not (sides[there] == 0).any():
            sides[there[0]] = 0
            moved += 1
    return moved


def _check_labels(draft: TextDraft, labels: Ints, names: list[str]) -> None:
    """Passes where every label of valid and test is one of training's.

    Raises:
        DataError: naming those that are not.
    """
    known = np.unique(labels[draft["train"]])
    lines = []
    for split in SPLITS[1:]:
        new, counts = np.unique(labels[draft[split]], return_counts=True)
        unknown = ~np.isin(new, known)
        if unknown.any():
            told = [f"{names[n]!r} ({c})" for n, c in zip(new[unknown][:10], counts[unknown], strict=False)]
            more = f" and {int(unknown.sum()) - 10} more" if unknown.sum() > 10 else ""
            lines.append(
                problem(
                    "data.texts.label",
                    f"{split} has {', '.join(told)}{more}, training has not",
                    "a label is learned before it is asked for",
                    f"correct the label, or leave its rows out of {split}",
                )
            )
    if lines:
        raise DataError("\n".join(lines))


def shared_texts(texts: Texts, draft: TextDraft, column: str = "text_key") -> dict[str, dict[str, int]]:
    """How many normalised texts (by `key`: groups) are in two splits, and how many rows of the later one they are."""
    keys = texts.frame[column]
    what = "texts" if column == "text_key" else "groups"
    found: dict[str, dict[str, int]] = {}
    for one, other in combinations(SPLITS, 2):
        later = keys.gather(draft[other])
        again = later.filter(later.is_in(keys.gather(draft[one]).unique().implode()))
        if len(again):
            found[f"{one} and {other}"] = {what: again.n_unique(), f"rows of {other}": len(again)}
    return found
