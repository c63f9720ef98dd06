"""What every task meets: records in, texts and a loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from recft.registry import Refusal
from recft.schema import Output, TaskSettings

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["Batch", "Grouping", "Head", "Output", "Reads", "Task", "Text", "scored"]

Text = str | tuple[str, str]
"""A text, or (body, tail): the body is cut where the two are too long, the tail never."""

Head = Literal["embedding", "classifier", "answers", "likelihood"]
"""What a model's output is: a pooled vector, the logits of a new head, the logits of answer tokens, or how likely a
tail is after its body: (sum of log p over the tail's tokens in nats, number of those tokens)."""

Reads = Literal["towers", "pairs", "contexts"]
"""How a model meets a record: context and candidates apart, each candidate together with its context, or the context
alone."""


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
    """One task: how records become model input, a target, a loss and scores.

    `tables` names the tables that it can learn from; `labelled` says whether `data.labels` makes its grades; `metrics`
    are its own, `monitor` the one that chooses a step.
    """

    Config: type[TaskSettings]
    summary: str
    tables: tuple[Table, ...]
    labelled: bool
    output: Output
    metrics: tuple[str, ...]
    monitor: str
    refusals: tuple[Refusal, ...]

    def reads(self, config: Any) -> Reads:
        """How the model meets a record."""

    def head(self, config: Any, kind: str) -> Head | None:
        """What the model's output is on this kind of base; None where the task cannot run on it."""

    def labels(self, config: Any, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:
        """What the columns of a classifier or of answers mean; none of other heads. `catalogue`: the item ids."""

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
        """The text of each record on its own: a query, a history, a review (towers, contexts)."""

    def candidates(self, config: Any, items: Sequence[str]) -> list[Text]:
        """The text of each item on its own (towers)."""

    def pairs(self, config: Any, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """One text for each candidate pair of the records, in order (pairs)."""

    def scores(self, config: Any, outputs: np.ndarray) -> np.ndarray:
        """What outputs (P, K) say (pairs, contexts): a score, a probability of yes or a number for each, (P,).

        Of classes it is a probability for each, (P, C); of a likelihood the outputs themselves, (P, 2).
        """

    def numbers(self, config: Any, outputs: np.ndarray, records: Records, rows: np.ndarray) -> np.ndarray:
        """The number for each candidate pair of the records, (P,): what a record says counts too (values)."""


class Grouping(Protocol):
    """What a task has besides whose examples may be several records; any other's are one each."""

    def examples(self, config: Any, records: Records) -> np.ndarray:
        """Which example each record belongs to, (R,), from 0.

        An example is what an epoch sees once and `tune.batch_size` counts; its records come in one batch.
        """


def scored(task: Task, config: Any, outputs: np.ndarray, records: Records, rows: np.ndarray) -> np.ndarray:
    """What outputs say of the records' own pairs."""
    if task.output == "values":
        return task.numbers(config, outputs, records, rows)
    return task.scores(config, outputs)
