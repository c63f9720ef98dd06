"""Two towers: one text a context, one text an item, scored by their product; the loss and its columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from recft.schema import TaskSettings
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
    anchor: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="weight of staying near the untuned base's scores, for small data"
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
    outputs: Tensor, batch: Batch, config: TowerSettings, base: Tensor | None, correction: np.ndarray | None = None
) -> Tensor:
    """The mean over examples of how badly their positives stand above what is worse.

    Every positive p of an example is set against all that is worse for it: the example's items of a lower grade and,
    with weight `in_batch`, the batch's other items that are not blocked. Positives never compete with each other:

        loss(p) = -log( e^s(p) / (e^s(p) + sum of e^s(j) over j worse than p) )

    weighted by grade within the example, and by the batch's `weight` between examples. With one positive this is
    InfoNCE (van den Oord et al. 2018). `anchor` adds the mean squared distance to the base's own scores: few examples
    then bend it only where they must.

    Args:
        outputs: (N, D): the contexts' vectors, then the columns'.
        batch: from `tower_batch`.
        config: temperature, in_batch, anchor.
        base: (N, D), the untuned base's vectors, where there is an anchor.
        correction: (C,), taken from every column's score: log of how likely the column is in a batch.
    """
    import torch

    grades = torch.as_tensor(batch.arrays["grades"], device=outputs.device)  # (B, C)
    cosines = _scores(outputs, batch)  # (B, C)
    scores = cosines / config.temperature
    if correction is not None:
        scores = scores - torch.as_tensor(correction, device=outputs.device)
    judged = ~torch.isnan(grades)
    blocked = torch.as_tensor(batch.arrays["blocked"], device=outputs.device)
    others = ~judged & ~blocked if config.in_batch > 0 else torch.zeros_like(judged)
    weighted = torch.where(others, scores + float(np.log(config.in_batch or 1.0)), scores)
    rows, columns = torch.nonzero(torch.nan_to_num(grades) > 0, as_tuple=True)  # (P,) each
    grade = grades[rows, columns]
    worse = others[rows] | (judged[rows] & (torch.nan_to_num(grades)[rows] < grade[:, None]))  # (P, C)
    own = scores[rows, columns]
    against = torch.logsumexp(weighted[rows].masked_fill(~worse, -torch.inf), dim=1)  # -inf where nothing is worse
    given = batch.arrays.get("weight")
    weight = torch.ones(len(grades)) if given is None else torch.as_tensor(given)
    total = torch.zeros(len(grades), device=grade.device).index_add_(0, rows, grade)
    share = weight.to(grade.device)[rows] * grade / total[rows]
    loss = (share * torch.nn.functional.softplus(against - own)).sum() / len(grades)
    if base is not None and config.anchor > 0:
        loss = loss + config.anchor * ((cosines - _scores(base, batch)) / config.temperature).square().mean()
    return loss


def _scores(outputs: Tensor, batch: Batch) -> Tensor:
    """Every context with every column, (B, C)."""
    import torch

    columns = outputs[outputs.shape[0] - batch.arrays["grades"].shape[1] :]
    return outputs[torch.as_tensor(batch.arrays["query"], device=outputs.device)] @ columns.T
