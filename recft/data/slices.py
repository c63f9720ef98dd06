"""Parts of a split that are scored apart, and how their pairs are told.

    item_popularity   head_item, middle_item, tail_item      the most popular items that took half of the training
                                                             events; with the next ones 80%; all others
    history_length    short_, middle_, long_history          thirds of the training records by length of history
    cold_item         cold_item, warm_item                   an item that training never met
    cold_user         cold_user, warm_user                   a user without a training record
    repeat            repeat, novel                          an item of the record's own history
    <column>          <column>=<value>, <column>=(other)     a column of items, users or records that was kept in
                                                             prepare: its ten most frequent values

What is popular, long or cold is read from the training records, never from what is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recft.data.popularity import HEAD, MIDDLE, counts, share_above
from recft.data.store import Records, Split, Store
from recft.errors import RecipeError, problem
from recft.registry import suggestion

__all__ = ["FAMILIES", "Slice", "families", "slices"]

MOST_VALUES = 10
"""Values of a column that have a slice of their own."""

OTHER, NONE = "(other)", "(none)"


@dataclass(frozen=True)
class Slice:
    """A part of the records' pairs.

    Attributes:
        of: the family that it belongs to: gaps are measured between slices of one family.
        mask: the pairs that it holds, (P,), bool; a property of the record holds for all of its pairs.
    """

    of: str
    mask: np.ndarray

    def records(self, offsets: np.ndarray) -> np.ndarray:
        """The records that have a pair in it, (R,), bool."""
        n_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.mask)])
        has_one: np.ndarray = np.diff(n_before[offsets]) > 0
        return has_one


Masks = dict[str, np.ndarray]
"""Slice name -> (P,) bool."""

_Kept = tuple[list[str], np.ndarray]
"""The values of a column, and which of them each pair has, (P,)."""


def slices(store: Store, records: Records, names: Sequence[str], fitted_on: Split = "train") -> dict[str, Slice]:
    """The slices of the named families over the pairs of the records, by name.

    The slices of a fixed family are always all there, also where they hold no pair; of a column, those that occur.

    Args:
        store: the prepared data, for the catalogue and the training records.
        records: what is scored.
        names: families, or columns.
        fitted_on: the split that tells what is popular, long and cold.

    Raises:
        RecipeError: there is no such family or column, or it makes no sense for the table.
    """
    kept = _columns(store, records)
    for name in names:
        _check(name, store, kept)
    fitted = store.records(fitted_on) if set(names) & FAMILIES.keys() else records
    found: dict[str, Slice] = {}
    for name in dict.fromkeys(names):
        if name in FAMILIES:
            masks = FAMILIES[name].masks(records, fitted, len(store.item_ids))
        else:
            values, of = kept[name][0]
            masks = _by_value(name, [values[i] for i in of.tolist()], records)
        found |= {slice_name: Slice(name, mask) for slice_name, mask in masks.items()}
    return found


def families(store: Store, records: Records) -> list[str]:
    """What `eval.slices` may name for this data: families that make sense for its table, then columns."""
    return [name for name, family in FAMILIES.items() if store.table in family.tables] + list(_columns(store, records))


def _check(name: str, store: Store, kept: Mapping[str, list[_Kept]]) -> None:
    """Nothing, where the name is a family of this table or one column."""
    if name in FAMILIES:
        tables = FAMILIES[name].tables
        if store.table not in tables:
            rule = f"it is for {', '.join(tables)}"
            raise RecipeError(problem("eval.slices", f"{name} on {store.table}", rule, "leave it out"))
        return
    known = [family for family in FAMILIES if store.table in FAMILIES[family].tables] + list(kept)
    if name not in kept:
        value = f"there is no '{name}'.{suggestion(name, known)}"
        fix = "correct the name, or keep the column in prepare"
        raise RecipeError(problem("eval.slices", value, f"one of {', '.join(known)}", fix))
    if len(kept[name]) > 1:
        value = f"'{name}' is a column of {len(kept[name])} tables"
        raise RecipeError(problem("eval.slices", value, "a column is named once", "rename it in one of the files"))


def _columns(store: Store, records: Records) -> dict[str, list[_Kept]]:
    """The kept columns by name; more than one under a name that several tables have."""
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    places: list[tuple[dict[str, list[str]], np.ndarray]] = [
        (store.item_columns, records.items),
        (records.columns, owners),
    ]
    if records.users is not None:
        places.append((store.user_columns, records.users[owners]))
    found: dict[str, list[_Kept]] = {}
    for columns, of in places:
        for name, values in columns.items():
            found.setdefault(name, []).append((values, of))
    return found


def _by_value(column: str, values: list[str], records: Records) -> Masks:
    """The slices of a column: those of its values that have most targets, of as many the first by alphabet."""
    named = [value or NONE for value in values]
    n_targets = Counter(dict.fromkeys(named, 0))
    n_targets.update(value for value, grade in zip(named, records.grades.tolist(), strict=True) if grade > 0)
    most = sorted(n_targets, key=lambda value: (-n_targets[value], value))[:MOST_VALUES]
    codes = {value: code for code, value in enumerate(most)}
    of = np.array([codes.get(value, -1) for value in named], dtype=np.int64)
    masks = {f"{column}={value}": of == code for value, code in codes.items()}
    if (of < 0).any():
        masks[f"{column}={OTHER}"] = masks.get(f"{column}={OTHER}", False) | (of < 0)
    return masks


def _item_popularity(records: Records, fitted: Records, n_items: int) -> Masks:
    share = share_above(counts(fitted, n_items))[records.items]
    is_head, is_tail = share < HEAD, share >= MIDDLE
    return {"head_item": is_head, "middle_item": ~(is_head | is_tail), "tail_item": is_tail}


def _history_length(records: Records, fitted: Records, n_items: int) -> Masks:  # noqa: ARG001 (of histories only)
    lengths = _lengths(fitted)
    low, high = np.quantile(lengths, [1 / 3, 2 / 3]) if len(lengths) else (0.0, 0.0)
    own = np.repeat(_lengths(records), np.diff(records.offsets))
    return {
        "short_history": own <= low,
        "middle_history": (own > low) & (own <= high),
        "long_history": own > max(low, high),
    }


def _lengths(records: Records) -> np.ndarray:
    """How long each record's history is, (R,)."""
    if records.starts is None or records.cuts is None:
        return np.zeros(len(records), dtype=np.int64)
    return records.cuts - records.starts


def _cold_item(records: Records, fitted: Records, n_items: int) -> Masks:
    met = counts(fitted, n_items) > 0
    if fitted.log_items is None:
        met[fitted.items] = True  # judged irrelevant is met too; items drawn as negatives from a log are not
    is_warm = met[records.items]
    return {"cold_item": ~is_warm, "warm_item": is_warm}


def _cold_user(records: Records, fitted: Records, n_items: int) -> Masks:  # noqa: ARG001 (of users only)
    known = np.unique(fitted.users) if fitted.users is not None else np.empty(0, np.int32)
    users = records.users if records.users is not None else np.full(len(records), -1)
    is_warm = np.repeat(np.isin(users, known), np.diff(records.offsets))
    return {"cold_user": ~is_warm, "warm_user": is_warm}


def _repeat(records: Records, fitted: Records, n_items: int) -> Masks:  # noqa: ARG001 (of the record alone)
    is_repeat = np.zeros(len(records.items), dtype=bool)
    for record in range(len(records)):
        own = slice(int(records.offsets[record]), int(records.offsets[record + 1]))
        is_repeat[own] = np.isin(records.items[own], records.history(record))
    return {"repeat": is_repeat, "novel": ~is_repeat}


@dataclass(frozen=True)
class _Family:
    """How a family's slices are made, and for which tables they make sense."""

    masks: Callable[[Records, Records, int], Masks]
    tables: tuple[str, ...] = ("interactions",)


FAMILIES: Mapping[str, _Family] = {
    "item_popularity": _Family(_item_popularity, ("queries", "interactions", "texts")),
    "history_length": _Family(_history_length),
    "cold_item": _Family(_cold_item, ("queries", "interactions", "texts")),
    "cold_user": _Family(_cold_user),
    "repeat": _Family(_repeat),
}
"""Every family that needs no column."""
