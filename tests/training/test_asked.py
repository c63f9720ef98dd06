"""What eval is asked for is told wrong before anything runs, and several tasks share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recft import registry
from recft.errors import DataError, RecipeError
from recft.perturbations._spoilt import spoilt_task
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.recommend import recommend
from recft.training.asked import fitting_metrics, settled
from recft.training.assemble import check
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]


def parts_of(toy_recipe: ToyRecipe, toy_shop: Path, out: Path, wanted: dict[str, Any], *names: str) -> Any:
    """The parts of a run of these tasks over the shop's queries and log."""
    raw = toy_recipe("retrieval").model_dump(mode="json")
    raw.pop("task")
    log = {"path": str(toy_shop / "log.csv"), "user": "user", "item": "item", "time": "time", "rating": "rating"}
    raw["data"] |= {"interactions": log, "labels": {"negatives": 2}, "split": {"valid": 0.2, "test": 0.2}}
    raw |= {"tasks": [{"name": name} for name in names], "eval": raw["eval"] | wanted}
    recipes = Recipe.from_mapping(raw).parts()
    return tuple((part, prepare(part, out / part.task.name)) for part in recipes)


def test_each_task_is_asked_for_what_it_has(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path) -> None:
    wanted = {"metrics": ["ndcg@5", "mrr@5"], "baselines": ["bm25", "ease"], "slices": ["cold_user", "cold_item"]}
    parts = parts_of(toy_recipe, toy_shop, tmp_path, wanted, "retrieval", "purchase")
    (search, _), (purchase, _) = settled(parts, "test")
    assert fitting_metrics(search) == ("ndcg@5", "mrr@5")
    assert fitting_metrics(purchase)[0] == "auc", "none is asked for that it has: its own"
    assert (search.eval.baselines, purchase.eval.baselines) == (("bm25",), ("ease",))
    assert (search.eval.slices, purchase.eval.slices) == (("cold_item",), ("cold_user", "cold_item"))


def test_what_is_not_said_stays_unsaid(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"metrics": None, "baselines": None, "slices": [], "candidates": None}
    parts = parts_of(toy_recipe, toy_shop, tmp_path, wanted, "retrieval", "next-item")
    assert settled(parts, "valid") == parts
    parts = parts_of(toy_recipe, toy_shop, tmp_path, {"baselines": []}, "retrieval", "next-item")
    assert [recipe.eval.baselines for recipe, _ in settled(parts, "valid")] == [(), ()]


def test_everything_that_no_task_has_is_told_at_once(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path) -> None:
    wanted = {
        "metrics": ["rmse", "ndgc@5"],
        "baselines": ["mf", "eaes"],
        "slices": ["brnad"],
        "robustness": {"tpos": 0.1},
    }
    parts = parts_of(toy_recipe, toy_shop, tmp_path, wanted, "retrieval", "next-item")
    with pytest.raises(RecipeError) as caught:
        settled(parts, "test")
    lines = str(caught.value).splitlines()
    told = ("'tpos'", "rmse", "'ndgc'", "mf on queries", "'eaes'", "'brnad'")
    assert len(lines) == len(told)
    for word, line in zip(told, lines, strict=True):
        assert word in line


def test_judged_candidates_that_are_all_right_are_no_ranking(
    toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path
) -> None:
    """Every model would be perfect."""
    recipe = toy_recipe("next-item", eval={"candidates": "judged"})
    with pytest.raises(RecipeError, match=r"eval\.candidates: judged.*next-item.*fix: "):
        settled(((recipe, prepare(recipe, tmp_path / "alone")),), "test")
    parts = parts_of(toy_recipe, toy_shop, tmp_path, {"candidates": "judged"}, "retrieval", "next-item")
    assert [recipe.eval.candidates for recipe, _ in settled(parts, "test")] == ["judged", None]


def test_a_slip_of_the_pen_is_told_before_tuning(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    stages: list[str] = []

    def listen(event: str, values: Any) -> None:
        if event == "stage" and "name" in values:
            stages.append(values["name"])

    with pytest.raises(RecipeError, match="ndcg scores rankings"):
        tune(toy_recipe("purchase", eval={"metrics": ["ndcg@10"]}), tmp_path / "run", listen=listen)
    assert not stages, "nothing was loaded"
    assert not (tmp_path / "run" / "recipe.yaml").exists(), "the next try needs no --force"


def test_who_reads_item_by_item_ranks_item_by_item(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """A likelihood whose task has no contexts of their own cannot share one prefix over the catalogue."""
    tune(toy_recipe({"name": "preference", "chat": False}, kind="causal"), tmp_path / "run")
    assert len(recommend(tmp_path / "run", query="red desk", top=2)) == 2
    tune(toy_recipe("relevance", eval={"candidates": "sampled 5"}), tmp_path / "cross")
    for name, has_contexts in (("preference", False), ("relevance", False), ("next-item", True)):
        task = spoilt_task(registry.load("recft.tasks", name), {"typos": 0.1}, 0)
        assert hasattr(task, "contexts") == has_contexts


@pytest.mark.parametrize(
    ("task", "wanted", "key"),
    [
        ({"score_by": "likelihood", "logit_adjustment": 0.5}, {}, "logit_adjustment"),
        ({"score_by": "likelihood", "query_prompt": "history: "}, {}, "query_prompt"),
        ({"before": "history: "}, {}, "before"),
        ({}, {"decoding": "beam 5"}, "decoding"),
    ],
)
def test_a_setting_that_would_be_passed_over_is_refused(
    task: dict[str, Any], wanted: dict[str, Any], key: str, toy_recipe: ToyRecipe
) -> None:
    with pytest.raises(RecipeError, match=f"{key} is of .*fix: "):
        check(toy_recipe({"name": "next-item", **task}, kind="causal", eval=wanted))


def test_the_data_of_several_tasks_gives_way_to_that_of_one(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe()
    prepare(recipe, tmp_path / "data" / "retrieval")
    with pytest.raises(DataError, match="no folder of prepared data"):
        prepare(recipe, tmp_path / "data")
    prepare(recipe, tmp_path / "data", force=True)
    assert (tmp_path / "data" / "card.json").is_file() and not (tmp_path / "data" / "retrieval").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(DataError, match="no folder of prepared data"):
        prepare(recipe, tmp_path / "mine", force=True)
