"""The tasks' losses equal slow ones, and what is known to be good is never pushed away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from recft import registry
from recft.data.store import Records
from recft.tasks._base import Batch
from recft.tasks._towers import Column, TowerSettings, contrastive_loss, tower_batch

ITEMS = ["red chair", "oak desk", "桌子", "oak desk", "usb cable", "lamp", "paper"]
EXAMPLES = [
    Column("chair", {0: 3.0, 1: 1.0, 4: 0.0}, frozenset({0, 1})),
    Column("desk", {1: 2.0, 2: 2.0}, frozenset({1, 2, 5})),
    Column("no positive", {6: 0.0}, frozenset()),
    Column("chair", {5: 1.0}, frozenset({5})),
]


def settings(**changes: Any) -> TowerSettings:
    return TowerSettings(name="of-the-test", **changes)


def batch_of(config: TowerSettings, examples: Sequence[Column] = EXAMPLES) -> Batch:
    return tower_batch(examples, ITEMS, config, np.random.default_rng(0))


def outputs_of(batch: Batch, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(len(batch.texts), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)


def slow_loss(
    outputs: torch.Tensor,
    batch: Batch,
    config: TowerSettings,
    base: torch.Tensor | None = None,
    correction: Sequence[float] | None = None,
    examples: Sequence[Column] = EXAMPLES,
) -> float:
    """The formula of `contrastive_loss`, an example, a positive and a column at a time, from texts alone."""
    vector = dict(zip(batch.texts, outputs.tolist(), strict=True))
    columns = list(batch.texts)[len({example.text for example in examples}) :]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    total = 0.0
    for example in examples:
        grades: dict[str, float] = {}
        for item, grade in example.grades.items():
            grades[ITEMS[item]] = max(grade, grades.get(ITEMS[item], 0.0))
        known = {ITEMS[item] for item in example.known}
        score = {
            text: dot(vector[example.text], vector[text]) / config.temperature - (correction[n] if correction else 0.0)
            for n, text in enumerate(columns)
        }
        weight = sum(grade for grade in grades.values() if grade > 0)
        for text, grade in grades.items():
            if grade <= 0:
                continue
            below = 0.0
            for other in columns:
                if other in grades:
                    below += math.exp(score[other]) if grades[other] < grade else 0.0
                elif other not in known:
                    below += config.in_batch * math.exp(score[other])
            own = math.exp(score[text])
            total -= grade / weight * math.log(own / (own + below))
    loss = total / len(examples)
    if base is not None and config.anchor:
        plain = dict(zip(batch.texts, base.tolist(), strict=True))
        squares = [
            ((dot(vector[e.text], vector[t]) - dot(plain[e.text], plain[t])) / config.temperature) ** 2
            for e in examples
            for t in columns
        ]
        loss += config.anchor * sum(squares) / len(squares)
    return loss


@pytest.mark.parametrize("in_batch", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("anchor", [0.0, 0.3])
def test_the_contrastive_loss_is_its_formula(in_batch: float, anchor: float) -> None:
    config = settings(in_batch=in_batch, anchor=anchor, temperature=0.3)
    batch = batch_of(config)
    outputs, base = outputs_of(batch), outputs_of(batch, seed=1)
    found = float(contrastive_loss(outputs, batch, config, base))
    assert found == pytest.approx(slow_loss(outputs, batch, config, base), rel=1e-6)


def test_the_correction_is_taken_from_every_column() -> None:
    config = settings(temperature=0.3)
    batch = batch_of(config)
    outputs = outputs_of(batch)
    correction = np.linspace(-3, 0, batch.arrays["grades"].shape[1])
    found = float(contrastive_loss(outputs, batch, config, None, correction))
    assert found == pytest.approx(slow_loss(outputs, batch, config, None, correction.tolist()), rel=1e-6)


def test_random_negatives_are_drawn_again_from_the_same_seed() -> None:
    config = settings(random_negatives=4, temperature=0.3)
    one, two = batch_of(config), batch_of(config)
    assert one.texts == two.texts and len(one.texts) >= len(batch_of(settings()).texts)
    outputs = outputs_of(one)
    assert float(contrastive_loss(outputs, one, config, None)) == pytest.approx(slow_loss(outputs, one, config))


def test_with_one_positive_and_no_more_it_is_infonce() -> None:
    config = settings(temperature=0.2)
    examples = [Column(f"q{n}", {n: 1.0}, frozenset({n})) for n in (0, 1, 2)]
    batch = batch_of(config, examples)
    outputs = outputs_of(batch)
    logits = outputs[:3] @ outputs[3:].T / 0.2
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(3))
    assert float(contrastive_loss(outputs, batch, config, None)) == pytest.approx(float(expected), rel=1e-6)


def pushed(batch: Batch, config: TowerSettings, row: int) -> dict[Any, float]:
    """The gradient of one example's own scores by column text: above zero is pushed away."""
    outputs = outputs_of(batch).requires_grad_()
    # An example's gradient alone: a batch whose other rows have no grades.
    grades = batch.arrays["grades"].copy()
    grades[[other for other in range(len(grades)) if other != row]] = np.nan
    alone = Batch(batch.texts, {**batch.arrays, "grades": grades}, batch.n_examples)
    contrastive_loss(outputs, alone, config, None).backward()
    assert outputs.grad is not None
    query = outputs.detach()[batch.arrays["query"][row]]
    columns = list(batch.texts)[-grades.shape[1] :]
    return {text: float(grad @ query) for text, grad in zip(columns, outputs.grad[-len(columns) :], strict=True)}


def test_known_positives_and_duplicates_of_them_are_never_negatives() -> None:
    # The second example knows item 1, `oak desk`, of which item 3 is a duplicate, and item 5, of no grade here.
    examples = [EXAMPLES[1], Column("other", {3: 1.0, 5: 1.0, 6: 0.0}, frozenset({3, 5}))]
    config = settings()
    batch = batch_of(config, examples)
    columns = list(batch.texts)[2:]
    assert sorted(columns) == sorted({ITEMS[item] for item in (1, 2, 3, 5, 6)}), "a text stands twice"
    found = pushed(batch, config, 0)
    assert found["lamp"] == 0.0 and found["oak desk"] < 0 and found["桌子"] < 0 and found["paper"] > 0


def test_an_example_without_a_positive_and_one_without_anything_worse_change_nothing() -> None:
    config = settings(in_batch=0.0)
    batch = batch_of(config, [EXAMPLES[2], Column("q", {0: 1.0}, frozenset({0}))])
    outputs = outputs_of(batch).requires_grad_()
    loss = contrastive_loss(outputs, batch, config, None)
    loss.backward()
    assert float(loss.detach()) == 0.0 and outputs.grad is not None and not outputs.grad.any()


def records(**changes: Any) -> Records:
    """Two users: one with history 0 1 0 and target 2, one with history 4 and targets 5 and 6."""
    base: dict[str, Any] = {
        "keys": ["u0", "u1"],
        "queries": None,
        "users": np.array([0, 1], np.int32),
        "starts": np.array([0, 4]),
        "cuts": np.array([3, 5]),
        "times": np.array([4, 4]),
        "offsets": np.array([0, 1, 3]),
        "items": np.array([2, 5, 6], np.int32),
        "grades": np.array([1.0, 1.0, 0.0], np.float32),
        "log_items": np.array([0, 1, 0, 2, 4, 5], np.int32),
        "log_times": np.arange(6),
        "log_ratings": np.array([5, 1, 2, 5, 4, 5], np.float32),
    }
    return Records(**{**base, **changes})


def test_next_item_blocks_what_was_bought_and_corrects_for_popularity() -> None:
    task = registry.load("recft.tasks", "next-item")
    config = task.Config()
    many = records(items=np.array([2, 5, 5], np.int32), grades=np.ones(3, np.float32))
    batch = task.batch(config, many, np.arange(2), ITEMS, np.random.default_rng(0))
    columns = list(batch.texts)[2:]
    assert columns == ["桌子", "lamp"]
    assert batch.arrays["correction"].tolist() == pytest.approx([math.log(1 / 3), math.log(2 / 3)])
    outputs = outputs_of(batch)
    examples = [Column("oak desk", {2: 1.0}, frozenset({0, 1, 2})), Column("usb cable", {5: 1.0}, frozenset({4, 5}))]
    named = Batch(["oak desk", "usb cable", *columns], batch.arrays, 2)
    slow = slow_loss(outputs, named, config, None, batch.arrays["correction"].tolist(), examples)
    assert float(task.loss(config, outputs, batch)) == pytest.approx(slow, rel=1e-6)
    # A second user who has bought the first one's target is not pushed from it.
    bought = records(starts=np.array([0, 3]), cuts=np.array([3, 5]))
    batch = task.batch(config, bought, np.arange(2), ITEMS, np.random.default_rng(0))
    assert batch.arrays["blocked"][1, list(batch.texts)[2:].index("桌子")]


def test_retrieval_keeps_a_best_product_and_blocks_those_that_were_not_drawn() -> None:
    task = registry.load("recft.tasks", "retrieval")
    config = task.Config(judged_per_query=2)
    judged = Records(
        keys=["q", "q"],
        queries=["Q", "q"],
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.array([0, 5, 6]),
        items=np.array([0, 1, 2, 4, 5, 6], np.int32),
        grades=np.array([0, 1, 0, 3, 1, 2], np.float32),
    )
    for seed in range(5):
        batch = task.batch(config, judged, np.array([0, 1]), ITEMS, np.random.default_rng(seed))
        columns = list(batch.texts)[2:]
        assert "usb cable" in columns and len(columns) == 3
        blocked = batch.arrays["blocked"]
        # Both records are of one normalised query: what is good for one is no negative of the other.
        assert blocked[0, columns.index("paper")] and blocked[1, columns.index("usb cable")]


def test_purchase_is_the_mean_cross_entropy_of_its_labels() -> None:
    task = registry.load("recft.tasks", "purchase")
    batch = task.batch(task.Config(), records(), np.array([0, 1]), ITEMS, np.random.default_rng(0))
    assert batch.arrays["label"].tolist() == [True, True, False] and len(batch.texts) == 3
    logits = [0.3, -1.2, 0.7]
    expected = (
        sum(
            -math.log(1 / (1 + math.exp(-logit))) if label else -math.log(1 - 1 / (1 + math.exp(-logit)))
            for logit, label in zip(logits, batch.arrays["label"], strict=True)
        )
        / 3
    )
    head = torch.tensor(logits, dtype=torch.float64)[:, None]
    answers = torch.cat([head + 2.0, torch.full_like(head, 2.0)], dim=1)
    for outputs in (head, answers):
        assert float(task.loss(task.Config(), outputs, batch)) == pytest.approx(expected)
        scores = task.scores(task.Config(), outputs.numpy())
        assert scores.tolist() == pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits])


def test_purchase_draws_candidates_and_computes_equal_texts_once() -> None:
    task = registry.load("recft.tasks", "purchase")
    twins = records(items=np.array([2, 1, 3], np.int32))
    batch = task.batch(task.Config(), twins, np.array([0, 1, 0]), ITEMS, np.random.default_rng(0))
    assert len(batch.texts) == 2 and batch.arrays["text"].tolist() == [0, 1, 1, 0]
    drawn = task.batch(task.Config(candidates_per_record=1), twins, np.array([0, 1]), ITEMS, np.random.default_rng(0))
    assert len(drawn.arrays["text"]) == 2
