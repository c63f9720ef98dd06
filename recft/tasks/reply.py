"""Writing the right reply: what customer service answers, or why an item was recommended.

A text, or a conversation up to an answer, is what the model reads; the loss is the mean over the replies' tokens and
end tokens of -log p, and nothing of it comes from what stands before a reply. On causal bases. Texts with a chosen
and rejected replies can be learned from too: the chosen one is the reply, and `preference` may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from recft.registry import Refusal
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, own_pairs
from recft.tasks._replies import MOST_CHARACTERS, ReplySettings, prompt_of

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]


class ReplyTaskSettings(ReplySettings):
    """Settings of `task: reply`."""

    name: Literal["reply"] = "reply"


class Reply:
    """The task's object; see the module."""

    Config = ReplyTaskSettings
    summary = "text or conversation -> reply: loss on the reply alone"
    tables: tuple[Table, ...] = ("texts",)
    labelled = False
    output: Literal["likelihood"] = "likelihood"
    metrics = ("nll", "perplexity")
    monitor = "nll"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={
                "task.name": "reply",
                "data.texts.reply": None,
                "data.texts.messages": None,
                "data.texts.chosen": None,
            },
            reason="the texts have labels, not replies",
            fix="name data.texts.reply or data.texts.messages, or tune classify",
        ),
    )

    def reads(self, config: ReplyTaskSettings) -> Reads:  # noqa: ARG002
        """The reply after its text."""
        return "pairs"

    def head(self, config: ReplyTaskSettings, kind: str) -> Head | None:  # noqa: ARG002
        """How likely a reply is, on causal bases."""
        return "likelihood" if kind == "causal" else None

    def labels(self, config: ReplyTaskSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """None: a likelihood has no labels."""
        return ()

    def batch(
        self,
        config: ReplyTaskSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,  # noqa: ARG002
    ) -> Batch:
        """The batch of some texts with their right replies; arrays: `text`, the place of each, (B,)."""
        texts = [
            _text(config, records, int(row), pair, items)
            for row in rows
            for pair in own_pairs(records, int(row))
            if records.grades[pair] > 0
        ]
        different, places = distinct(texts)
        return Batch(different, {"text": places}, len(rows))

    def needs_base(self, config: ReplyTaskSettings) -> bool:  # noqa: ARG002
        """No."""
        return False

    def loss(self, config: ReplyTaskSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The mean of -log p over the replies' tokens. outputs: (N, 2)."""
        import torch

        found = outputs[torch.as_tensor(batch.arrays["text"], device=outputs.device)]  # (B, 2)
        return -found[:, 0].sum() / found[:, 1].sum()

    def pairs(self, config: ReplyTaskSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """Each text with each of its replies."""
        return [_text(config, records, int(row), pair, items) for row in rows for pair in own_pairs(records, int(row))]

    def scores(self, config: ReplyTaskSettings, outputs: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Log p and tokens of each reply, (P, 2)."""
        return outputs.astype(np.float64)


def _text(config: ReplyTaskSettings, records: Records, row: int, pair: int, items: Sequence[str]) -> Text:
    assert records.queries is not None  # noqa: S101  # prepare has seen to it: the task's table is `texts`
    return prompt_of(config, records.queries[row]), items[records.items[pair]][:MOST_CHARACTERS]


MEMBER = Reply()
