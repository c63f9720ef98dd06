"""Tasks whose customers write badly: the same task, handed spoilt records. No prompt and no label is touched.

A wrapped task is handed to scoring or to training in place of the task itself; what a record's context is, and what
an item's text, the task goes on deciding alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np

from recft.perturbations._base import Sides, augmented, spoiler
from recft.perturbations._words import Words

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["augmented_task", "spoilt_records", "spoilt_task"]

Task = TypeVar("Task")


def spoilt_task(
    task: Task, shares: Mapping[str, float], seed: int, sides: Sides = "contexts", words: Words | None = None
) -> Task:
    """The task for scoring: its contexts, its candidates or both come spoilt, always in the same way.

    Args:
        task: any task.
        shares: perturbation -> share of the words that it touches.
        seed: another seed spoils otherwise.
        sides: what is spoilt: queries, texts and histories, or items as candidates, or both.
        words: a shop's own, from `read_words`.

    Raises:
        RecipeError: there is no such perturbation, or a share is not from 0 to 1.
    """
    return cast("Task", _Spoilt(task, spoiler(shares, seed, words), sides))


def augmented_task(
    task: Task,
    probabilities: Mapping[str, float],
    share: float = 0.2,
    sides: Sides = "contexts",
    words: Words | None = None,
) -> Task:
    """The task for training: each text of a batch is spoilt by at most one of the perturbations, anew each time.

    Args:
        task: any task.
        probabilities: perturbation -> how likely a text gets it; together at most 1.
        share: of the words of a text that is spoilt.
        sides: what is spoilt. Of a context and an item read together only the former can be.
        words: a shop's own, from `read_words`.

    Raises:
        RecipeError: there is no such perturbation, or probabilities that are none.
    """
    augmented([], probabilities, np.random.default_rng(0))  # names and probabilities are checked before any batch
    return cast("Task", _Augmented(task, probabilities, share, sides, words))


def spoilt_records(
    records: Records, rows: np.ndarray, items: Sequence[str], spoilt: Callable[[str], str], sides: Sides
) -> tuple[Records, Sequence[str]]:
    """The records `rows` and item texts, from which a task makes spoilt texts.

    The first N item texts are the candidates'. Of `contexts`, queries are spoilt, and history items are numbers from
    N on, whose texts are spoilt: an item may stand in one record as history and as candidate.

    Args:
        records: of a split.
        rows: which of them.
        items: N item texts.
        spoilt: what happens to a text.
        sides: to which.
    """
    part = records.take(rows)
    candidates = items if sides == "contexts" else _Lazy(items, spoilt)
    if part.queries is not None and sides != "items":
        part = dataclasses.replace(part, queries=[spoilt(query) for query in part.queries])
    if part.starts is None or part.cuts is None or part.log_items is None:
        return part, candidates
    history = items if sides == "items" else _Lazy(items, spoilt)
    # Only these histories' rows of the log: the log itself may be long.
    sizes = part.cuts - part.starts
    cuts = np.cumsum(sizes)
    log = np.arange(int(sizes.sum())) + np.repeat(part.starts - (cuts - sizes), sizes)
    return dataclasses.replace(
        part,
        starts=cuts - sizes,
        cuts=cuts,
        log_items=np.asarray(part.log_items)[log] + np.int32(len(items)),
        log_times=None if part.log_times is None else np.asarray(part.log_times)[log],
        log_ratings=None if part.log_ratings is None else np.asarray(part.log_ratings)[log],
    ), _Joined(candidates, history)


class _Spoilt:
    """A task whose texts for scoring are spoilt; all else is the task's own."""

    def __init__(self, task: Any, spoilt: Callable[[str], str], sides: Sides) -> None:
        self._task, self._spoilt, self._sides = task, spoilt, sides

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    @property
    def contexts(self) -> Callable[..., Any]:
        own = self._task.contexts  # a task that has none has none that are spoilt

        def spoilt(config: Any, records: Records, rows: np.ndarray, items: Sequence[str]) -> Any:
            part, texts = spoilt_records(records, rows, items, self._spoilt, self._sides)
            return own(config, part, np.arange(len(part)), texts)

        return spoilt

    def pairs(self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str]) -> Any:
        part, texts = spoilt_records(records, rows, items, self._spoilt, self._sides)
        return self._task.pairs(config, part, np.arange(len(part)), texts)

    def candidates(self, config: Any, items: Sequence[str]) -> Any:
        spoilt = items if self._sides == "contexts" else [self._spoilt(text) for text in items]
        return self._task.candidates(config, spoilt)


class _Augmented:
    """A task whose batches are spoilt; all else is the task's own."""

    def __init__(
        self, task: Any, probabilities: Mapping[str, float], share: float, sides: Sides, words: Words | None
    ) -> None:
        self._task, self._sides = task, sides
        self._settings = (probabilities, share, words)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def batch(
        self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str], rng: np.random.Generator
    ) -> Any:
        probabilities, share, words = self._settings
        if records.queries is not None and self._sides == "contexts":
            # Before a task puts its own words around them.
            spoilt = augmented([records.queries[row] for row in rows], probabilities, rng, share, words)
            # All the other records stay: a task may count over them.
            queries = _Over(records.queries, dict(zip(rows.tolist(), cast("list[str]", spoilt), strict=True)))
            part = dataclasses.replace(records, queries=cast("list[str]", queries))
            return self._task.batch(config, part, rows, items, rng)
        batch = self._task.batch(config, records, rows, items, rng)
        prompts = [value for _, value in config if isinstance(value, str)]
        which = self._which(config, batch.texts, records, rows, items)
        texts = augmented(batch.texts, probabilities, rng, share, words, prompts, which)
        return dataclasses.replace(batch, texts=texts)

    def _which(
        self, config: Any, texts: Sequence[Any], records: Records, rows: np.ndarray, items: Sequence[str]
    ) -> list[int] | None:
        """The places of a batch's texts that may be spoilt; None for all."""
        reads = self._task.reads(config)
        if self._sides == "both" or reads == "pairs":
            return None
        contexts = set() if reads == "contexts" else set(self._task.contexts(config, records, rows, items))
        if reads == "contexts":
            return list(range(len(texts))) if self._sides == "contexts" else []
        return [place for place, text in enumerate(texts) if (text in contexts) == (self._sides == "contexts")]


class _Lazy(Sequence[str]):
    """Texts that are changed when they are first read: of a large catalogue most are never in a history."""

    def __init__(self, texts: Sequence[str], change: Callable[[str], str]) -> None:
        self._texts, self._change = texts, change
        self._known: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[int(place)]
        if number not in self._known:
            self._known[number] = self._change(self._texts[number])
        return self._known[number]


class _Over(Sequence[str]):
    """Texts of which some are replaced, with nothing copied."""

    def __init__(self, texts: Sequence[str], replaced: Mapping[int, str]) -> None:
        self._texts, self._replaced = texts, replaced

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[int(place)]
        return self._replaced.get(number, self._texts[number])


class _Joined(Sequence[str]):
    """Two sequences of texts, one after the other, with nothing copied."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[int(place)]
        cut = len(self._first)
        return self._first[number] if number < cut else self._second[number - cut]
