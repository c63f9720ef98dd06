"""Classify: the cross-entropy of the data's labels, weighted and smoothed, and probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.data.store import Records
from recft.errors import DataError, RecipeError
from recft.models.base import tokenizer_of
from recft.models.tokens import tokenize
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.training.assemble import check

TASK = registry.load("recft.tasks", "classify")
LABELS = ["好", "bad", "so-so"]
RECORDS = Records(
    keys=["a", "b", "a", "c"],
    queries=["很好 👍", "", "很好 👍", "tolerable"],
    users=None,
    starts=None,
    cuts=None,
    times=None,
    offsets=np.arange(5),
    items=np.array([0, 1, 0, 2], np.int32),
    grades=np.ones(4, np.float32),
)


def batch_of(config: Any, rows: list[int]) -> Any:
    return TASK.batch(config, RECORDS, np.array(rows), LABELS, np.random.default_rng(0))


def slow(logits: list[list[float]], labels: list[int], weights: list[float], smoothing: float) -> float:
    """sum of w_k · q_k · -log p_k over classes and examples, over the sum of the examples' own weights."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        norm = sum(math.exp(value) for value in row)
        for k, value in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing) * (k == label)
            total -= weights[k] * target * math.log(math.exp(value) / norm)
    return total / sum(weights[label] for label in labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("kind", "weights"), [("none", [1, 1, 1]), ("balanced", [4 / 6, 4 / 3, 4 / 3])])
def test_the_loss_is_its_formula(smoothing: float, kind: str, weights: list[float]) -> None:
    config = TASK.Config(class_weights=kind, label_smoothing=smoothing)
    batch = batch_of(config, [0, 1, 2, 3])
    assert batch.texts == ["很好 👍", "", "tolerable"] and batch.arrays["text"].tolist() == [0, 1, 0, 2]
    assert batch.arrays["weights"].tolist() == pytest.approx(weights)
    outputs = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    found = TASK.loss(config, outputs, batch)
    table = outputs.tolist()
    expected = slow([table[0], table[1], table[0], table[2]], [0, 1, 0, 2], weights, smoothing)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    found.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all() and outputs.grad.any()


def test_weights_are_of_all_training_not_of_the_batch() -> None:
    config = TASK.Config(class_weights="balanced")
    assert np.array_equal(batch_of(config, [3]).arrays["weights"], batch_of(config, [0, 1]).arrays["weights"])
    # A class that training lacks has a weight too: nothing is divided by nothing.
    few = RECORDS.take(np.array([0, 1]))
    batch = TASK.batch(config, few, np.array([0]), LABELS, np.random.default_rng(0))
    assert np.isfinite(batch.arrays["weights"]).all()


def test_scores_are_probabilities_and_loss_is_finite_at_extreme_logits() -> None:
    config = TASK.Config(class_weights="balanced", label_smoothing=0.1)
    outputs = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0], [0, 0, 0]], requires_grad=True)
    loss = TASK.loss(config, outputs, batch_of(config, [0, 1, 3]))
    loss.backward()
    assert torch.isfinite(loss) and outputs.grad is not None and torch.isfinite(outputs.grad).all()
    found = TASK.scores(config, outputs.detach().numpy())
    assert found.shape == (3, 3) and found.sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert found[2].tolist() == pytest.approx([1 / 3] * 3) and found[0, 0] == 1


def test_labels_are_the_data_s_and_a_prompt_stands_before_every_text() -> None:
    assert TASK.labels(TASK.Config(), "classifier", LABELS) == tuple(LABELS)
    found = TASK.contexts(TASK.Config(before="评论："), RECORDS, np.array([1, 0]), LABELS)
    assert found == ["评论：", "评论：很好 👍"]


def test_a_text_of_a_megabyte_is_cut(toy_recipe: Callable[..., Recipe]) -> None:
    records = replace(RECORDS, queries=["red 椅子 " * 120_000, "", "", ""])
    (text, _) = TASK.contexts(TASK.Config(before="评论："), records, np.array([0, 1]), LABELS)
    assert text.startswith("评论：red") and len(text) <= 100_003
    (found,) = tokenize(tokenizer_of(toy_recipe("classify").model), [text], 64)
    assert len(found["input_ids"]) == 64


@pytest.mark.parametrize(
    ("settings", "place", "rule"),
    [
        ({"class_weights": "inverse"}, "task.class_weights: 'inverse'", "'none' or 'balanced'"),
        ({"label_smoothing": 1}, "task.label_smoothing: 1", "less than 1"),
        ({"answers": ["a"]}, "task.answers: unknown key", "class_weights"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], place: str, rule: str, toy_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=rf"{place}.*rule: .*{rule}.*fix: "):
        toy_recipe({"name": "classify", **settings})


def test_texts_without_labels_or_with_one_are_refused(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    texts = {"path": "texts.csv", "text": ["text"], "reply": "reply"}
    with pytest.raises(RecipeError, match=r"data.texts.label: None.*cannot work.*fix: name the column in data.texts"):
        check(toy_recipe("classify", data={"texts": texts}))
    (tmp_path / "one.csv").write_text("text,label\na,好\nb,好\nc,好\n", encoding="utf-8")
    texts = {"path": str(tmp_path / "one.csv"), "text": ["text"], "label": "label"}
    with pytest.raises(DataError, match=r"data.texts.label: '好' is the only label \(rule: at least two labels; fix: "):
        prepare(toy_recipe("classify", data={"texts": texts}), tmp_path / "data")
