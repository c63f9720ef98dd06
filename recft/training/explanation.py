"""Why this item: which words of a query or a history, and which of its items, move a score most.

Leave-one-out: effect = score of the whole - score without the part. What is left out goes before the task puts its
own words around a query or a history, so that prompts are never parts. Parts that say the same, such as two equal
words, share what they say: each alone may have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from recft.data.spans import spans
from recft.data.store import Records
from recft.tasks._base import Task, Text

__all__ = [
    "LEAVE_ONE_OUT",
    "Part",
    "explain",
    "items_left_out",
    "leave_one_out",
    "words_left_out",
]

LEAVE_ONE_OUT = "leave-one-out"

Context = TypeVar("Context")
History = tuple[str, ...]
"""The texts of a history's items, oldest first."""


class _Events(NamedTuple):
    """A history as a record holds it: texts, and the stars beside them, where there are any."""

    texts: History
    stars: tuple[float, ...] | None


_PARTED = ("; ", ", ", "；", "，", " ")


@dataclass(frozen=True)
class Part:
    """A part of a context, and what it does to a score.

    Attributes:
        kind: a word, or an item of the history.
        text: as it stands there.
        effect: by how much it raises the score; below 0 where it lowers it.
        start: where it begins in the query, or in its item's text.
        end: where it ends.
        item: the place of its item in the history, from 0, the oldest; None in a query.
    """

    kind: Literal["word", "item"]
    text: str
    effect: float
    start: int
    end: int
    item: int | None = None


def explain(
    task: Task,
    config: Any,
    encode: Callable[[Sequence[Text]], np.ndarray],
    items: Sequence[str],
    chosen: Sequence[int],
    context: str | Sequence[str],
    scores: Callable[[np.ndarray], np.ndarray] | None = None,
    record: Records | None = None,
) -> list[list[Part]]:
    """For each chosen item (or class) the parts of the context with their effects, in reading order.

    The model reads all that is left in one call.

    Args:
        task: what scores.
        config: its settings.
        encode: texts -> (N, K).
        items: N item texts.
        chosen: item numbers; class numbers where the task reads contexts alone.
        context: a query or text, or the item texts of a history, oldest first.
        scores: outputs (P, K) -> scores, where they are more than the task's own, such as calibrated; of no use where
            context and items are read apart.
        record: the one whose score is explained, where it says more than the context: its user's profile, and the stars
            of its history, which must be the events of the context.
    """
    meant = scores or (lambda outputs: task.scores(config, outputs))  # a task of two towers has none of its own
    score = partial(_scores, task, config, encode, meant, [items[item] for item in chosen], chosen, record)
    if isinstance(context, str):
        return leave_one_out(score, context, words_left_out(context))
    stars = _stars(record)
    places = _read(task, config, context)
    shown = tuple(context[place] for place in places)
    kept = None if stars is None else tuple(stars[place] for place in places)
    left = [(part, _Events(rest, _without_stars(kept, part))) for part, rest in items_left_out(shown)]
    found = leave_one_out(score, _Events(shown, kept), left)
    return [[dataclasses.replace(part, item=places[part.item or 0]) for part in parts] for parts in found]


def leave_one_out(
    score: Callable[[Sequence[Context]], np.ndarray], whole: Context, left: Sequence[tuple[Part, Context]]
) -> list[list[Part]]:
    """The parts with their effects, in one call of `score`; a list for each of its M columns.

    Args:
        score: V contexts -> (V, M).
        whole: the context with nothing left out.
        left: each part, and the context without it.
    """
    scores = np.asarray(score([whole, *(context for _, context in left)]), np.float64)
    effects = scores[0] - scores[1:]  # (parts, M)
    return [
        [dataclasses.replace(part, effect=float(effect)) for (part, _), effect in zip(left, column, strict=True)]
        for column in effects.T
    ]


def words_left_out(text: str) -> list[tuple[Part, str]]:
    """Each word of a text, and the text without it.

    >>> [(part.text, rest) for part, rest in words_left_out("red oak, chair")]
    [('red', 'oak, chair'), ('oak', 'red, chair'), ('chair', 'red oak')]
    """
    return [(Part("word", text[start:end], 0.0, start, end), _without(text, start, end)) for start, end in spans(text)]


def items_left_out(history: History) -> list[tuple[Part, History]]:
    """Each item of a history with the history without it, then each word of each item likewise."""
    found: list[tuple[Part, History]] = [
        (Part("item", text, 0.0, 0, len(text), place), history[:place] + history[place + 1 :])
        for place, text in enumerate(history)
    ]
    for place, text in enumerate(history):
        for part, rest in words_left_out(text):
            # An item of one word is that word.
            if rest.strip():
                left = (*history[:place], rest, *history[place + 1 :])
                found.append((dataclasses.replace(part, item=place), left))
    return found


def _stars(record: Records | None) -> list[float] | None:
    """The stars of a record's history, oldest first."""
    if record is None or record.log_ratings is None or record.starts is None or record.cuts is None:
        return None
    stars: list[float] = record.log_ratings[record.starts[0] : record.cuts[0]].tolist()
    return stars


def _without_stars(stars: tuple[float, ...] | None, part: Part) -> tuple[float, ...] | None:
    """The stars of what is left when a part is left out: with an item go its stars."""
    if stars is None or part.kind == "word" or part.item is None:
        return stars
    return stars[: part.item] + stars[part.item + 1 :]


def _without(text: str, start: int, end: int) -> str:
    """The text without a part, and without the mark that would then stand twice, or at an end."""
    before, after = text[:start], text[end:]
    for mark in _PARTED:
        if after.startswith(mark) and (not before or before.endswith(mark)):
            return before + after[len(mark) :]
        if before.endswith(mark) and not (after and after[0].isalnum()):
            return before[: -len(mark)] + after
    return before + after


def _read(task: Task, config: Any, history: Sequence[str]) -> list[int]:
    """The places of the history's items that the task reads: the newest ones, each text once."""
    newest = {text: place for place, text in enumerate(history)}
    # Signs of no language stand for the texts: a prompt, or another item's text, may hold the words of one.
    signs = {text: f"\ue000{place}\ue001" for text, place in newest.items()}
    text = _rendered(task, config, [_Events(tuple(signs[text] for text in history), None)], [""], None)[0]
    shown = text if isinstance(text, str) else "".join(text)
    return sorted(place for text, place in newest.items() if signs[text] in shown)


def _scores(
    task: Task,
    config: Any,
    encode: Callable[[Sequence[Text]], np.ndarray],
    meant: Callable[[np.ndarray], np.ndarray],
    items: Sequence[str],
    chosen: Sequence[int],
    record: Records | None,
    contexts: Sequence[str] | Sequence[_Events],
) -> np.ndarray:
    """The score of each context with each of M items, (V, M), in one call of `encode`."""
    texts = _rendered(task, config, contexts, items, record)
    reads = task.reads(config)
    if reads == "towers":
        vectors = encode([*texts, *task.candidates(config, items)])
        return np.asarray(vectors[: len(texts)] @ vectors[len(texts) :].T)
    scores = np.asarray(meant(encode(texts)))
    if reads == "contexts":
        return scores[:, list(chosen)]
    # Of a likelihood the first column is the score, the second counts tokens.
    return (scores[:, 0] if scores.ndim == 2 else scores).reshape(len(contexts), len(items))


def _rendered(
    task: Task,
    config: Any,
    contexts: Sequence[str] | Sequence[_Events],
    items: Sequence[str],
    record: Records | None,
) -> list[Text]:
    """What the model reads: a text a context, or a text a context and item."""
    records, texts = _records(contexts, items, record)
    rows = np.arange(len(contexts))
    if task.reads(config) == "pairs":
        return task.pairs(config, records, rows, texts)
    # Some tokenizers make no token of an empty text, and a model cannot read none.
    return [text or " " for text in task.contexts(config, records, rows, texts)]


def _records(
    contexts: Sequence[str] | Sequence[_Events], items: Sequence[str], record: Records | None
) -> tuple[Records, list[str]]:
    """Contexts as records with every item as candidate, and the item texts: the candidates', then the histories'.

    Args:
        contexts: queries, or histories.
        items: the candidates' texts.
        record: whose user, and profile, all contexts have.
    """
    queries = [context for context in contexts if isinstance(context, str)]
    histories = [context for context in contexts if not isinstance(context, str)]
    every = [text for history in histories for text in history.texts]
    known = {text: place for place, text in enumerate(dict.fromkeys(every))}
    bounds = np.cumsum([0, *(len(history.texts) for history in histories)]).astype(np.int64)
    stars = [star for history in histories for star in history.stars or ()]
    rated = bool(histories) and all(history.stars is not None for history in histories)
    n, m = len(contexts), len(items)
    users = None if record is None or record.users is None else np.repeat(record.users[:1], n)
    records = Records(
        keys=[str(place) for place in range(n)],
        queries=queries if queries else None,
        users=users,
        starts=None if queries else bounds[:-1],
        cuts=None if queries else bounds[1:],
        times=None,
        offsets=np.arange(n + 1, dtype=np.int64) * m,
        items=np.tile(np.arange(m, dtype=np.int32), n),
        grades=np.zeros(n * m, np.float32),
        log_items=None if queries else np.array([len(items) + known[text] for text in every], np.int32),
        log_ratings=np.array(stars, np.float32) if rated else None,
        profiles=None if record is None else record.profiles,
    )
    return records, [*items, *known]
