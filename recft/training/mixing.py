"""Which task each optimizer step of a run is for, and which of its examples the step sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from recft.models.text_model import TextModel
    from recft.tasks._base import Batch

__all__ = ["Order", "Part", "epoch_steps"]


@dataclass(frozen=True)
class Part:
    """One task of a job.

    Attributes:
        model: the base as this task sees it.
        n_examples: examples of an epoch.
        batch: example numbers and a generator -> a batch.
        loss: outputs (N, K), their batch, the untuned base's outputs or None -> the mean loss.
        needs_base: whether the loss wants the untuned base's outputs.
        weight: its share of the steps, beside the others' weights.
    """

    model: TextModel
    n_examples: int
    batch: Callable[[np.ndarray, np.random.Generator], Batch]
    loss: Callable[[Tensor, Batch, Tensor | None], Tensor]
    needs_base: bool = False
    weight: float = 1.0


def epoch_steps(sizes: Sequence[int], batch_size: int) -> int:
    """Optimizer steps in which each task's examples could be seen once."""
    return sum(math.ceil(size / batch_size) for size in sizes)


class Order:
    """The task and the examples of every step, a function of the seed alone: a resumed run needs no more."""

    def __init__(self, parts: Sequence[Part], batch_size: int, total: int, seed: int) -> None:
        self._parts, self._batch_size, self._seed = parts, batch_size, seed
        weights = np.array([part.weight for part in parts])
        self._turns = _turns(weights / weights.sum(), total)  # (total,)
        self._own = np.zeros(total, np.int64)  # how often the step's task had its turn before
        for number in range(len(parts)):
            own = self._turns == number
            self._own[own] = np.arange(own.sum())
        self._kept: dict[int, tuple[int, np.ndarray]] = {}  # of each task the epoch of its last step, and its order

    def at(self, step: int) -> tuple[Part, np.ndarray]:
        """The task of a step and its examples: each epoch of a task is a new order of all its examples."""
        number = int(self._turns[step])
        part = self._parts[number]
        epoch, place = divmod(int(self._own[step]), math.ceil(part.n_examples / self._batch_size))
        order = self._order(number, epoch)
        # A copy: what a caller does with its batch must not reach the epoch's later steps.
        return part, order[place * self._batch_size : (place + 1) * self._batch_size].copy()

    def _order(self, number: int, epoch: int) -> np.ndarray:
        """All examples of a task in the order of an epoch; drawn once where steps follow each other."""
        kept = self._kept.get(number)
        if kept is None or kept[0] != epoch:
            drawn = np.random.default_rng([self._seed, 0, epoch, number]).permutation(self._parts[number].n_examples)
            kept = self._kept[number] = epoch, drawn
        return kept[1]


def _turns(shares: np.ndarray, total: int) -> np.ndarray:
    """The number of the task of each step: whichever is furthest behind its share, the first of equals."""
    given = np.zeros(len(shares))
    turns = np.zeros(total, np.int64)
    for step in range(total) if len(shares) > 1 else ():
        turns[step] = int(np.argmax(shares * (step + 1) - given))
        given[turns[step]] += 1
    return turns
