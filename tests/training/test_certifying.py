"""Certifying works on every task: the tuned model's own numbers pass, in every dtype, and others do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows_toys import TASKS, Encode, Made, made

from recft import registry
from recft.exports._base import Engine
from recft.recipe import Recipe
from recft.schema import Tolerances
from recft.training.certifying import Asked, certify

ToyRecipe = Callable[..., Recipe]


def asked_of(held: Made, **more: Any) -> Asked:
    monitor = registry.load("recft.tasks", held.recipe.task.name).monitor
    names = (*held.small.names, monitor)
    tolerances = Tolerances(metric=1e-9, quantized_metric=1e-9)  # toy figures are few: any change shows
    return Asked(held.serving, held.recipe.task, names, monitor, "linear", tolerances, 0.1, **more)


def off(held: Made, size: float) -> Encode:
    """The same numbers and as much again, each text by its own amount; of a likelihood the log p alone."""

    def encode(texts: Sequence[Any]) -> np.ndarray:
        found = held.engine(texts)
        for row, text in enumerate(texts):
            seed = sum(map(ord, text if isinstance(text, str) else "".join(text)))
            found[row, 0] += size * np.random.default_rng([seed, 1]).normal()
        return found

    return encode


@pytest.mark.parametrize(("task", "kind"), TASKS, ids=str)
def test_every_task_is_certified(toy_recipe: ToyRecipe, tmp_path: Path, task: Any, kind: str) -> None:
    held = made(toy_recipe, tmp_path, task, kind, 30)
    asked = asked_of(held)
    assert Asked.from_json(json.loads(json.dumps(asked.to_json()))) == asked
    for dtype in ("float32", "bfloat16", "int8"):
        found = certify(Engine("toy", "1", held.engine, held.tokenizer, dtype), held.rows, asked)
        assert found["verdict"] == "passed", found["wrong"]
        assert found["metrics"]["reference"] == found["metrics"]["served"] and found["metric_change"] == 0
        assert found["largest_score_difference"] == 0 and found["kl"] == pytest.approx(0, abs=1e-12)
        assert found["rows"] == len(held.rows.contexts) and found["tokenization_differs"] == 0
        json.dumps(found, allow_nan=False)
    ranks = registry.load("recft.tasks", held.recipe.task.name).output in ("ranking", "classes")
    assert (found["top_k_agreement"] is not None) == ranks
    found = certify(Engine("toy", "1", off(held, 20.0), held.tokenizer, "float32"), held.rows, asked)
    assert found["wrong"][0].startswith("scores differ by")
    assert found["metric_change"] != 0
    changes = [line for line in found["wrong"] if "changes by" in line]
    assert changes and found["metric"] in changes[0], "the metric is judged"
    if len(np.unique(held.rows.clusters)) > 1:
        low, high = found["metric_interval"]
        assert low <= high
    found = certify(Engine("toy", "1", off(held, 20.0), held.tokenizer, "bfloat16"), held.rows, asked)
    assert found["wrong"][0].startswith("KL ")
    found = certify(Engine("toy", "1", off(held, 20.0), held.tokenizer, "nf4"), held.rows, asked)
    assert found["verdict"] == "failed" and "export.tolerances.quantized_metric" in found["wrong"][-1]


def test_probabilities_are_scored_as_they_are_served(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    import dataclasses

    held = made(toy_recipe, tmp_path, "purchase", "encoder", 30)
    plain = asked_of(held)
    softer = dataclasses.replace(
        plain, serving=dataclasses.replace(held.serving, calibration={"kind": "temperature", "temperature": 3.0})
    )
    engine = Engine("toy", "1", held.engine, held.tokenizer, "float32")
    ours, theirs = (certify(engine, held.rows, asked)["metrics"]["served"] for asked in (plain, softer))
    assert ours["auc"] == theirs["auc"] and ours["log_loss"] != theirs["log_loss"]
    assert Asked.from_json(json.loads(json.dumps(softer.to_json()))) == softer


def test_every_text_is_computed_once_and_a_few_again(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    held = made(toy_recipe, tmp_path, "retrieval", "encoder", 30)
    calls: list[int] = []

    def counted(texts: Sequence[Any]) -> np.ndarray:
        calls.append(len(texts))
        return held.engine(texts)

    certify(Engine("toy", "1", counted, held.tokenizer, "float32"), held.rows, asked_of(held))
    few = min(8, len(held.rows.contexts))
    different = len(set(held.rows.contexts)) + len(set(held.rows.items))
    assert sum(calls) == 1 + different + 3 * few


def test_the_interval_is_of_clusters(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    import dataclasses

    held = made(toy_recipe, tmp_path, "retrieval", "encoder", 30)
    engine = Engine("toy", "1", off(held, 20.0), held.tokenizer, "int8")
    one = dataclasses.replace(held.rows, clusters=np.zeros_like(held.rows.clusters))
    assert certify(engine, one, asked_of(held))["metric_interval"] is None, "one user is no sample"
    found = certify(engine, held.rows, asked_of(held))
    assert found["metric_interval"][0] < found["metric_change"] < found["metric_interval"][1]
