"""Diversity: how unlike each other the items of one list are.

    diversity@k = mean over pairs of items within the first k places of 1 - |A and B| / |A or B|

A and B are the sets of words (`recft.data.text.words`) of the two items' texts, hence Jaccard's distance. The mean of
pairs is the intra-list distance (Ziegler et al., Improving recommendation lists through topic diversification, 2005;
Smyth and McClave, Similarity vs. diversity, 2001). Two texts without words count as alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from recft.data.text import runs_of, words_of_run
from recft.metrics._base import Lists, Metric
from recft.metrics._lists import blocks

__all__ = ["MEMBER", "lists"]

MANY_BLOCKS = 16
"""From so many blocks on, several threads are worth starting."""

MOST_THREADS = 4
"""More wait for the interpreter's lock, and each holds a block."""

BLOCK_PAIRS = 1 << 19
"""Pairs of items that are compared at a time by a thread: 6 MiB for each word that all share."""


def lists(given: Lists, cutoff: int | None) -> np.ndarray:
    """The diversity of each record's list, (R,), NaN where it shows fewer than two items.

    Of three words in all, the two items share one:

    >>> texts = ["red chair", "red desk", "红色椅子"]
    >>> lists(Lists(np.array([[0, 1], [0, 2]]), np.zeros(3), texts), 2).round(4).tolist()
    [0.6667, 1.0]
    """
    top = given.first(cutoff)
    if not top.shape[1] or not len(given.texts):
        return np.full(len(top), np.nan)
    place = np.full(len(given.texts), -1)
    for part in blocks(top):
        place[part[part >= 0]] = 0
    used = np.flatnonzero(place == 0)
    place[used] = np.arange(len(used))
    starts, held = given.kept.setdefault(id(given.texts), _Words(given.texts))(used)
    size = max(1, BLOCK_PAIRS // top.shape[1] ** 2)
    table = _Table(starts[:-1], np.diff(starts), held, int(held.max(initial=0)) + 1)
    parts = [top[start : start + size] for start in range(0, len(top), size)]

    def of(part: np.ndarray) -> np.ndarray:
        return _of_block(np.where(part >= 0, place[np.maximum(part, 0)], -1), table)

    if len(parts) < MANY_BLOCKS:
        return np.concatenate([np.zeros(0), *map(of, parts)])
    import torch

    with ThreadPoolExecutor(min(torch.get_num_threads(), MOST_THREADS)) as pool:
        return np.concatenate(list(pool.map(of, parts)))


class _Words:
    """The different words of each item that was asked for so far, as numbers."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._numbers: dict[str, int] = {}
        self._of_run: dict[str, int] = {"\n": 0}
        self._words: list[list[int]] = [[]]
        self._row = np.full(len(texts), -1, np.int64)
        self._sizes, self._held = np.zeros(0, np.int64), np.zeros(0, np.int64)

    def __call__(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item i has the words `held[starts[i]:starts[i + 1]]`: (starts, held)."""
        new = items[self._row[items] < 0]
        if len(new):
            owners, numbers = self._read(new.tolist())
            self._row[new] = len(self._sizes) + np.arange(len(new))
            self._sizes = np.concatenate([self._sizes, np.bincount(owners, minlength=len(new))])
            self._held = np.concatenate([self._held, numbers])
        rows = self._row[items]
        ends = np.cumsum(self._sizes)
        return _ragged(ends[rows] - self._sizes[rows], self._sizes[rows], self._held)

    def _read(self, items: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The different words of each of these items: the item's place, ascending, and the word's number."""
        runs = runs_of([self._texts[item] for item in items])
        # What is done in Python is done once for each different run of letters.
        for run in dict.fromkeys(runs):
            if run not in self._of_run:
                self._of_run[run] = len(self._words)
                self._words.append([self._numbers.setdefault(word, len(self._numbers)) for word in words_of_run(run)])
        codes = np.fromiter(map(self._of_run.__getitem__, runs), np.int64, len(runs))
        sizes = np.array([len(words) for words in self._words])
        starts = np.cumsum(sizes) - sizes
        every = np.array([word for words in self._words for word in words], np.int64)
        owners = np.repeat(np.cumsum(codes == 0), sizes[codes])  # a line break ends each text, and has no words
        _, words = _ragged(starts[codes], sizes[codes], every)
        n_words = max(len(self._numbers), 1)
        ordered = np.sort(owners * n_words + words)
        return np.divmod(ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]], n_words)


def _ragged(starts: np.ndarray, sizes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts of an array one after the other, and where each begins, with the end: (n + 1,) and (sum of sizes,)."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return offsets, values[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)]


class _Table(NamedTuple):
    """Item i has the words `held[starts[i]:starts[i] + sizes[i]]`, numbers below `n_words`."""

    starts: np.ndarray
    sizes: np.ndarray
    held: np.ndarray
    n_words: int


def _of_block(top: np.ndarray, table: _Table) -> np.ndarray:
    """The diversity of some lists, (B,), of items whose words are given."""
    # So wide that a list and a place in it are bits of one number.
    bits = (top.shape[1] - 1).bit_length()
    wide = np.full((len(top), 1 << bits), -1)
    wide[:, : top.shape[1]] = top
    is_item = wide >= 0
    sizes = np.where(is_item, table.sizes[wide], 0) if len(table.sizes) else np.zeros_like(wide)
    # Two items are 1 apart unless they share words, and 0 where neither has any.
    n, wordless = (mask.sum(axis=1) * (mask.sum(axis=1) - 1) // 2 for mask in (is_item, is_item & (sizes == 0)))
    first, second, shared = _sharing(wide.ravel(), sizes.ravel(), table, bits)
    alike = shared / (sizes.ravel()[first] + sizes.ravel()[second] - shared)
    total = n - wordless - np.bincount(first >> bits, weights=alike, minlength=len(top))
    out = np.full(len(top), np.nan)
    np.divide(total, n, out=out, where=n > 0)
    return out


def _sharing(
    items: np.ndarray, sizes: np.ndarray, table: _Table, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every two places of a list that share words, and how many; a place's number begins with its list's."""
    word_bits, within = int(table.n_words).bit_length(), (1 << bits) - 1
    # By list, then by word, then by place: places that have a word of a list stand side by side.
    place = np.arange(len(items))
    here = ((place >> bits << (bits + word_bits)) | (place & within)).astype(_narrow(len(items) << word_bits))
    _, word = _ragged(table.starts[items], sizes, table.held) if sizes.any() else (here[:0], here[:0])
    ordered = np.repeat(here, sizes)  # one for each word of each place
    ordered |= word.astype(here.dtype) << bits
    ordered.sort()
    # Of most words only one place of a list has them.
    keys = ordered >> bits
    again = np.append(np.append(False, keys[1:] == keys[:-1]), False)[: len(keys) + 1]
    ordered = ordered[again[:-1] | again[1:]].astype(np.int64)
    keys, places = ordered >> bits, (ordered >> (bits + word_bits) << bits) | (ordered & within)
    places = places.astype(_narrow(len(items) << bits))
    fresh = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
    number = np.arange(len(keys))
    before = number - np.maximum.accumulate(np.where(fresh, number, 0))  # how many places have the word before this one
    _, first = _ragged(number - before, before, places)
    pairs = np.repeat(places & within, before)
    pairs |= first << bits
    pairs.sort()
    at = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)])
    first = pairs[at] >> bits
    return first, (first & ~within) | (pairs[at] & within), np.diff(at, append=len(pairs)).astype(np.float64)


def _narrow(below: int) -> type[np.signedinteger[Any]]:
    """Integers that hold numbers below a bound: 32 bits are sorted in half the time."""
    return np.int32 if below <= 1 << 31 else np.int64


MEMBER = Metric(summary="how unlike each other the items of a list are", lists=lists, needs_cutoff=True)
