"""History -> next item, two towers.

score(u, i) = <f(history of u), f(item i)>, both of length 1, over the whole catalogue; the loss is the softmax
cross-entropy of one target a history against the items of the batch. Items of a batch are drawn by popularity, so
each score is corrected by the log of how often the item is drawn (Yi et al. 2019): without it popular items are
punished. Nothing that the user has bought counts as a negative, since shops sell the same thing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.registry import Refusal
from recft.tasks._base import Batch, Head, Text
from recft.tasks._history import history_text
from recft.tasks._towers import Column, TowerSettings, contrastive_loss, tower_batch

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records

__all__ = ["MEMBER"]


class NextItemSettings(TowerSettings):
    """Settings of `task: next_item`."""

    name: Literal["next-item"] = "next-item"
    history_items: Annotated[int, Field(ge=1)] = Field(default=10, description="the newest so many items are read")
    popularity_correction: bool = Field(default=True, description="undo that popular items are drawn more often")


class NextItem:
    """The task's object; see the module."""

    Config = NextItemSettings
    summary = "history -> item: two towers over the whole catalogue"
    table: Literal["interactions"] = "interactions"
    output: Literal["ranking"] = "ranking"
    heads: dict[str, Head] = {"encoder": "embedding", "causal": "embedding"}  # noqa: RUF012
    metrics = ("ndcg@10", "hr@10", "recall@20", "mrr@10")
    monitor = "ndcg@10"
    labels: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def batch(
        self,
        config: NextItemSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some histories, each with one of its targets, drawn anew each time."""
        examples = []
        for row in rows.tolist():
            start, stop = records.offsets[row], records.offsets[row + 1]
            target = int(records.items[rng.integers(start, stop)])
            known = frozenset(records.items[start:stop].tolist()) | frozenset(records.history(row).tolist())
            text = history_text(records, row, items, config.history_items)
            examples.append(Column(text, {target: 1.0}, known))
        batch = tower_batch(examples, items, config, rng)
        if not config.popularity_correction:
            return batch
        correction = _log_popularity(records, batch, len(items))
        return Batch(batch.texts, {**batch.arrays, "correction": correction}, len(rows))

    def needs_base(self, config: NextItemSettings) -> bool:
        """Whether the loss has an anchor."""
        return config.anchor > 0

    def loss(self, config: NextItemSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:
        """See `contrastive_loss`."""
        return contrastive_loss(outputs, batch, config, base, batch.arrays.get("correction"))

    def contexts(
        self, config: NextItemSettings, records: Records, rows: np.ndarray, items: Sequence[str]
    ) -> list[Text]:
        """The histories."""
        return [config.query_prompt + history_text(records, int(row), items, config.history_items) for row in rows]

    def candidates(self, config: NextItemSettings, items: Sequence[str]) -> list[Text]:
        """The items."""
        return [config.item_prompt + text for text in items]


def _log_popularity(records: Records, batch: Batch, n_items: int) -> np.ndarray:
    """Log of each column's share of the training targets, (C,) float32; an item that is no target counts as one."""
    counts = np.bincount(records.items, minlength=n_items)[batch.arrays["items"]]
    shares: np.ndarray = np.log(np.maximum(counts, 1) / max(len(records.items), 1))
    return shares.astype(np.float32)


MEMBER = NextItem()
