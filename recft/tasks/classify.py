"""Which class a text is of: a review's sentiment, what a customer wants, who will leave.

The logits of a new head, one for each label of the data, on either kind of base; the loss is their cross-entropy.
`class_weights: balanced` weighs an example by n / (K · n_k), with n_k of the n training texts in its class k of K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.registry import Refusal
from recft.schema import TaskSettings
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

MOST_CHARACTERS = 100_000
"""Of a text: more than a base reads, and a text of a megabyte takes a second to tokenize."""


class ClassifySettings(TaskSettings):
    """Settings of `task: classify`."""

    name: Literal["classify"] = "classify"
    before: str = Field(default="", description="stands before every text")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class counts the same in the loss, however rare"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="this share of each target is spread over all classes"
    )


class Classify:
    """The task's object; see the module."""

    Config = ClassifySettings
    summary = "text -> class: sentiment, intent, churn"
    tables: tuple[Table, ...] = ("texts",)
    labelled = False
    output: Literal["classes"] = "classes"
    metrics = ("macro_f1", "accuracy", "weighted_f1", "log_loss", "ece")
    monitor = "macro_f1"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"task.name": "classify", "data.texts.label": None},
            reason="classes are labels, and the texts have none",
            fix="name the column in data.texts.label, or tune reply",
        ),
    )

    def reads(self, config: ClassifySettings) -> Reads:  # noqa: ARG002
        """The text alone."""
        return "contexts"

    def head(self, config: ClassifySettings, kind: str) -> Head:  # noqa: ARG002
        """A new head on every base."""
        return "classifier"

    def labels(self, config: ClassifySettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """The data's."""
        return tuple(catalogue)

    def batch(
        self,
        config: ClassifySettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Batch:
        """The batch of some texts; arrays: `text` and `label` of each, (B,), and the classes' `weights`, (K,)."""
        different, places = distinct(self.contexts(config, records, rows, items))
        weights = np.ones(len(items), np.float32)
        if config.class_weights == "balanced":
            counts = np.bincount(records.items[records.grades > 0], minlength=len(items))
            weights = (counts.sum() / (len(items) * np.maximum(counts, 1))).astype(np.float32)
        labels = records.items[records.offsets[rows]].astype(np.int64)  # a text has one candidate, its label
        return Batch(different, {"text": places, "label": labels, "weights": weights}, len(rows))

    def needs_base(self, config: ClassifySettings) -> bool:  # noqa: ARG002
        """No."""
        return False

    def loss(self, config: ClassifySettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The weighted mean cross-entropy. outputs: (N, K) logits."""
        import torch

        found = outputs[torch.as_tensor(batch.arrays["text"], device=outputs.device)]  # (B, K)
        return torch.nn.functional.cross_entropy(
            found,
            torch.as_tensor(batch.arrays["label"], device=outputs.device),
            weight=torch.as_tensor(batch.arrays["weights"], device=outputs.device).to(found),
            label_smoothing=config.label_smoothing,
        )

    def contexts(
        self,
        config: ClassifySettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],  # noqa: ARG002
    ) -> list[Text]:
        """The texts."""
        assert records.queries is not None  # noqa: S101  # prepare has seen to it: the task's table is `texts`
        return [config.before + records.queries[row][:MOST_CHARACTERS] for row in rows]

    def scores(self, config: ClassifySettings, outputs: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """The probability of each class, (R, K)."""
        return softmax(outputs)


MEMBER = Classify()
