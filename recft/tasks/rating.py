"""How many stars will this user give this item: one text for the rated history and the candidate, read together.

The prediction is what the user gives on average (the mean of the rated history, drawn towards the middle of the range
with the strength of three ratings) plus what the model says of this item: (high - low) · (s - 1/2), where s is on an
encoder the sigmoid of a new head, on a causal base the expectation of evenly spread values under the answer tokens'
softmax. An untuned head so predicts the user's mean (the user effect of Koren et al. 2009, eq. 1), and learns what
an item adds to it. The loss is the squared error. The history is written newest first, each item with its stars, after
the mean of all that the user has rated before; the candidate is never cut, only the history is, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from recft.errors import DataError, problem
from recft.registry import Refusal
from recft.schema import TaskSettings
from recft.tasks._base import Batch, Head, Reads, Text
from recft.tasks._batches import distinct, drawn, own_pairs, softmax

if TYPE_CHECKING:
    from torch import Tensor

    from recft.data.store import Records, Table

__all__ = ["MEMBER"]

MOST_CHARACTERS = 1000
"""Of an item's text: a page-long one must not push the history out."""


MEAN_STRENGTH = 3.0
"""Ratings that the middle of the range counts for in a user's mean."""


class RatingSettings(TaskSettings):
    """Settings of `task: rating`."""

    name: Literal["rating"] = "rating"
    range: tuple[float, float] = Field(default=(1.0, 5.0), description="the lowest and the highest rating")
    history_items: Annotated[int, Field(ge=1)] = Field(default=10, description="the newest so many items are read")
    candidates_per_record: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="at most so many candidates of a record are drawn for a batch; all where absent"
    )
    before: str = Field(default="A customer's ratings, newest first: ", description="stands before the history")
    between: str = Field(
        default="\nHow will this customer rate the following item?\n", description="stands before the candidate"
    )
    after: str = Field(default="\nStars:", description="stands after the candidate")
    mean: str = Field(
        default="mean {mean} of {count}", description="tells the mean of all the customer's ratings so far"
    )
    unrated: str = Field(default="no ratings yet", description="stands in place of an empty history")
    answers: Annotated[tuple[str, ...], Field(min_length=2)] = Field(
        default=("1", "2", "3", "4", "5"),
        description="what a causal base is asked to answer, worst first: evenly spread over the range",
    )

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the lowest rating, then a higher one")
        return value


class Rating:
    """The task's object; see the module."""

    Config = RatingSettings
    summary = "how many stars will this user give this item: one text, a number"
    tables: tuple[Table, ...] = ("interactions",)
    labelled = False
    output: Literal["values"] = "values"
    metrics = ("rmse", "mae")
    monitor = "rmse"
    refusals: tuple[Refusal, ...] = (
        Refusal(
            when={"task.name": "rating", "data.interactions.rating": None},
            reason="stars are learned from stars, and the log has none",
            fix="name the column in data.interactions.rating",
        ),
    )

    def reads(self, config: RatingSettings) -> Reads:  # noqa: ARG002
        """History and candidate together."""
        return "pairs"

    def head(self, config: RatingSettings, kind: str) -> Head:  # noqa: ARG002
        """A new head on an encoder, the answer tokens on a causal base."""
        return "classifier" if kind == "encoder" else "answers"

    def labels(self, config: RatingSettings, head: Head, catalogue: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002
        """The answers; of a new head one number."""
        return config.answers if head == "answers" else ("rating",)

    def batch(
        self,
        config: RatingSettings,
        records: Records,
        rows: np.ndarray,
        items: Sequence[str],
        rng: np.random.Generator,
    ) -> Batch:
        """The batch of some records with their candidates; arrays: `text` and `above`, stars less the mean, (P,).

        Raises:
            DataError: a rating of training lies outside the range.
        """
        _check_range(config, records)
        chosen = [drawn(own_pairs(records, int(row)), config.candidates_per_record, rng) for row in rows]
        texts = [
            text
            for row, pairs in zip(rows, chosen, strict=True)
            for text in self._texts(config, records, int(row), pairs, items)
        ]
        different, places = distinct(texts)
        own = np.concatenate(
            [np.full(len(pairs), _mean(config, records, int(row))) for row, pairs in zip(rows, chosen, strict=True)]
        )
        stars = records.grades[np.concatenate(chosen)]
        arrays = {"text": places, "above": (stars - own).astype(np.float32)}
        return Batch(texts=different, arrays=arrays, n_examples=len(rows))

    def _texts(
        self, config: RatingSettings, records: Records, row: int, pairs: np.ndarray, items: Sequence[str]
    ) -> list[Text]:
        history = config.before + _rated(config, records, row, items)
        return [
            (history, config.between + items[item][:MOST_CHARACTERS] + config.after) for item in records.items[pairs]
        ]

    def needs_base(self, config: RatingSettings) -> bool:  # noqa: ARG002
        """No."""
        return False

    def loss(self, config: RatingSettings, outputs: Tensor, batch: Batch, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The mean squared error over pairs. outputs: (N, answers) logits, or (N, 1) of a head."""
        import torch

        found = outputs[torch.as_tensor(batch.arrays["text"], device=outputs.device)]  # (P, K)
        above = torch.as_tensor(batch.arrays["above"], device=outputs.device).to(outputs)
        low, high = config.range
        if found.shape[1] == 1:
            share = torch.sigmoid(found[:, 0])
        else:
            share = found.softmax(dim=1) @ torch.linspace(0, 1, found.shape[1]).to(found)
        return ((high - low) * (share - 0.5) - above).square().mean()

    def pairs(self, config: RatingSettings, records: Records, rows: np.ndarray, items: Sequence[str]) -> list[Text]:
        """One text for each candidate of the records."""
        return [
            text for row in rows for text in self._texts(config, records, int(row), own_pairs(records, int(row)), items)
        ]

    def scores(self, config: RatingSettings, outputs: np.ndarray) -> np.ndarray:
        """How many stars an item is above what the user gives on average, (P,)."""
        low, high = config.range
        if outputs.shape[1] == 1:
            share = 1.0 / (1.0 + np.exp(-np.clip(outputs[:, 0].astype(np.float64), -60, 60)))
        else:
            share = softmax(outputs) @ np.linspace(0, 1, outputs.shape[1])
        above: np.ndarray = (high - low) * (share - 0.5)
        return above

    def numbers(self, config: RatingSettings, outputs: np.ndarray, records: Records, rows: np.ndarray) -> np.ndarray:
        """The stars of each pair, (P,), within the range."""
        own = np.repeat([_mean(config, records, int(row)) for row in rows], np.diff(records.offsets)[rows])
        return np.asarray(np.clip(own + self.scores(config, outputs), *config.range))


def _mean(config: RatingSettings, records: Records, row: int) -> float:
    """What a record's user gives on average, drawn towards the middle of the range."""
    middle = (config.range[0] + config.range[1]) / 2
    if records.log_ratings is None or records.starts is None or records.cuts is None:
        return middle
    stars = records.log_ratings[records.starts[row] : records.cuts[row]]
    return float((stars.sum(dtype=np.float64) + MEAN_STRENGTH * middle) / (len(stars) + MEAN_STRENGTH))


def _rated(config: RatingSettings, records: Records, row: int, items: Sequence[str]) -> str:
    """The user's profile, the mean of the stars given so far, and the newest items, each once with its last stars."""
    profile = records.profile(row)
    start = f"{profile}. " if profile else ""
    history = records.history(row)[::-1]
    if not len(history) or records.log_ratings is None or records.starts is None or records.cuts is None:
        return start + config.unrated
    stars = records.log_ratings[records.starts[row] : records.cuts[row]][::-1]
    told: dict[str, float] = {}
    for item, given in zip(history.tolist(), stars.tolist(), strict=True):
        if len(told) == config.history_items:
            break
        told.setdefault(items[item][:MOST_CHARACTERS], given)
    shown = "; ".join(f"{text} {given:g}" for text, given in told.items())
    mean = config.mean.replace("{mean}", f"{stars.mean(dtype=np.float64):.1f}").replace("{count}", str(len(stars)))
    return f"{start}{mean}; {shown}"


def _check_range(config: RatingSettings, records: Records) -> None:
    """Passes where all training ratings lie within the range.

    Raises:
        DataError: one does not.
    """
    low, high = config.range
    outside = records.grades[(records.grades < np.float32(low)) | (records.grades > np.float32(high))]
    if len(outside):
        raise DataError(
            problem(
                "task.range",
                f"training has a rating of {outside[0]:g}",
                f"every rating lies within {low:g} to {high:g}",
                "set task.range to the scale of data.interactions.rating",
            )
        )


MEMBER = Rating()
