"""Query -> product, two towers.

score(q, d) = <f(q), f(d)>, both of length 1; each positive is set against the query's products of a lower grade and
the other products of the batch (InfoNCE, van den Oord et al. 2018). We depart from the usual in-batch loss in that
positives do not compete with each other, grades weigh them, and a product never counts as a negative for a query that
has it, or a product of the same text, among its positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.registry import Refusal
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._towers import Column, TowerSettings, contrastive_loss, tower_batch

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]


class RetrievalSettings(TowerSettings):
    """Settings of `task: retrieval`."""

    name: Literal["retrieval"] = "retrieval"
    judged_per_query: Annotated[int, Field(ge=2)] = Field(
        default=32, description="at most so many judged products of a query are drawn for a batch"
    )


class Retrieval:
    """The task's object; see the module."""

    Config = RetrievalSettings
    summary = "query -> product: two towers, graded and in-batch negatives"
    tables: tuple[Table, ...] = ("queries", "texts")
    labelled = False
    output: Literal["ranking"] = "ranking"
    metrics = ("ndcg@10", "mrr@10", "recall@100")
    monitor = "ndcg@10"
    refusals: tuple[Refusal, ...] = ()

    def reads(self, config: RetrievalSettings) -> Reads:  # noqa: ARG002
        """Contexts and candidates apart."""
        return "towers"

    def head(self, config: RetrievalSettings, kind: str) -> Head:  # noqa: ARG002
        """A vector on every base."""
        return "embedding"

    def labels(self, config: RetrievalSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """None: a vector has no labels."""
        return ()

    def batch(
        self,
        config: RetrievalSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some queries, each with its judged products."""
        positives = _positives_by_key(records, rows)
        return tower_batch(
            [self._column(config, records, int(row), positives, rng) for row in rows], items, config, rng
        )

    def _column(
        self,
        config: RetrievalSettings,
        records: Records,
        row: int,
        positives: dict[str, set[int]],
        rng: np.random.Generator,
    ) -> Column:
        judged = np.arange(records.offsets[row], records.offsets[row + 1])
        if len(judged) > config.judged_per_query:
            best = judged[records.grades[judged].argmax()]  # one best product stays, or there is nothing to learn
            others = judged[judged != best]
            judged = np.append(rng.choice(others, config.judged_per_query - 1, replace=False), best)
        grades = {int(records.items[pair]): float(records.grades[pair]) for pair in judged}
        assert records.queries is not None  # noqa: S101  # prepare has seen to it: the task's table is `queries`
        return Column(records.queries[row], grades, frozenset(positives[records.keys[row]]))

    def needs_base(self, config: RetrievalSettings) -> bool:
        """Whether the loss has an anchor."""
        return config.anchor > 0

    def loss(self, config: RetrievalSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:
        """See `contrastive_loss`."""
        return contrastive_loss(outputs, batch, config, base)

    def contexts(
        self,
        config: RetrievalSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],  # noqa: ARG002
    ) -> list[Text]:
        """The queries."""
        assert records.queries is not None  # noqa: S101
        return [config.query_prompt + records.queries[row] for row in rows]

    def candidates(self, config: RetrievalSettings, items: Sequence[str]) -> list[Text]:
        """The products."""
        return [config.item_prompt + text for text in items]


def _positives_by_key(records: Records, rows: np.ndarray) -> dict[str, set[int]]:
    """The known positives of each normalised query among `rows`, over all its records in the batch."""
    positives: dict[str, set[int]] = {}
    for row in rows:
        pairs = slice(records.offsets[row], records.offsets[row + 1])
        relevant = records.items[pairs][records.grades[pairs] > 0]
        positives.setdefault(records.keys[row], set()).update(relevant.tolist())
    return positives


MEMBER = Retrieval()
