"""Which of a record's candidates is preferred: alignment by DPO, with one rejected candidate or with many.

With r = log p(candidate | context) of the tuned model less that of the base, its adapter switched off (no second
copy), and c the chosen candidate of a record:

    loss = -log sigmoid( -log sum_j e^(beta · (r_j - r_c)) )   over its rejected candidates j

With one rejected candidate this is DPO (Rafailov et al. 2023), with many softmax-DPO (Chen et al. 2024). A record's
rejected candidates, and of several chosen ones the chosen one, are drawn anew for each batch. Contexts are texts with
a chosen and rejected replies, or histories whose items `data.labels` calls yes and no. On causal bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.errors import DataError, problem
from recft.registry import Refusal
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, drawn, own_pairs
from recft.tasks._history import history_lines
from recft.tasks._replies import MOST_CHARACTERS, ReplySettings, prompt_of

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

# The words that next-item scores likelihoods with: what was tuned there may be aligned here.
BEFORE, AFTER = "A customer's items, oldest first:\n", "\n"


class PreferenceSettings(ReplySettings):
    """Settings of `task: preference`."""

    name: Literal["preference"] = "preference"
    beta: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="how strongly a preference counts: small values let the model go far from its base"
    )
    rejected_per_record: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at most so many rejected candidates are drawn for a batch; all where absent"
    )
    length_normalise: bool = Field(
        default=False, description="log p by token, in loss and scores: long candidates are not at a disadvantage"
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="adds so much of the chosen candidate's own -log p by token"
    )
    history_items: Annotated[int, Field(ge=1)] = Field(
        default=10, description="of a history the newest so many items are read"
    )


class Preference:
    """The task's object; see the module."""

    Config = PreferenceSettings
    summary = "chosen before rejected: DPO and softmax-DPO against the base"
    tables: tuple[Table, ...] = ("texts", "interactions")
    labelled = True
    output: Literal["ranking"] = "ranking"
    metrics = ("hr@1", "mrr@10", "ndcg@10")
    monitor = "hr@1"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"task.name": "preference", "data.texts.chosen": None},
            reason="a preference has a chosen side and a rejected one",
            fix="name data.texts.chosen and data.texts.rejected",
        ),
        Refusal(
            when={"task.name": "preference", "data.labels.at_least": None, "data.labels.negatives": None},
            unless={"data.interactions": None},
            reason="what was taken is chosen, but nothing says what was rejected",
            fix="set data.labels.negatives, or data.labels.at_least for ratings",
        ),
    )

    def reads(self, config: PreferenceSettings) -> Reads:  # noqa: ARG002
        """A candidate after its context."""
        return "pairs"

    def head(self, config: PreferenceSettings, kind: str) -> Head | None:  # noqa: ARG002
        """How likely a candidate is, on causal bases."""
        return "likelihood" if kind == "causal" else None

    def labels(self, config: PreferenceSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """None: a likelihood has no labels."""
        return ()

    def batch(
        self,
        config: PreferenceSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some records, each with one chosen candidate and its rejected ones.

        A record whose candidates are all on one side teaches nothing and is left out; where all are, another stands in.
        Arrays: `chosen`, the place of each example's text, (E,); `rejected` and `example`, the place of each rejected
        text and whose it is, (J,).

        Raises:
            DataError: no record of training has both sides.
        """
        able = _two_sided(records)
        kept = rows[able[rows]]
        chosen: list[Text] = []
        rejected: list[Text] = []
        example: list[int] = []
        for row in (kept if len(kept) else rng.choice(np.flatnonzero(able), 1)).tolist():
            pairs = own_pairs(records, row)
            right = records.grades[pairs] > 0
            context = self._context(config, records, row, items)
            others = drawn(pairs[~right], config.rejected_per_record, rng)
            chosen.append((context, _candidate(records, int(rng.choice(pairs[right])), items)))
            rejected += [(context, _candidate(records, pair, items)) for pair in others]
            example += [len(chosen) - 1] * len(others)
        different, places = distinct([*chosen, *rejected])
        arrays = {"chosen": places[: len(chosen)], "rejected": places[len(chosen) :], "example": np.array(example)}
        return Batch(different, arrays, len(rows))

    def _context(self, config: PreferenceSettings, records: Records, row: int, items: Sequence[str]) -> str:
        if records.queries is not None:
            return prompt_of(config, records.queries[row])
        # A body that is too long loses its start, so the newest items stand at its end.
        history = history_lines(records, row, items, config.history_items)
        return prompt_of(config, history, BEFORE, AFTER)

    def needs_base(self, config: PreferenceSettings) -> bool:  # noqa: ARG002
        """Yes: rewards are measured from it."""
        return True

    def loss(self, config: PreferenceSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:
        """The mean over examples; see the module. outputs, base: (N, 2), log p and tokens."""
        import torch

        assert base is not None  # noqa: S101  # `needs_base` has asked for it
        rewards = outputs[:, 0] - base[:, 0]  # (N,)
        if config.length_normalise:
            rewards = rewards / outputs[:, 1]
        chosen, rejected, example = (
            torch.as_tensor(batch.arrays[name], device=outputs.device) for name in ("chosen", "rejected", "example")
        )
        owners = batch.arrays["example"]  # ascending
        place = torch.as_tensor(np.arange(len(owners)) - np.searchsorted(owners, owners), device=outputs.device)
        margins = torch.full((len(chosen), int(place.max()) + 1), -torch.inf, device=outputs.device)
        found = config.beta * (rewards[rejected] - rewards[chosen][example])  # (J,)
        margins = margins.to(found).index_put((example, place), found)
        loss = torch.nn.functional.softplus(margins.logsumexp(dim=1)).mean()
        if config.sft_weight:
            loss = loss - config.sft_weight * outputs[chosen, 0].sum() / outputs[chosen, 1].sum()
        return loss

    def pairs(self, config: PreferenceSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """Each context with each of its candidates."""
        contexts = [self._context(config, records, int(row), items) for row in rows]
        return [
            (context, _candidate(records, pair, items))
            for context, row in zip(contexts, rows, strict=True)
            for pair in own_pairs(records, int(row))
        ]

    def scores(self, config: PreferenceSettings, outputs: np.ndarray) -> np.ndarray:
        """Log p of each candidate, or by token, (P,)."""
        found: np.ndarray = outputs[:, 0].astype(np.float64)
        return found / outputs[:, 1] if config.length_normalise else found


def _candidate(records: Records, pair: int, items: Sequence[str]) -> str:
    return str(items[records.items[pair]])[:MOST_CHARACTERS]


def _two_sided(records: Records) -> np.ndarray:
    """Which records have both chosen and rejected candidates, (R,).

    Raises:
        DataError: none has.
    """
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    taken = np.bincount(owners, weights=records.grades > 0, minlength=len(records))
    able: np.ndarray = (taken > 0) & (taken < np.diff(records.offsets))
    if not able.any():
        raise DataError(
            problem(
                "data.labels" if records.queries is None else "data.texts.rejected",
                "no record of training has both chosen and rejected candidates",
                "a preference has two sides",
                "set data.labels.negatives, or split so that a record has several targets (data.split.by: time or user)"
                if records.queries is None
                else "check the columns of data.texts",
            )
        )
    return able


MEMBER = Preference()
