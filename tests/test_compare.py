"""Runs side by side: what is pooled, and of which rows a metric can be said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recft.compare import compare
from recft.evaluate import evaluate
from recft.recipe import Recipe
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]


def test_seeds_are_one_row_and_a_count_of_events_has_no_log_loss(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    wanted = {"metrics": ["auc", "log_loss"], "baselines": ["popularity"], "bootstrap": 100}
    reports = []
    for seed in (0, 1):
        recipe = toy_recipe(task="purchase", eval=wanted).model_copy(update={"seed": seed, "name": f"seed-{seed}"})
        tune(recipe, tmp_path / recipe.name)
        reports.append(evaluate(tmp_path / recipe.name))
    found = compare([tmp_path / "seed-0", tmp_path / "seed-1"])
    rows = {row["run"]: row for row in found["rows"]}
    assert rows["seed-0"]["runs"] == 2
    for metric in ("auc", "log_loss"):
        mean = sum(report["tuned"][metric] for report in reports) / 2
        assert rows["seed-0"]["scores"][metric] == pytest.approx(mean)
    # Scores that are no probabilities have an order alone.
    assert set(rows["popularity"]["scores"]) == {"auc"}
    assert set(found["paired"]["seed-0 (fused) - popularity"]) == {"auc"}
    assert set(found["paired"]["seed-0 - seed-0 (base)"]) == {"auc", "log_loss"}
