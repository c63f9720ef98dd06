"""The data card: what was read, dropped and set aside, how it was split, and what the models will not see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.items import SEPARATOR, Catalogue
from recft.data.order import CACHED_ROWS, Rows, first_meetings, firsts, threads
from recft.data.store import SPLITS, Log, Records, Split
from recft.data.texts import Texts

__all__ = ["CountTokens", "label_card", "length_card", "split_card", "text_length_card"]

CountTokens = Callable[[list[str]], list[int]]
"""The number of tokens of each text, special tokens included."""

_AUDITED_ROWS = 200_000


def split_card(records: Mapping[Split, Records], n_items: int, log: Log | None = None) -> dict[str, Any]:
    """Sizes and shares of every split: `repeat` targets stand in their own history, `cold` ones are new to training.

    log: the log that the records' histories are spans of, where they have any.
    """
    train = records["train"]
    seen_items = np.zeros(n_items, bool)
    seen_items[_targets(train)] = True
    if train.log_items is not None and train.starts is not None and train.cuts is not None:
        covered = _covered(train.starts, train.cuts, len(train.log_items))
        for row in range(0, len(covered), CACHED_ROWS):
            part = slice(row, row + CACHED_ROWS)
            seen_items[train.log_items[part][covered[part]]] = True
        del covered
    if log is not None:
        met = first_meetings(log.users, log.items, log.chunks(CACHED_ROWS))
    train_users = train.users if train.users is not None else np.empty(0, np.int32)
    card: dict[str, Any] = {}
    for split in SPLITS:
        there = records[split]
        card[split] = {"records": len(there), "pairs": len(there.items), "positives": int((there.grades > 0).sum())}
        card[split]["cold_item_share"] = _share(~seen_items[_targets(there)])
        if there.users is not None and log is not None:
            known = np.zeros(max(int(part.max(initial=-1)) for part in (there.users, train_users)) + 1, bool)
            known[train_users] = True
            card[split]["cold_user_share"] = _share(~known[there.users])
            card[split]["repeat_share"] = _share(_repeats(there, log, met))
    return card


def length_card(
    catalogue: Catalogue, queries: Sequence[str], count_tokens: CountTokens, max_tokens: int
) -> dict[str, Any]:
    """Token lengths of item texts and queries, and for each part of the text how many rows lose tokens of it."""
    frame = catalogue.frame
    if frame.height > _AUDITED_ROWS:
        frame = frame.sample(_AUDITED_ROWS, seed=0)
    card: dict[str, Any] = {"max_tokens": max_tokens, "audited_items": frame.height}
    lengths = _lengths(frame["text"].to_list(), count_tokens)
    card["items"] = _summary(lengths, max_tokens)
    card["columns"] = _losing(frame, catalogue.fields, lengths, count_tokens, max_tokens)
    if queries:
        card["queries"] = _summary(_lengths(list(queries), count_tokens), max_tokens)
    return card


def text_length_card(texts: Texts, count_tokens: CountTokens, max_tokens: int) -> dict[str, Any]:
    """The same of texts: the text and its columns, the answers, and the two together."""
    frame, rows = texts.frame, np.arange(len(texts))
    if len(texts) > _AUDITED_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _AUDITED_ROWS, replace=False))
        frame = frame[rows]
    lengths = _lengths(frame["text"].to_list(), count_tokens)
    answers = _lengths(texts.names, count_tokens)
    card: dict[str, Any] = {"max_tokens": max_tokens, "audited_texts": len(rows)}
    card["texts"] = _summary(lengths, max_tokens)
    card["labels" if texts.target == "label" else "replies"] = _summary(answers, max_tokens)
    if texts.target != "label":
        longest = np.maximum.reduceat(answers[texts.items], texts.offsets[:-1])[rows]
        card["together"] = _summary(lengths + longest, max_tokens)
    card["columns"] = _losing(frame, texts.fields, lengths, count_tokens, max_tokens)
    return card


def label_card(records: Mapping[Split, Records], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each label stands in each split, the most frequent of training first."""
    counts = {split: np.bincount(records[split].items, minlength=len(names)) for split in SPLITS}
    order = np.argsort(-counts["train"], kind="stable").tolist()
    return {names[label]: {split: int(counts[split][label]) for split in SPLITS} for label in order}


def _losing(
    frame: pl.DataFrame, fields: Sequence[str], lengths: NDArray[np.int64], count_tokens: CountTokens, max_tokens: int
) -> dict[str, dict[str, int]]:
    """For each part of the texts how many rows have it, and how many lose tokens of it.

    Parts are joined in order, so that the last ones lose first: one loses where the text up to and with it is longer
    than what fits.
    """
    columns: dict[str, dict[str, int]] = {}
    # Only texts that do not fit can lose a part.
    long = frame.filter(pl.Series(lengths > max_tokens, dtype=pl.Boolean))
    for number, name in enumerate(fields):
        parts = [pl.col(f"field_{before}") for before in range(number + 1)]
        prefix = pl.concat_str(*parts, separator=SEPARATOR, ignore_nulls=True).alias("prefix")
        texts = long.filter(parts[-1].is_not_null()).select(prefix)
        cut = _lengths(texts["prefix"].to_list(), count_tokens) > max_tokens
        filled = frame.height - frame[f"field_{number}"].null_count()
        columns[name] = {"filled": filled, "rows_losing_tokens": int(cut.sum())}
    return columns


def _lengths(texts: list[str], count_tokens: CountTokens) -> NDArray[np.int64]:
    return np.array(count_tokens(texts), np.int64)


def _summary(lengths: NDArray[np.int64], max_tokens: int) -> dict[str, float | int]:
    if not len(lengths):
        return {"texts": 0}
    return {
        "texts": len(lengths),
        "mean": round(float(lengths.mean()), 1),
        "p50": float(np.percentile(lengths, 50)),
        "p95": float(np.percentile(lengths, 95)),
        "max": int(lengths.max()),
        "rows_losing_tokens": int((lengths > max_tokens).sum()),
    }


def _share(mask: NDArray[np.bool_]) -> float | None:
    return round(float(mask.mean()), 4) if len(mask) else None


def _targets(records: Records) -> NDArray[np.int32]:
    """The items that records are about: of events those that were taken, of other tables all candidates."""
    if records.queries is not None:
        return records.items
    taken = records.grades > 0
    return records.items if taken.all() else records.items[taken]


def _covered(starts: Rows, cuts: Rows, size: int) -> NDArray[np.bool_]:
    """The rows that lie in at least one history."""
    if len(starts) and (starts[1:] >= starts[:-1]).all():
        # Histories that begin alike lie within the longest of them.
        first = np.flatnonzero(np.r_[True, starts[1:] != starts[:-1]])
        starts, cuts = starts[first], np.maximum.reduceat(cuts, first)
    edges = np.zeros(size + 1, np.int32)
    np.add.at(edges, starts, 1)
    np.subtract.at(edges, cuts, 1)
    np.cumsum(edges, out=edges)
    return edges[:size] > 0


def _repeats(records: Records, log: Log, met: Rows) -> NDArray[np.bool_]:
    """Whether each target's item stands in its record's history: one value for each pair that is graded above 0.

    met: (E,) the row of the log where each event's user first met its item.
    """
    if records.users is None or records.cuts is None or not len(records):
        return np.zeros(int((records.grades > 0).sum()), bool)
    cuts, users, offsets = records.cuts, records.users, records.offsets

    def of(start: int) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        bounds = offsets[start : start + CACHED_ROWS + 1]
        pairs = slice(int(bounds[0]), int(bounds[-1]))
        owner = np.repeat(np.arange(start, start + len(bounds) - 1), np.diff(bounds))
        mine = np.flatnonzero(records.grades[pairs] > 0)
        owner, items, place = owner[mine], records.items[pairs][mine], mine + pairs.start
        # A target is mostly the event right after its history, and what that one met is known.
        row = (cuts[owner] + place - offsets[owner]).clip(max=len(log) - 1)
        found = met[row] < cuts[owner]
        other = np.flatnonzero((log.users[row] != users[owner]) | (log.items[row] != items))
        return found, owner[other], other

    with threads() as pool:
        parts = list(pool.map(of, range(0, len(records), CACHED_ROWS)))
    repeats = np.concatenate([found for found, _, _ in parts])
    before = np.cumsum([0, *(len(found) for found, _, _ in parts)])
    places = np.concatenate([other + start for (_, _, other), start in zip(parts, before, strict=False)])
    if len(places):
        owner = np.concatenate([owner for _, owner, _ in parts])
        items = _targets(records)[places]
        repeats[places] = _in_history(log, users[owner], items, cuts[owner])
    return repeats


def _in_history(log: Log, users: NDArray[np.int32], items: NDArray[np.int32], cuts: Rows) -> NDArray[np.bool_]:
    """Whether each user had met the item before the row of the log where the history is cut."""
    asked = np.zeros(int(max(log.users.max(initial=0), users.max(initial=0))) + 1, bool)
    asked[users] = True
    rows = np.flatnonzero(asked[log.users])
    if not len(rows):
        return np.zeros(len(users), bool)
    width = int(max(log.items.max(initial=0), items.max(initial=0))) + 1
    known, first = firsts(log.users[rows].astype(np.int64) * width + log.items[rows])
    wanted = users.astype(np.int64) * width + items
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    found: NDArray[np.bool_] = (known[place] == wanted) & (rows[first[place]] < cuts)
    return found
