"""Rows of every task over the toy shop, with a model whose numbers come of the texts' characters alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recft.data.store import Store
from recft.exports._rows import Rows
from recft.models.base import tokenizer_of
from recft.models.text_model import Serving
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.training.asked import fitting_metrics
from recft.training.exam import Exam
from recft.training.held_out import held_out, rows_of
from recft.training.opened import exam_of
from recft.training.servings import servings_of

Encode = Callable[[Sequence[Any]], np.ndarray]

WIDTHS = {"embedding": 5, "classifier": 1, "answers": 2, "likelihood": 2}
TASKS: list[tuple[Any, str]] = [
    ("retrieval", "encoder"),
    ("relevance", "encoder"),
    ({"name": "relevance", "loss": "classes", "grades": [0, 1, 3]}, "causal"),
    ("next-item", "encoder"),
    ({"name": "next-item", "score_by": "likelihood"}, "causal"),
    ("purchase", "encoder"),
    ("purchase", "causal"),
    ("rating", "encoder"),
    ("rating", "causal"),
    ("classify", "encoder"),
    ("reply", "causal"),
    ("preference", "causal"),
    ({"name": "preference", "length_normalise": True}, "causal"),
]


def fake(head: str, columns: int) -> Encode:
    """A model whose numbers come of the texts' characters alone."""

    def encode(texts: Sequence[Any]) -> np.ndarray:
        seeds = [sum(map(ord, "|".join(text) if isinstance(text, tuple) else text)) for text in texts]
        found = np.array([np.random.default_rng(seed).normal(size=columns) for seed in seeds])
        if head == "likelihood":
            found[:, 0], found[:, 1] = -10 * np.abs(found[:, 0]), [len(text[1]) + 1 for text in texts]
        return found.astype(np.float32)

    return encode


@dataclass(frozen=True)
class Made:
    """Rows of a task's held-out records, and what they were made of.

    Attributes:
        engine: what an engine computes, of texts that were cut.
        encode: the same of texts of any length.
    """

    recipe: Recipe
    store: Store
    whole: Exam
    small: Exam
    serving: Serving
    tokenizer: Any
    engine: Encode
    encode: Encode
    rows: Rows


def made(toy_recipe: Callable[..., Recipe], folder: Path, task: Any, kind: str, most: int) -> Made:
    """The rows of at most so many inputs."""
    recipe = toy_recipe(task, kind)
    store = prepare(recipe, folder / "data")
    tokenizer = tokenizer_of(recipe.model)
    serving = servings_of([(recipe, store.item_ids)], tokenizer)[recipe.task.name]
    whole = exam_of(recipe, store, "test", fitting_metrics(recipe))
    engine = fake(serving.head, len(serving.labels) or WIDTHS[serving.head])

    def encode(texts: Sequence[Any]) -> np.ndarray:
        return engine(serving.cut(tokenizer, texts))

    small = held_out(whole, most)
    rows = rows_of(small, encode, serving, tokenizer)
    return Made(recipe, store, whole, small, serving, tokenizer, engine, encode, rows)
