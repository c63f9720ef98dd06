"""Will this user take this item, yes or no: one text for history and candidate, read together.

On a causal base the score is the logit of `yes` less the logit of `no` after a prompt (TALLRec, Bao et al. 2023);
on an encoder it is the logit of a new head. The loss is the cross-entropy of the label. The candidate and the
question are never cut, only the history is, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.registry import Refusal
from recft.schema import TaskSettings
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, drawn, own_pairs
from recft.tasks._history import history_text

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

MOST_CHARACTERS = 1000
"""Of a candidate's text: a page-long one must not push the question out."""


class PurchaseSettings(TaskSettings):
    """Settings of `task: purchase`."""

    name: Literal["purchase"] = "purchase"
    history_items: Annotated[int, Field(ge=1)] = Field(default=10, description="the newest so many items are read")
    liked_from: float | None = Field(
        default=None, description="history items rated at least this are shown as liked, the others as disliked"
    )
    candidates_per_record: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at most so many candidates of a record are drawn for a batch; all where absent"
    )
    before: str = Field(default="A customer's items, newest first: ", description="stands before the history")
    between: str = Field(
        default="\nWill this customer take the following item?\n", description="stands before the candidate"
    )
    after: str = Field(default="\nAnswer (yes or no):", description="stands after the candidate")
    answers: tuple[str, str] = Field(default=(" yes", " no"), description="what a causal base is asked to answer")


class Purchase:
    """The task's object; see the module."""

    Config = PurchaseSettings
    summary = "will this user take this item: one text, yes or no"
    tables: tuple[Table, ...] = ("interactions",)
    labelled = True
    output: Literal["labels"] = "labels"
    metrics = ("auc", "gauc", "log_loss", "accuracy", "precision", "recall", "f1")
    monitor = "auc"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"task.name": "purchase", "data.interactions.rating": None},
            unless={"task.liked_from": None},
            reason="liked and disliked are told apart by ratings, and the log has none",
            fix="name the column in data.interactions.rating, or leave task.liked_from out",
        ),
    )

    def reads(self, config: PurchaseSettings) -> Reads:  # noqa: ARG002
        """History and candidate together."""
        return "pairs"

    def head(self, config: PurchaseSettings, kind: str) -> Head:  # noqa: ARG002
        """A new head on an encoder, the answer tokens on a causal base."""
        return "classifier" if kind == "encoder" else "answers"

    def labels(self, config: PurchaseSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Yes and no; of a new head the logit of yes."""
        return ("yes", "no") if head == "answers" else ("yes",)

    def batch(
        self,
        config: PurchaseSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some records with their candidates; arrays: `text` and `label` of each pair, (P,)."""
        chosen = [self._drawn(config, records, int(row), rng) for row in rows]
        texts = [
            self._text(config, records, int(row), pair, items)
            for row, pairs in zip(rows, chosen, strict=True)
            for pair in pairs
        ]
        different, places = distinct(texts)
        labels = np.concatenate([records.grades[pairs] for pairs in chosen]) > 0
        arrays = {"text": places, "label": labels}
        return Batch(texts=different, arrays=arrays, n_examples=len(rows))

    def _drawn(self, config: PurchaseSettings, records: Records, row: int, rng: np.random.Generator) -> np.ndarray:
        return drawn(own_pairs(records, row), config.candidates_per_record, rng)

    def _text(self, config: PurchaseSettings, records: Records, row: int, pair: int, items: Sequence[str]) -> Text:
        history = history_text(records, row, items, config.history_items, config.liked_from)
        candidate = items[records.items[pair]][:MOST_CHARACTERS]
        return config.before + history, config.between + candidate + config.after

    def needs_base(self, config: PurchaseSettings) -> bool:  # noqa: ARG002
        """No."""
        return False

    def loss(self, config: PurchaseSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The mean cross-entropy over pairs. outputs: (N, 2) logits of yes and no, or (N, 1) of a head."""
        import torch

        logits = outputs[:, 0] - outputs[:, 1] if outputs.shape[1] == 2 else outputs[:, 0]  # (N,)
        places = torch.as_tensor(batch.arrays["text"], device=outputs.device)
        labels = torch.as_tensor(batch.arrays["label"], device=outputs.device).to(logits)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[places], labels)

    def pairs(self, config: PurchaseSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """One text for each candidate of the records."""
        return [
            self._text(config, records, int(row), pair, items)
            for row in rows
            for pair in range(int(records.offsets[row]), int(records.offsets[row + 1]))
        ]

    def scores(self, config: PurchaseSettings, outputs: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """The probability of yes, (P,)."""
        logits = outputs[:, 0] - outputs[:, 1] if outputs.shape[1] == 2 else outputs[:, 0]
        return 1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -60, 60)))


MEMBER = Purchase()
