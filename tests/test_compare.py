"""Runs side by side: what is pooled, and of which rows a metric can be said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from recft.compare import compare
from recft.errors import DataError
from recft.evaluate import evaluate
from recft.metrics._intervals import holm
from recft.recipe import Recipe
from recft.reports.tables import comparison
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
    above = found["paired"]["seed-0 - seed-0 (base)"]
    assert set(above) == {"auc", "log_loss"}
    ps = {metric: one["p"] for metric, one in above.items()}
    assert all(0 < p <= 1 for p in ps.values())
    assert {metric: one["p_holm"] for metric, one in above.items()} == holm(ps)
    # The same seed twice is a slip, by copy or by path.
    shutil.copytree(tmp_path / "seed-1", tmp_path / "again")
    with pytest.raises(DataError, match=r"seed-1 and .*again are both seed-0 with seed 1 .*fix: leave one of them out"):
        compare([tmp_path / "seed-0", tmp_path / "seed-1", tmp_path / "again"])
    with pytest.raises(DataError, match=r"seed-0 and .*seed-0 are both seed-0 with seed 0 "):
        compare([tmp_path / "seed-0", tmp_path / "seed-0"])


def test_a_figure_of_other_candidates_is_another_row(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """A classic row stands once for runs of one protocol, and never for runs of another."""
    for name, wanted in (("all", {}), ("few", {"candidates": "sampled 5"}), ("again", {"records": None})):
        asked = {"baselines": ["bm25"], "bootstrap": 100, "slices": ["item_popularity"], **wanted}
        recipe = toy_recipe(eval=asked).model_copy(update={"name": name})
        if name == "again":
            recipe = recipe.model_copy(update={"tune": recipe.tune.model_copy(update={"max_steps": 2})})
        tune(recipe, tmp_path / name)
        evaluate(tmp_path / name)
    found = compare([tmp_path / "all", tmp_path / "few", tmp_path / "again"])
    names = [row["run"] for row in found["rows"]]
    assert "slice" not in names and not any("slice" in metric for row in found["rows"] for metric in row["scores"])
    assert names.count("bm25") == 1 and "bm25 (few)" in names and "bm25 (again)" not in names
    assert "few (fused) - bm25 (few)" in found["paired"] and "again (fused) - bm25" in found["paired"]
    assert "again - all" in found["paired"] and "few - all" not in found["paired"]
    recipe = Recipe.load(tmp_path / "again" / "recipe.yaml").model_copy(update={"name": "all"})
    (tmp_path / "again" / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    alike = compare([tmp_path / "all", tmp_path / "again"])
    assert {"all", f"all ({tmp_path / 'again'})"} <= {row["run"] for row in alike["rows"]} & set(alike["protocols"])
    notes = comparison(found).notes
    assert any("sampled 5" in note and note.startswith("few: ") for note in notes)
    assert any("(all)" in note and note.startswith("all, again: ") for note in notes)
