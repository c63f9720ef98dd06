"""What an epoch sees once: a record, or all records that a task wants in one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["Examples", "example_records"]


@dataclass(frozen=True)
class Examples:
    """The records of each example: those of example e are `order[bounds[e]:bounds[e + 1]]`.

    Attributes:
        order: (R,) record numbers.
        bounds: (E + 1,).
    """

    order: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def records(self, examples: np.ndarray) -> np.ndarray:
        """The records of some examples, one example's behind the other's."""
        parts = [self.order[self.bounds[example] : self.bounds[example + 1]] for example in examples]
        found: np.ndarray = np.concatenate([self.order[:0], *parts])
        return found


def example_records(task: Any, config: Any, records: Records) -> Examples:
    """The examples of a task; `tasks._base.Grouping` says what they are."""
    of = getattr(task, "examples", None)
    owner = np.arange(len(records)) if of is None else of(config, records)
    order = np.argsort(owner, kind="stable")
    return Examples(order, np.concatenate([[0], np.cumsum(np.bincount(owner))]).astype(np.int64))
