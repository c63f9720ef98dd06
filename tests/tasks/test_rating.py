"""Rating: stars from a head or from answer tokens, what is told of a history, and scales that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.data.store import Records
from recft.errors import DataError, RecipeError
from recft.models.base import tokenizer_of
from recft.models.text_model import label_tokens
from recft.models.tokens import tokenize
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.training.assemble import check

TASK = registry.load("recft.tasks", "rating")
ITEMS = ["Heat (1995)", "霸王别姬", "Alien 🎬", "Alien 🎬", "Up"]


def rated(**changes: Any) -> Records:
    """A user with a history of 0, 1, 0 and items 2, 3 to rate, and one without a history and item 4."""
    base: dict[str, Any] = {
        "keys": ["u0", "u1"],
        "queries": None,
        "users": np.array([0, 1], np.int32),
        "starts": np.array([0, 3]),
        "cuts": np.array([3, 3]),
        "times": np.array([9, 9]),
        "offsets": np.array([0, 2, 3]),
        "items": np.array([2, 3, 4], np.int32),
        "grades": np.array([4.5, 2.0, 1.0], np.float32),
        "log_items": np.array([0, 1, 0], np.int32),
        "log_times": np.arange(3),
        "log_ratings": np.array([5, 3.5, 1], np.float32),
    }
    return Records(**{**base, **changes})


def batch_of(config: Any, records: Records, seed: int = 0) -> Any:
    return TASK.batch(config, records, np.arange(len(records)), ITEMS, np.random.default_rng(seed))


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("span", [(1.0, 5.0), (0.5, 5.0), (-1.0, 10.0)])
def test_predictions_and_loss_are_their_formulas(width: int, span: tuple[float, float]) -> None:
    config = TASK.Config(range=span, answers=[str(n) for n in range(max(width, 2))])
    batch = batch_of(config, rated(grades=np.array([4.5, 2, 1], np.float32)))
    # Two items of one text are one text of the batch.
    assert batch.arrays["text"].tolist() == [0, 0, 1] and len(batch.texts) == 2
    outputs = torch.randn(2, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    low, high = span
    # The first user's mean of (5, 3.5, 1), the second's of nothing: drawn to the middle as by three ratings.
    middle = (low + high) / 2
    means = [(9.5 + 3 * middle) / 6, middle]
    predicted = []
    for row in outputs.tolist():
        if width == 1:
            share = 1 / (1 + math.exp(-row[0]))
            predicted.append((high - low) * (share - 0.5))
        else:
            total = sum(math.exp(value) for value in row)
            step = (high - low) / (width - 1)
            predicted.append(sum((low + n * step) * math.exp(value) / total for n, value in enumerate(row)) - middle)
    assert TASK.scores(config, outputs.detach().numpy()).tolist() == pytest.approx(predicted)
    stars = [means[user] + predicted[place] for user, place in ((0, 0), (0, 0), (1, 1))]
    numbers = TASK.numbers(config, outputs.detach().numpy()[[0, 0, 1]], rated(), np.arange(2))
    assert numbers.tolist() == pytest.approx([min(max(star, low), high) for star in stars])
    errors = [(ours - true) ** 2 for ours, true in zip(stars, [4.5, 2, 1], strict=True)]
    found = TASK.loss(config, outputs, batch)
    assert float(found.detach()) == pytest.approx(sum(errors) / 3, rel=1e-6)
    found.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all() and outputs.grad.any()


@pytest.mark.parametrize("width", [1, 5])
def test_predictions_stay_within_the_range_at_extreme_outputs(width: int) -> None:
    config = TASK.Config(range=(0.5, 5))
    outputs = torch.tensor([[1e30] + [-1e30] * (width - 1), [-1e30] * width], requires_grad=True)
    found = TASK.numbers(config, outputs.detach().numpy()[[0, 1, 0]], rated(), np.arange(2))
    assert np.isfinite(found).all() and found.min() >= 0.5 and found.max() <= 5
    loss = TASK.loss(config, outputs, batch_of(config, rated()))
    loss.backward()
    assert torch.isfinite(loss) and outputs.grad is not None and torch.isfinite(outputs.grad).all()


def test_a_history_tells_the_mean_of_all_and_the_newest_with_their_last_stars() -> None:
    (first, _, last) = TASK.pairs(TASK.Config(before=""), rated(), np.array([0, 1]), ITEMS)
    # The newest rating of an item counts, the mean is over every event: (5 + 3.5 + 1) / 3.
    assert first[0] == "mean 3.2 of 3; Heat (1995) 1; 霸王别姬 3.5"
    assert last[0] == "no ratings yet"
    (short, *_) = TASK.pairs(TASK.Config(before="", history_items=1), rated(), np.array([0]), ITEMS)
    assert short[0] == "mean 3.2 of 3; Heat (1995) 1"
    words = TASK.Config(before="评分：", mean="均分{mean}，共{count}部", unrated="没有评分")
    assert [text[0] for text in TASK.pairs(words, rated(), np.array([0, 1]), ITEMS)][::2] == [
        "评分：均分3.2，共3部; Heat (1995) 1; 霸王别姬 3.5",
        "评分：没有评分",
    ]


def test_a_profile_stands_before_the_ratings() -> None:
    known = rated(profiles=["学生", ""])
    bodies = [text[0] for text in TASK.pairs(TASK.Config(before=""), known, np.array([0, 1]), ITEMS)]
    assert bodies[0].startswith("学生. mean 3.2") and bodies[2] == "no ratings yet"


def test_candidates_are_drawn_and_a_megabyte_leaves_the_history(tiny_bert: Path, toy_recipe: Any) -> None:
    config = TASK.Config(candidates_per_record=1)
    found = {tuple(batch_of(config, rated(), seed).arrays["above"].tolist()) for seed in range(12)}
    mean = (9.5 + 3 * 3) / 6
    assert sorted(row[0] for row in found) == pytest.approx([2.0 - mean, 4.5 - mean])
    assert {row[1] for row in found} == {1.0 - 3}
    items = ["oak desk", "lamp", "墨盒 " * 300_000, "x", "y"]
    for kind in ("encoder", "causal"):
        tokenizer = tokenizer_of(toy_recipe("rating", kind).model)
        (text, *_) = TASK.pairs(TASK.Config(before="", between=" "), rated(), np.array([0]), items)
        (ids,) = tokenize(tokenizer, [text], 64)
        assert len(ids["input_ids"]) <= 64
        assert "".join(tokenizer.decode(ids["input_ids"])).replace(" ", "").count("mean3.2") == 1


def test_the_answers_are_tokens_of_their_own(toy_recipe: Any) -> None:
    config = TASK.Config()
    assert len(label_tokens(tokenizer_of(toy_recipe("rating", "causal").model), config.answers)) == 5
    assert TASK.labels(config, "answers", ()) == ("1", "2", "3", "4", "5")
    assert TASK.labels(config, "classifier", ()) == ("rating",)


def test_prepared_grades_are_the_stars(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    store = prepare(toy_recipe("rating"), tmp_path / "data")
    records = store.records("train")
    assert set(records.grades.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0} and len(set(records.grades.tolist())) > 1


@pytest.mark.parametrize(
    ("settings", "place", "rule"),
    [
        ({"range": [5, 1]}, r"task.range: \[5, 1\]", "the lowest rating, then a higher one"),
        ({"range": [3, 3]}, r"task.range: \[3, 3\]", "the lowest rating, then a higher one"),
        ({"answers": ["5"]}, r"task.answers: \['5'\]", "at least 2 items"),
        ({"history_items": 0}, "task.history_items: 0", "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], place: str, rule: str, toy_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=rf"{place} .*rule: .*{rule}.*fix: "):
        toy_recipe({"name": "rating", **settings})


def test_a_log_without_stars_and_a_scale_that_does_not_fit_are_refused(toy_recipe: Callable[..., Recipe]) -> None:
    log = {"path": "log.csv", "user": "user", "item": "item", "time": "time"}
    with pytest.raises(RecipeError, match=r"data.interactions.rating: None.*cannot work.*fix: name the column"):
        check(toy_recipe("rating", data={"interactions": log}))
    with pytest.raises(DataError, match=r"task.range: training has a rating of 4.5 \(rule: .*1 to 4; fix: set task.r"):
        batch_of(TASK.Config(range=(1, 4)), rated())
    # 3.3 is no float32: a bound is met by the rating that is written alike.
    batch_of(TASK.Config(range=(1, 3.3)), rated(grades=np.array([3.3, 1, 1], np.float32)))
