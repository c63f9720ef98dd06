"""Two towers: one text a context, one text an item, scored by their product; the loss and its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.recipe import TaskSettings
from recft.tasks._base import Batch, Text

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Column", "TowerSettings", "contrastive_loss", "tower_batch"]


class TowerSettings(TaskSettings):
    """What both two-tower tasks can be told."""

    temperature: Annotated[float, Field(gt=0)] = Field(default=0.05, description="scores are divided by it in the loss")
    pooling: Literal["auto", "mean", "last"] = "auto"
    query_prompt: str = Field(default="", description="stands before every query or history")
    item_prompt: str = Field(default="", description="stands before every item")
    in_batch: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="weight of other examples' items as negatives; 0 leaves them out"
    )
    random_negatives: Annotated[int, Field(ge=0)] = Field(
        default=0, description="items drawn from the catalogue for each batch, negatives for all of it"
    )


@dataclass(frozen=True)
class Column:
    """What one example says of some items.

    Attributes:
        text: the context.
        grades: item number -> grade, of the items it is trained on.
        known: item numbers that must not count as its negatives.
    """

    text: str
    grades: Mapping[int, float]
    known: frozenset[int]


def tower_batch(
    examples: Sequence[Column], items: Sequence[str], config: TowerSettings, rng: np.random.Generator
) -> Batch:
    """The batch in which every example sees every item of the batch, each different text once.

    Items are columns by text, so that duplicates in the catalogue are one column: an item whose text equals a known
    positive's can never be a negative. Arrays: `grades` (B, C), NaN where the example says nothing; `blocked` (B, C),
    True where a column must not be a negative; `items` (C,), an item number of each column.
    """
    drawn = rng.integers(0, len(items), size=config.random_negatives).tolist() if config.random_negatives else []
    numbers = [*(item for example in examples for item in example.grades), *drawn]
    first: dict[str, int] = {}
    for item in numbers:
        first.setdefault(items[item], item)
    columns = {text: place for place, text in enumerate(first)}
    grades = np.full((len(examples), len(columns)), np.nan, np.float32)
    blocked = np.zeros_like(grades, dtype=bool)
    for row, example in enumerate(examples):
        for item, grade in example.grades.items():
            place = columns[items[item]]
            # fmax: of two grades for one text the higher holds, and NaN gives way.
            grades[row, place] = np.fmax(grades[row, place], grade)
        for item in example.known:
            if (column := columns.get(items[item])) is not None:
                blocked[row, column] = True
    queries = list(dict.fromkeys(config.query_prompt + example.text for example in examples))
    places = {text: place for place, text in enumerate(queries)}
    texts: list[Text] = [*queries, *(config.item_prompt + text for text in columns)]
    arrays = {
        "query": np.array([places[config.query_prompt + example.text] for example in examples]),
        "grades": grades,
        "blocked": blocked,
        "items": np.array(list(first.values()), dtype=np.int64),
    }
    return Batch(texts=texts, arrays=arrays, n_examples=len(examples))


def contrastive_loss(
    outputs: Tensor,
    batch: Batch,
    temperature: float,
    in_batch: float,
    sharpness: float | None = None,
    correction: np.ndarray | None = None,
) -> Tensor:
    """The listwise cross-entropy between grades and scores, mean over examples.

    Each example's targets are a distribution over the items it grades: in proportion to the grade, or, with a
    `sharpness` s, softmax(s · grade), which also teaches an example whose grades are all equal (ListNet, Cao et al.
    2007). The model's distribution runs over the graded items and, with weight `in_batch`, over the other items of
    the batch that are not blocked.

    Args:
        outputs: (N, D): the contexts' vectors, then the columns'.
        batch: from `tower_batch`.
        temperature: divides the scores.
        in_batch: weight of the batch's other items inside the softmax; 0 leaves them out.
        sharpness: see above.
        correction: (C,), taken from every column's score: log of how likely the column is in a batch.
    """
    import torch

    grades = torch.as_tensor(batch.arrays["grades"], device=outputs.device)  # (B, C)
    blocked = torch.as_tensor(batch.arrays["blocked"], device=outputs.device)
    columns = outputs[outputs.shape[0] - grades.shape[1] :]
    contexts = outputs[torch.as_tensor(batch.arrays["query"], device=outputs.device)]
    scores = contexts @ columns.T / temperature  # (B, C)
    if correction is not None:
        scores = scores - torch.as_tensor(correction, device=outputs.device)
    judged = ~torch.isnan(grades)
    if in_batch > 0:
        weight = torch.where(judged, 0.0, float(np.log(in_batch))).to(scores)
        allowed = judged | ~blocked
    else:
        weight, allowed = torch.zeros_like(scores), judged
    log_model = torch.log_softmax((scores + weight).masked_fill(~allowed, -torch.inf), dim=1)
    if sharpness is None:
        gains = torch.nan_to_num(grades).clamp(min=0)
    else:
        gains = torch.softmax((sharpness * grades).masked_fill(~judged, -torch.inf), dim=1)
    total = gains.sum(dim=1, keepdim=True)
    target = gains / total.clamp(min=torch.finfo(gains.dtype).tiny)
    losses = -(target * log_model.masked_fill(~judged, 0.0)).sum(dim=1)  # (B,)
    # An example without a positive grade teaches nothing under proportional targets; it still counts as one.
    return losses.mean()
