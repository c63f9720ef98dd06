"""Relevance: every loss is its formula, products of a query alone are compared, and wrong grades are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.data.store import Records
from recft.errors import DataError, RecipeError
from recft.models.base import tokenizer_of
from recft.models.tokens import tokenize
from recft.recipe import Recipe
from recft.tasks._base import Batch
from recft.training.assemble import check

TASK = registry.load("recft.tasks", "relevance")
ITEMS = ["red chair", "oak desk", "桌子", "oak desk", "usb cable 🎒", "lamp"]


def judged(*queries: list[tuple[int, float]]) -> Records:
    """Records of queries q0, q1, ... with (item, grade) pairs."""
    sizes = [len(query) for query in queries]
    flat = [pair for query in queries for pair in query]
    return Records(
        keys=[f"q{n}" for n in range(len(queries))],
        queries=[f"椅子 {n}" for n in range(len(queries))],
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        items=np.array([item for item, _ in flat], np.int32),
        grades=np.array([grade for _, grade in flat], np.float32),
    )


# Grades at a tie, two products of one text with different grades, a query with nothing good, one with one product.
RECORDS = judged([(0, 3), (1, 1), (2, 1), (3, 0), (4, 0)], [(5, 2), (0, 0)], [(4, 0), (5, 0)], [(2, 1)])


def batch_of(config: Any, records: Records = RECORDS) -> Batch:
    found: Batch = TASK.batch(config, records, np.arange(len(records)), ITEMS, np.random.default_rng(0))
    return found


def outputs_of(batch: Batch, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(len(batch.texts), width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_query(records: Records, score: Callable[[int, int], float]) -> list[tuple[list[float], list[float]]]:
    """Grades and scores of every query's products, from texts alone."""
    return [
        (
            records.grades[start:stop].astype(float).tolist(),
            [score(row, int(item)) for item in records.items[start:stop]],
        )
        for row, (start, stop) in enumerate(zip(records.offsets, records.offsets[1:], strict=False))
    ]


def slow(loss: str, queries: list[tuple[list[float], list[float]]]) -> float:
    """The formulas of the module, one product or two at a time."""
    found = []
    if loss == "pointwise":
        best = max(grade for grades, _ in queries for grade in grades)
        for grades, scores in queries:
            for grade, score in zip(grades, scores, strict=True):
                yes, share = 1 / (1 + math.exp(-score)), grade / best
                found.append(-share * math.log(yes) - (1 - share) * math.log(1 - yes))
        return sum(found) / len(found)
    for grades, scores in queries:
        if loss == "listwise":
            below = sum(math.exp(score) for score in scores)
            total = sum(grades) or 1
            found.append(-sum(g / total * math.log(math.exp(s) / below) for g, s in zip(grades, scores, strict=True)))
        else:
            over = [
                (grades[i] - grades[j], math.log(1 + math.exp(scores[j] - scores[i])))
                for i in range(len(grades))
                for j in range(len(grades))
                if grades[i] > grades[j]
            ]
            weight = sum(part for part, _ in over) or 1
            found.append(sum(part * each for part, each in over) / weight)
    return sum(found) / len(found)


@pytest.mark.parametrize("loss", ["pointwise", "pairwise", "listwise"])
@pytest.mark.parametrize("width", [1, 2])
def test_a_loss_is_its_formula(loss: str, width: int) -> None:
    config = TASK.Config(loss=loss)
    batch = batch_of(config)
    outputs = outputs_of(batch, width).requires_grad_()
    logits = outputs[:, 0] - outputs[:, 1] if width == 2 else outputs[:, 0]
    scores: list[float] = logits.tolist()
    place = {text: number for number, text in enumerate(batch.texts)}

    def score(row: int, item: int) -> float:
        one = TASK.pairs(config, judged(*[[(item, 1.0)]] * (row + 1)), np.array([row]), ITEMS)
        return scores[place[one[0]]]

    found = TASK.loss(config, outputs, batch)
    assert float(found.detach()) == pytest.approx(slow(loss, by_query(RECORDS, score)), rel=1e-6)
    found.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all() and outputs.grad.any()


def test_classes_are_the_cross_entropy_of_levels_and_the_score_is_the_expected_grade() -> None:
    config = TASK.Config(loss="classes", grades=(0, 1, 2, 3))
    batch = batch_of(config)
    outputs = outputs_of(batch, 4)
    table = outputs.tolist()
    found = [
        -math.log(math.exp(table[place][int(grade)]) / sum(math.exp(value) for value in table[place]))
        for place, grade in zip(batch.arrays["text"], batch.arrays["grade"], strict=True)
    ]
    assert float(TASK.loss(config, outputs, batch)) == pytest.approx(sum(found) / len(found), rel=1e-6)
    expected = [
        sum(grade * math.exp(value) for grade, value in enumerate(row)) / sum(math.exp(value) for value in row)
        for row in table
    ]
    assert TASK.scores(config, outputs.numpy()).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["pointwise", "pairwise", "listwise", "classes"])
def test_no_loss_or_gradient_is_infinite_at_extreme_scores(loss: str) -> None:
    config = TASK.Config(loss=loss, grades=(0, 1, 2, 3))
    batch = batch_of(config)
    outputs = (outputs_of(batch, 4 if loss == "classes" else 1).float() * 1e4).requires_grad_()
    found = TASK.loss(config, outputs, batch)
    found.backward()
    assert torch.isfinite(found) and outputs.grad is not None and torch.isfinite(outputs.grad).all()
    assert np.isfinite(TASK.scores(config, outputs.detach().numpy())).all()


@pytest.mark.parametrize("loss", ["pairwise", "listwise"])
def test_queries_do_not_meet_and_a_query_without_contrast_changes_nothing(loss: str) -> None:
    config = TASK.Config(loss=loss)
    batch = batch_of(config)
    outputs = outputs_of(batch, 1).requires_grad_()
    TASK.loss(config, outputs, batch).backward()
    assert outputs.grad is not None
    gradient = outputs.grad[torch.as_tensor(batch.arrays["text"]), 0]
    assert not gradient[7:].any(), "queries of one grade or one product teach nothing"
    assert gradient[5] < 0 < gradient[6]
    # A shift of all of a query's scores changes no comparison: its gradients add up to nothing.
    assert float(outputs.grad.sum()) == pytest.approx(0, abs=1e-12)


def test_one_best_product_stays_when_judged_products_are_drawn() -> None:
    config = TASK.Config(judged_per_query=2)
    many = judged([(0, 0), (1, 0), (4, 3), (5, 1), (2, 0)], [(0, 1), (1, 0)])
    seen = set()
    for seed in range(12):
        batch = TASK.batch(config, many, np.array([0, 1]), ITEMS, np.random.default_rng(seed))
        assert batch.arrays["query"].tolist() == [0, 0, 1, 1] and batch.arrays["grade"][:2].max() == 3
        assert float(batch.arrays["best"]) == 3
        seen |= {text[0] for text in batch.texts}
    assert len(seen) == 5, "every product has its turn"


def test_equal_texts_are_computed_once() -> None:
    batch = batch_of(TASK.Config())
    assert len(batch.arrays["text"]) == 10 and len(batch.texts) == 9
    assert batch.arrays["text"][1] == batch.arrays["text"][3]


@pytest.mark.parametrize(("kind", "query_first"), [("encoder", False), ("encoder", True), ("causal", False)])
def test_a_product_of_a_megabyte_pushes_no_query_out(kind: str, query_first: bool, toy_recipe: Any) -> None:
    tokenizer = tokenizer_of(toy_recipe("relevance", kind).model)
    config = TASK.Config(query_first=query_first, before="", between="Q: ", after=" answer:")
    items = ["墨盒 " * 300_000, "oak desk"]
    (text, _) = TASK.pairs(config, judged([(0, 1), (1, 0)]), np.array([0]), items)
    assert len("".join(text)) < 30_000
    (found,) = tokenize(tokenizer, [text], 48)
    assert len(found["input_ids"]) == 48
    query = text[0] if query_first else text[1]
    wanted = tokenizer(query, add_special_tokens=False)["input_ids"]
    at = found["input_ids"]
    assert any(at[start : start + len(wanted)] == wanted for start in range(len(at))), tokenizer.decode(at)


def test_labels_and_answers_follow_the_loss() -> None:
    graded = TASK.Config(loss="classes", grades=(0, 0.5, 1))
    assert graded.answers == ("0", "0.5", "1") == TASK.labels(graded, "answers", ())
    assert TASK.labels(graded, "classifier", ()) == ("0", "0.5", "1")
    plain = TASK.Config()
    assert plain.answers == (" yes", " no") and TASK.labels(plain, "answers", ()) == ("yes", "no")
    assert TASK.labels(plain, "classifier", ()) == ("relevance",)
    assert TASK.Config(loss="classes", grades=(0, 1), answers=("差", "好")).answers == ("差", "好")
    assert TASK.Config(**graded.model_dump()) == graded


@pytest.mark.parametrize(
    ("settings", "place", "rule"),
    [
        ({"loss": "classes"}, "task.grades: None", "loss classes needs all grades"),
        ({"loss": "classes", "grades": [3, 2, 0]}, r"task.grades: \[3, 2, 0\]", "worst first"),
        ({"grades": [1]}, r"task.grades: \[1\]", "two grades or more"),
        (
            {"loss": "classes", "grades": [0, 1, 2], "answers": ["a", "b"]},
            r"task.answers: \['a', 'b'\]",
            "3 answers, one for each of 0, 1, 2",
        ),
        ({"answers": ["yes"]}, r"task.answers: \['yes'\]", "2 answers, one for each of yes, no"),
        ({"loss": "hinge"}, "task.loss: 'hinge'", "listwise"),
        ({"judged_per_query": 1}, "task.judged_per_query: 1", "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], place: str, rule: str, toy_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=rf"(?s){place} .*rule: .*{rule}.*fix: "):
        toy_recipe({"name": "relevance", **settings})


def test_what_cannot_work_is_refused_before_anything_is_loaded(toy_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"task.query_first: True.*cannot work.*rule: .*one string.*fix: "):
        check(toy_recipe({"name": "relevance", "query_first": True}, "causal"))
    check(toy_recipe({"name": "relevance", "query_first": True}))
    ungraded = {"queries": {"path": "queries.csv", "query": "query", "item": "item"}}
    with pytest.raises(RecipeError, match=r"data.queries.grade: None.*cannot work.*fix: name data.queries.grade"):
        check(toy_recipe("relevance", data=ungraded))


def test_grades_that_teach_nothing_or_have_no_class_are_refused() -> None:
    flat = judged([(0, 2), (1, 2)], [(2, 2)])
    with pytest.raises(DataError, match=r"data.queries.grade: every training judgement has grade 2 \(rule: .*fix: "):
        batch_of(TASK.Config(), flat)
    with pytest.raises(DataError, match=r"task.grades: training has grade 3 \(rule: .*one of 0, 1, 2; fix: add"):
        batch_of(TASK.Config(loss="classes", grades=(0, 1, 2)))
