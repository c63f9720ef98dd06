"""Preference: DPO and softmax-DPO against the base, whose sides are drawn, and what has one side alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recft import evaluate, registry, tune
from recft.data.store import Records
from recft.errors import DataError, RecipeError
from recft.models.base import tokenizer_of
from recft.recipe import Recipe
from recft.training.assemble import check
from recft.training.servings import servings_of

TASK = registry.load("recft.tasks", "preference")
REPLIES = ["在的", "no", "red chair", "在的", "🎒"]


def preferred(*records: tuple[str, list[tuple[int, float]]]) -> Records:
    """Each text with (reply, grade) pairs."""
    sizes = [len(pairs) for _, pairs in records]
    flat = [pair for _, pairs in records for pair in pairs]
    return Records(
        keys=[text for text, _ in records],
        queries=[text for text, _ in records],
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        items=np.array([item for item, _ in flat], np.int32),
        grades=np.array([grade for _, grade in flat], np.float32),
    )


# Many rejected, one rejected, a rejected one of the chosen one's text, and two records of one side.
RECORDS = preferred(
    ("a", [(1, 0), (0, 1), (2, 0), (4, 0)]),
    ("b", [(2, 1), (1, 0)]),
    ("c", [(0, 1), (3, 0)]),
    ("d", [(1, 0)]),
    ("e", [(4, 1)]),
)


def batch_of(config: Any, records: Records = RECORDS, seed: int = 0, rows: Any = None) -> Any:
    rows = np.arange(len(records)) if rows is None else np.array(rows)
    return TASK.batch(config, records, rows, REPLIES, np.random.default_rng(seed))


def outputs_of(batch: Any, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    sums = -10 * torch.rand(len(batch.texts), generator=draw, dtype=torch.float64)
    tokens = torch.tensor([len(text[1]) + 1.0 for text in batch.texts], dtype=torch.float64)
    return torch.stack([sums, tokens], dim=1)


def slow(config: Any, tuned: dict[Any, list[float]], base: dict[Any, list[float]]) -> float:
    """The formula of the module, a record and a rejected reply at a time, from texts alone."""

    def reward(text: str, reply: int) -> float:
        one, other = tuned[text, REPLIES[reply]], base[text, REPLIES[reply]]
        return (one[0] - other[0]) / (one[1] if config.length_normalise else 1.0)

    sides: list[tuple[str, int, list[int]]] = [("a", 0, [1, 2, 4]), ("b", 2, [1]), ("c", 0, [3])]
    beta, total, nll, count = float(config.beta), 0.0, 0.0, 0.0
    for text, chosen, rejected in sides:
        inner = sum(math.exp(beta * (reward(text, j) - reward(text, chosen))) for j in rejected)
        total -= math.log(1 / (1 + math.exp(math.log(inner))))
        nll, count = nll - tuned[text, REPLIES[chosen]][0], count + tuned[text, REPLIES[chosen]][1]
    return total / 3 + float(config.sft_weight) * nll / count


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_the_loss_is_its_formula(normalise: bool, sft_weight: float, beta: float) -> None:
    config = TASK.Config(beta=beta, sft_weight=sft_weight, length_normalise=normalise)
    batch = batch_of(config)
    assert batch.n_examples == 5 and len(batch.texts) == 7, "equal texts stand once, one-sided records not at all"
    outputs, base = outputs_of(batch, 0).requires_grad_(), outputs_of(batch, 1)
    named = (dict(zip(batch.texts, values.tolist(), strict=True)) for values in (outputs, base))
    found = TASK.loss(config, outputs, batch, base)
    assert float(found.detach()) == pytest.approx(slow(config, *named), rel=1e-6)
    found.backward()
    assert outputs.grad is not None and torch.isfinite(outputs.grad).all()
    gradient = dict(zip(batch.texts, outputs.grad[:, 0].tolist(), strict=True))
    assert gradient["a", "在的"] < 0 < gradient["a", "no"] and gradient["b", "red chair"] < 0 < gradient["b", "no"]
    if not sft_weight:
        assert gradient["c", "在的"] == pytest.approx(0), "chosen and rejected of one text pull nowhere"


def test_one_rejected_is_dpo_and_the_base_itself_starts_at_its_worth() -> None:
    config = TASK.Config(beta=0.5)
    batch = batch_of(config, rows=[1])
    outputs, base = outputs_of(batch, 0), outputs_of(batch, 1)
    margin = (outputs[0, 0] - base[0, 0]) - (outputs[1, 0] - base[1, 0])
    dpo = -torch.nn.functional.logsigmoid(0.5 * margin)
    assert float(TASK.loss(config, outputs, batch, base)) == pytest.approx(float(dpo))
    assert float(TASK.loss(config, base, batch, base)) == pytest.approx(math.log(2))
    many = batch_of(config, rows=[0])
    same = outputs_of(many, 0)
    assert float(TASK.loss(config, same, many, same)) == pytest.approx(math.log(1 + 3))


def test_the_loss_is_finite_far_from_the_base() -> None:
    config = TASK.Config(beta=10)
    batch = batch_of(config)
    outputs, base = (outputs_of(batch, 0).float() * 1e4).requires_grad_(), outputs_of(batch, 1).float()
    loss = TASK.loss(config, outputs, batch, base)
    loss.backward()
    assert torch.isfinite(loss) and outputs.grad is not None and torch.isfinite(outputs.grad).all()


def test_sides_are_drawn() -> None:
    config = TASK.Config(rejected_per_record=2)
    seen: set[tuple[str, str]] = set()
    for seed in range(12):
        batch = batch_of(config, seed=seed)
        assert batch.arrays["example"].tolist() == [0, 0, 1, 2]
        seen |= set(batch.texts)
    assert {("a", "no"), ("a", "red chair"), ("a", "🎒")} < seen
    several = preferred(("a", [(0, 1), (1, 1), (2, 0)]))
    chosen = {batch_of(TASK.Config(), several, seed).texts[0] for seed in range(12)}
    assert chosen == {("a", "在的"), ("a", "no")}, "of several chosen ones each has its turn"


def test_a_batch_of_one_sided_records_is_filled_from_the_others() -> None:
    batch = batch_of(TASK.Config(), rows=[3, 4])
    assert len(batch.arrays["chosen"]) == 1 and batch.texts[0][0] in "abc"
    outputs, base = outputs_of(batch, 0), outputs_of(batch, 1)
    assert torch.isfinite(TASK.loss(TASK.Config(), outputs, batch, base))


def test_scores_are_sums_or_by_token() -> None:
    outputs = np.array([[-6.0, 3], [-4, 1]], np.float32)
    assert TASK.scores(TASK.Config(), outputs).tolist() == [-6, -4]
    assert TASK.scores(TASK.Config(length_normalise=True), outputs).tolist() == [-2, -4]


def test_a_candidate_of_a_megabyte_leaves_the_question(toy_recipe: Any) -> None:
    recipe = toy_recipe({"name": "preference", "chat": False}, "causal", tune={"max_tokens": 48})
    tokenizer = tokenizer_of(recipe.model)
    records = preferred(("red lamp?", [(0, 1), (1, 0)]))
    texts = TASK.pairs(recipe.task, records, np.array([0]), ["墨盒 " * 300_000, "no"])
    for found in servings_of([(recipe, ["r0"])], tokenizer)["preference"].tokens(tokenizer, texts):
        assert len(found["input_ids"]) <= 48 and tokenizer.decode(found["input_ids"]).count("lamp?") == 1


def test_items_are_preferred_after_a_history(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = toy_recipe(
        {"name": "preference", "chat": False, "before": "history: ", "after": " item: ", "history_items": 3},
        "causal",
        data={
            "texts": None,
            "items": {"path": "items.jsonl", "id": "sku", "text": ["title"]},
            "interactions": {"path": "log.csv", "user": "user", "item": "item", "time": "time", "rating": "rating"},
            "split": {"by": "leave_one_out"},
            "labels": {"negatives": 3},
        },
    )
    tune(recipe, tmp_path / "run")
    report = evaluate(tmp_path / "run")
    assert report["protocol"]["candidates"] == "judged" and report["n"] == 30
    assert report["base"] != report["tuned"]
    assert 0 < report["tuned"]["hr@1"] < report["tuned"]["mrr@10"] <= 1


def test_what_cannot_work_is_refused_before_anything_is_loaded(toy_recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match=r"task.name: preference.*cannot work.*no head for encoder bases; fix: "):
        check(toy_recipe("preference", "encoder"))
    texts = {"path": "texts.csv", "text": ["text"], "reply": "reply"}
    with pytest.raises(RecipeError, match=r"data.texts.chosen: None.*cannot work.*fix: name data.texts.chosen"):
        check(toy_recipe("preference", "causal", data={"texts": texts}))
    log = {"path": "log.csv", "user": "user", "item": "item", "time": "time"}
    items = {"path": "items.jsonl", "id": "sku", "text": ["title"]}
    with pytest.raises(RecipeError, match=r"data.labels.at_least: None.*cannot work.*fix: set data.labels.negatives"):
        check(toy_recipe("preference", "causal", data={"texts": None, "items": items, "interactions": log}))
    # Of several tasks the log's labels may be another's: texts with a chosen side need none.
    check(toy_recipe("preference", "causal"))


@pytest.mark.parametrize(
    ("settings", "place", "rule"),
    [
        ({"beta": 0}, "task.beta: 0", "greater than 0"),
        ({"rejected_per_record": 0}, "task.rejected_per_record: 0", "greater than or equal to 1"),
        ({"sft_weight": -1}, "task.sft_weight: -1", "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], place: str, rule: str, toy_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=rf"{place} .*rule: .*{rule}.*fix: "):
        toy_recipe({"name": "preference", **settings}, "causal")


def test_records_of_one_side_alone_are_refused() -> None:
    with pytest.raises(DataError, match=r"data.texts.rejected: no record .* both .*rule: .* two sides; fix: check"):
        batch_of(TASK.Config(), preferred(("a", [(0, 1)]), ("b", [(1, 0)])))
    bought = Records(
        keys=["u"],
        queries=None,
        users=np.zeros(1, np.int32),
        starts=np.zeros(1, np.int64),
        cuts=np.zeros(1, np.int64),
        times=np.zeros(1, np.int64),
        offsets=np.array([0, 1]),
        items=np.zeros(1, np.int32),
        grades=np.ones(1, np.float32),
        log_items=np.zeros(1, np.int32),
    )
    with pytest.raises(DataError, match=r"data.labels: no record .*rule: .*fix: set data.labels.negatives, or split"):
        batch_of(TASK.Config(), bought)
