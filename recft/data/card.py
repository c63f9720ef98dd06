"""The data card: what was read, dropped and set aside, how it was split, and what the models will not see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.items import SEPARATOR, Catalogue
from recft.data.store import SPLITS, Records, Split
from recft.data.texts import Texts

__all__ = ["CountTokens", "label_card", "length_card", "split_card", "text_length_card"]

CountTokens = Callable[[list[str]], list[int]]
"""The number of tokens of each text, special tokens included."""

_AUDITED_ROWS = 200_000
_CHUNK_ROWS = 10_000
_RECORDS_A_CHUNK = 500_000


def split_card(records: Mapping[Split, Records], n_items: int) -> dict[str, Any]:
    """Sizes and shares of every split: `repeat` targets stand in their own history, `cold` ones are new to training."""
    train = records["train"]
    seen_items = np.zeros(n_items, bool)
    seen_items[train.items[train.grades > 0] if train.queries is None else train.items] = True
    if train.log_items is not None and train.starts is not None and train.cuts is not None:
        seen_items[train.log_items[_covered(train.starts, train.cuts, len(train.log_items))]] = True
    card: dict[str, Any] = {}
    for split in SPLITS:
        there = records[split]
        card[split] = {"records": len(there), "pairs": len(there.items), "positives": int((there.grades > 0).sum())}
        targets = there.grades > 0 if there.queries is None else np.ones(len(there.items), bool)
        card[split]["cold_item_share"] = _share(~seen_items[there.items[targets]])
        if there.users is not None:
            known = train.users if train.users is not None else np.empty(0, np.int32)
            card[split]["cold_user_share"] = _share(~np.isin(there.users, known))
            card[split]["repeat_share"] = _share(_repeats(there)[targets])
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
    parts = [count_tokens(texts[start : start + _CHUNK_ROWS]) for start in range(0, len(texts), _CHUNK_ROWS)]
    return np.array([length for part in parts for length in part], np.int64)


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


def _covered(starts: NDArray[np.int64], cuts: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """The rows that lie in at least one history."""
    edges = np.bincount(starts, minlength=size + 1) - np.bincount(cuts, minlength=size + 1)
    return np.cumsum(edges[:size]) > 0


def _repeats(records: Records) -> NDArray[np.bool_]:
    """Whether each candidate's item stands in its record's history: (P,)."""
    if records.log_items is None or records.users is None or records.starts is None or records.cuts is None:
        return np.zeros(len(records.items), bool)
    if not len(records):
        return np.zeros(0, bool)
    chunks = range(0, len(records), _RECORDS_A_CHUNK)
    return np.concatenate(
        [_repeats_of(records, start, min(start + _RECORDS_A_CHUNK, len(records))) for start in chunks]
    )


def _repeats_of(records: Records, start: int, stop: int) -> NDArray[np.bool_]:
    """The same for the records from `start` to `stop`, from their own users' rows alone."""
    starts, cuts, log_items = records.starts, records.cuts, records.log_items
    if starts is None or cuts is None or log_items is None:
        return np.zeros(int(records.offsets[stop] - records.offsets[start]), bool)
    starts, cuts, bounds = starts[start:stop], cuts[start:stop], records.offsets[start : stop + 1]
    items = records.items[bounds[0] : bounds[-1]]
    # Users are told apart by where their rows start. Their first meeting with an item is in the history if it lies
    # before the cut.
    first_rows = np.unique(starts)
    lengths = np.diff(np.r_[first_rows, cuts.max()])
    width = int(max(log_items.max(initial=0), items.max(initial=0))) + 1
    keys = np.repeat(first_rows, lengths) * width + log_items[first_rows[0] : cuts.max()]
    known, first = np.unique(keys, return_index=True)
    owner = np.repeat(np.arange(stop - start), np.diff(bounds))
    wanted = starts[owner] * width + items
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    met: NDArray[np.bool_] = (known[place] == wanted) & (first[place] + first_rows[0] < cuts[owner])
    return met
