"""History -> next item, by two towers or by how likely the item is as what comes next.

score(u, i) = <f(history of u), f(item i)>, both of length 1, over the whole catalogue; the loss is the softmax
cross-entropy of one target a history against the items of the batch. Items of a batch are drawn by popularity, so
each score is corrected by the log of how often the item is drawn (Yi et al. 2019): without it popular items are
punished. For the long tail that may be wanted: `logit_adjustment: a` corrects by 1 - a of it (Menon et al. 2021, whose
added log prior is what the draw adds here), and `inverse_propensity: p` weighs an example by popularity^-p (Schnabel
et al. 2016; their mean is 1, and none is above ten times the median). Nothing that the user has bought counts as a
negative, since shops sell the same thing again.

With `score_by: likelihood`, on a causal base, score(u, i) = log p(text of i | prompt with the history), the sum over
its tokens and the end token; the loss is the cross-entropy of a target's tokens (the language model's own, as in
generative retrieval). Every item of the catalogue is scored exactly; `eval.decoding` can have items written instead.
The prompt is a list that goes on, so that one pass over a history trains every position of it (`positions: every`,
the idea of arXiv 2503.01001) with the very loss of one prompt a position. A window of the newest items begins anew at
every position and shares nothing; `window: stepped` moves it by whole windows: a position then sees from
`history_items` to twice as many items, in training as in scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.registry import Refusal
from recft.schema import TaskSettings
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, own_pairs
from recft.tasks._history import history_lines, history_text
from recft.tasks._towers import Column, TowerSettings, contrastive_loss, tower_batch

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

MOST_WEIGHT = 10.0
"""Of an example, beside the median: a single rare purchase must not be the whole batch."""


_OF_TOWERS = {*TowerSettings.model_fields, "logit_adjustment", "inverse_propensity"} - {*TaskSettings.model_fields}


class NextItemSettings(TowerSettings):
    """Settings of `task: next_item`."""

    name: Literal["next-item"] = "next-item"
    history_items: Annotated[int, Field(ge=1)] = Field(default=10, description="the newest so many items are read")
    score_by: Literal["towers", "likelihood"] = Field(
        default="towers", description="two vectors' product, or on a causal base how likely the item's text comes next"
    )
    before: str = Field(
        default="A customer's items, oldest first:\n", description="stands before a history (likelihood)"
    )
    after: str = Field(default="\n", description="stands before the item, of a likelihood")
    window: Literal["newest", "stepped"] = Field(
        default="newest",
        description="the newest history_items, or from so many to twice as many, so that positions share what they "
        "read (likelihood)",
    )
    positions: Literal["one", "every"] = Field(
        default="one",
        description="an example is one basket with one of its items, or all baskets and items of a user (likelihood)",
    )
    logit_adjustment: Annotated[float, Field(ge=0, le=2)] = Field(
        default=0.0,
        description="for the long tail: 0 scores popular items as often as they are taken, 1 as if all were equally "
        "popular (towers)",
    )
    inverse_propensity: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="for the long tail: an example counts by its target's popularity to minus this power (towers)",
    )


def _unread(score_by: str, keys: Sequence[str], why: str) -> tuple[Refusal, ...]:
    """Refusals of settings that one way of scoring would pass over in silence."""
    defaults = {key: field.default for key, field in NextItemSettings.model_fields.items()} | {"decoding": "exact"}
    return tuple(
        Refusal(
            when={"task.name": "next-item", "task.score_by": score_by},
            unless={f"{'eval' if key == 'decoding' else 'task'}.{key}": defaults[key]},
            reason=f"{key} is {why}",
            fix="leave it out, or set task.score_by to the other way",
        )
        for key in keys
    )


class NextItem:
    """The task's object; see the module."""

    Config = NextItemSettings
    summary = "history -> item: two towers over the whole catalogue"
    tables: tuple[Table, ...] = ("interactions",)
    labelled = False
    output: Literal["ranking"] = "ranking"
    metrics = ("ndcg@10", "hr@10", "recall@20", "mrr@10")
    monitor = "ndcg@10"
    refusals: tuple[Refusal, ...] = (
        *_unread(
            "towers",
            ("before", "after", "window", "positions", "decoding"),
            "of likelihoods, and two towers read none of it",
        ),
        *_unread(
            "likelihood",
            tuple(key for key in NextItemSettings.model_fields if key in _OF_TOWERS),
            "of two towers, and a likelihood reads none of it",
        ),
    )

    def reads(self, config: NextItemSettings) -> Reads:
        """Contexts and candidates apart, or the item after the history."""
        return "towers" if config.score_by == "towers" else "pairs"

    def head(self, config: NextItemSettings, kind: str) -> Head | None:
        """A vector on every base; a likelihood on causal ones."""
        if config.score_by == "towers":
            return "embedding"
        return "likelihood" if kind == "causal" else None

    def labels(self, config: NextItemSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """None: a vector has no labels."""
        return ()

    def batch(
        self,
        config: NextItemSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some histories, each with one of its targets, drawn anew each time."""
        if config.score_by == "likelihood":
            return self._written(config, records, rows, items, rng)
        examples = []
        for row in rows.tolist():
            start, stop = records.offsets[row], records.offsets[row + 1]
            target = int(records.items[rng.integers(start, stop)])
            known = frozenset(records.items[start:stop].tolist()) | frozenset(records.history(row).tolist())
            text = history_text(records, row, items, config.history_items)
            examples.append(Column(text, {target: 1.0}, known))
        batch = tower_batch(examples, items, config, rng)
        counts = np.maximum(np.bincount(records.items, minlength=len(items)), 1)
        arrays = dict(batch.arrays)
        if config.logit_adjustment != 1:
            shares = np.log(counts[arrays["items"]] / max(len(records.items), 1))
            arrays["correction"] = ((1 - config.logit_adjustment) * shares).astype(np.float32)
        if config.inverse_propensity > 0:
            targets = np.array([next(iter(example.grades)) for example in examples])
            arrays["weight"] = _propensity_weights(counts, targets, config.inverse_propensity)
        return Batch(batch.texts, arrays, len(rows))

    def _written(
        self,
        config: NextItemSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """Each history with the text of one of its targets, or of all; arrays: `text`, each pair's place, (P,)."""
        chosen = [own_pairs(records, int(row)) for row in rows]
        if config.positions == "one":
            chosen = [rng.choice(pairs, 1) for pairs in chosen]
        bodies = self.contexts(config, records, rows, items)
        texts, places = distinct(
            [
                (str(body), items[records.items[pair]])
                for body, pairs in zip(bodies, chosen, strict=True)
                for pair in pairs
            ]
        )
        return Batch(texts, {"text": places}, len(rows))

    def examples(self, config: NextItemSettings, records: Records) -> np.ndarray:
        """Which example each record belongs to, (R,): its own, or its user's."""
        if config.positions == "one" or records.users is None:
            return np.arange(len(records))
        found: np.ndarray = np.unique(records.users, return_inverse=True)[1]
        return found

    def needs_base(self, config: NextItemSettings) -> bool:
        """Whether the loss has an anchor."""
        return config.score_by == "towers" and config.anchor > 0

    def loss(self, config: NextItemSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:
        """See `contrastive_loss`; of a likelihood the mean over tokens of -log p."""
        if config.score_by == "towers":
            return contrastive_loss(outputs, batch, config, base, batch.arrays.get("correction"))
        chosen = outputs[batch.arrays["text"]]  # (B, 2)
        return -chosen[:, 0].sum() / chosen[:, 1].sum()

    def contexts(
        self, config: NextItemSettings, records: Records, rows: np.ndarray, items: Sequence[str]
    ) -> list[Text]:
        """The histories; before an item that is to be written, oldest first: the newest stand next to it."""
        if config.score_by == "towers":
            return [config.query_prompt + history_text(records, int(row), items, config.history_items) for row in rows]
        stepped = config.window == "stepped"
        texts = [history_lines(records, int(row), items, config.history_items, stepped) for row in rows]
        return [config.before + text + config.after for text in texts]

    def candidates(self, config: NextItemSettings, items: Sequence[str]) -> list[Text]:
        """The items."""
        return [config.item_prompt + text if config.score_by == "towers" else text for text in items]

    def pairs(self, config: NextItemSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """Each history with each of its candidates after it."""
        bodies = self.contexts(config, records, rows, items)
        return [
            (str(body), items[item])
            for body, row in zip(bodies, rows, strict=True)
            for item in records.items[records.offsets[row] : records.offsets[row + 1]]
        ]

    def scores(self, config: NextItemSettings, outputs: np.ndarray) -> np.ndarray:  # noqa: ARG002
        """Log p of each item, (P,)."""
        return outputs[:, 0]


def _propensity_weights(counts: np.ndarray, targets: np.ndarray, power: float) -> np.ndarray:
    """The weight of each example, (B,) float32: its target's popularity to a negative power, mean 1, clipped."""
    weights = counts[targets].astype(np.float64) ** -power
    clipped = np.minimum(weights / np.median(weights), MOST_WEIGHT)
    return np.asarray(clipped / clipped.mean(), np.float32)


MEMBER = NextItem()
