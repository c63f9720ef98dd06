"""What every task meets: records in, texts and a loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from recft.registry import Refusal
from recft.schema import TaskSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from recft.data.store import Records

__all__ = ["Batch", "Head", "Task", "Text"]

Text = str | tuple[str, str]
"""A text, or (body, tail): the body is cut where the two are too long, the tail never."""

Head = Literal["embedding", "classifier", "answers"]
"""What a model's output is: a pooled vector, the logits of a new head, or the logits of answer tokens."""


@dataclass(frozen=True)
class Batch:
    """One optimizer step's examples, as texts and the arrays that the task's loss reads.

    Attributes:
        texts: N different texts; the model turns each into K numbers, once.
        arrays: whatever ties texts to targets; private to the task.
        n_examples: how many examples the batch holds.
    """

    texts: Sequence[Text]
    arrays: Mapping[str, np.ndarray]
    n_examples: int


class Task(Protocol):
    """One task: how records become model input, a target, a loss and scores."""

    Config: type[TaskSettings]
    summary: str
    table: Literal["queries", "interactions"]
    output: Literal["ranking", "labels"]
    heads: Mapping[str, Head]
    metrics: tuple[str, ...]
    monitor: str
    labels: tuple[str, ...]
    refusals: tuple[Refusal, ...]

    def batch(
        self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str], rng: np.random.Generator
    ) -> Batch:
        """The batch of the records `rows`; `items` are the catalogue's texts by item number."""

    def needs_base(self, config: Any) -> bool:
        """Whether the loss compares with the untuned base (an anchor, a preference's reference)."""

    def loss(self, config: Any, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, a scalar.

        Args:
            config: the task's settings.
            outputs: (N, K), float32, of the batch's texts.
            batch: what `batch` gave.
            base: (N, K), the same of the untuned base, where `needs_base` says so.
        """

    def contexts(self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """The text of each record on its own: a query, a history (ranking tasks)."""

    def candidates(self, config: Any, items: Sequence[str]) -> list[Text]:
        """The text of each item on its own (ranking tasks)."""

    def pairs(self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """One text for each candidate pair of the records, in order (label tasks)."""

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """The score of each pair from its outputs (P, K), higher is more likely yes (label tasks): (P,)."""
