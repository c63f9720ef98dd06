"""The report: rows, protocol, gates, predictions, and what makes it refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from recft import registry
from recft.errors import DataError, GateError, ModelError, RecipeError
from recft.evaluate import evaluate
from recft.recipe import Recipe
from recft.run import hash_file, read_json
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]

LORA = {"name": "lora", "rank": 4}


@pytest.fixture
def run(toy_recipe: ToyRecipe, tmp_path: Path) -> Path:
    tune(toy_recipe(method=LORA, eval={"baselines": ["bm25", "popularity"]}), tmp_path / "run")
    return tmp_path / "run"


def test_every_row_has_scores_intervals_and_a_paired_difference(run: Path) -> None:
    report = evaluate(run)
    assert read_json(run / "eval" / "test.json") == report
    assert set(report["baselines"]) == {"bm25", "popularity"}
    assert set(report["ci"]) == {"base", "tuned", "bm25", "popularity", "fused", "fused_without_model"}
    fused = {f"fused - {row}" for row in ("tuned", "bm25", "popularity", "fused_without_model")}
    assert set(report["paired"]) == {"tuned - base", "tuned - bm25", "tuned - popularity", *fused}
    for row, metrics in report["ci"].items():
        scores = report[row] if row in report else report["baselines"][row]
        for name, (low, high) in metrics.items():
            assert low <= scores[name] <= high, (row, name)
    for other, scores in (("base", report["base"]), *report["baselines"].items()):
        difference = report["paired"][f"tuned - {other}"]["ndcg@10"]["mean"]
        assert difference == pytest.approx(report["tuned"]["ndcg@10"] - scores["ndcg@10"])
    for other in ("tuned", "fused_without_model"):
        difference = report["paired"][f"fused - {other}"]["ndcg@10"]["mean"]
        assert difference == pytest.approx(report["fused"]["ndcg@10"] - report[other]["ndcg@10"])
    assert report["fusion"]["systems"] == ["tuned", "bm25", "popularity"]
    assert set(report["fusion"]["weights"]) >= {"tuned", "bm25", "popularity"}
    assert {name.partition(":")[0] for name in report["fusion"]["weights_without_model"]} == {"bm25", "popularity"}
    assert report["protocol"]["n_candidates"] == 40 and report["protocol"]["split"] == "test"


def test_predictions_give_the_reports_figures(run: Path) -> None:
    report = evaluate(run)
    path = run / "eval" / report["predictions"]["path"]
    assert hash_file(path) == report["predictions"]["sha256"]
    frame = pl.read_parquet(path)
    assert frame.height == report["n"]
    for row in ("base", "tuned"):
        assert frame[f"{row}:ndcg@10"].mean() == pytest.approx(report[row]["ndcg@10"])
        scores = np.array(frame[f"{row}:top_scores"].to_list())
        assert scores.shape == (frame.height, 20) and (np.diff(scores, axis=1) <= 0).all()


def test_equal_runs_of_eval_give_equal_reports(run: Path) -> None:
    one, two = (dict(evaluate(run, split="valid")) for _ in range(2))
    assert one.pop("seconds") >= 0 and two.pop("seconds") >= 0
    assert one == two


def test_gates_hold_or_end_in_an_error_that_carries_the_report(run: Path, tmp_path: Path) -> None:
    report = evaluate(run, gates=("ndcg@10 >= base - 1", "mrr@10 >= 0"))
    assert [gate["passed"] for gate in report["gates"]] == [True, True]
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps(report))
    with pytest.raises(GateError, match=r"ndcg@10 = .* is not >= reference \+ 0.5") as caught:
        evaluate(run, gates=("ndcg@10 >= reference + 0.5", "mrr@10 >= 0"), reference=reference)
    assert caught.value.exit_code == 3
    written = read_json(run / "eval" / "test.json")
    assert [gate["passed"] for gate in written["gates"]] == [False, True]


def test_a_gate_that_is_not_understood_is_told_before_anything_is_scored(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.modules["recft.evaluate"], "open_adapter", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match="gate"):
        evaluate(run, gates=("ndgc@10 >= base",))


def test_undefined_scores_are_none_and_the_report_is_json(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    # In a split of one item a user no group has both labels.
    recipe = toy_recipe("purchase", "causal", LORA, eval={"metrics": ["gauc", "log_loss"]})
    raw = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"labels": type(recipe.data.labels)(at_least=3)})}
    )
    tune(raw, tmp_path / "run")
    report = evaluate(tmp_path / "run")
    assert report["tuned"]["gauc"] is None and report["tuned"]["log_loss"] > 0
    json.dumps(report, allow_nan=False)


def test_an_adapter_without_effect_is_refused(run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="switching it off changes outputs by 0"):
        evaluate(run)


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_an_adapter_that_is_not_whole_is_refused(damage: str, run: Path) -> None:
    path = run / "adapter" / "adapter_model.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:64])
    else:
        tensors = load_file(path)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"holds no|is damaged|missing"):
        evaluate(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no run folder.*fix: check the path"):
        evaluate(tmp_path)


def test_a_baseline_for_other_data_is_refused_before_a_model_is_loaded(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    tune(toy_recipe("next-item", "encoder", LORA, eval={"baselines": []}), tmp_path / "run")
    wrong = toy_recipe("next-item", "encoder", LORA, eval={"baselines": ["bm25"]})
    (tmp_path / "run" / "recipe.yaml").write_text(wrong.to_yaml(), encoding="utf-8")
    monkeypatch.setattr(sys.modules["recft.evaluate"], "open_adapter", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match=r"eval.baselines: bm25 on interactions.*fix: .*popularity"):
        evaluate(tmp_path / "run")
    # Tuning asks first: hours of it would end in the same message.
    with pytest.raises(RecipeError, match=r"eval.baselines: bm25 on interactions"):
        tune(wrong, tmp_path / "other")


def test_classic_rows_that_make_sense_are_there_unasked(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(method=LORA, tune={"max_steps": 1}, eval={"baselines": None})
    tune(recipe, tmp_path / "run")
    members = {name: registry.load("recft.baselines", name) for name in registry.names("recft.baselines")}
    quick = {
        name
        for name, member in members.items()
        if "queries" in member.tables and "ranking" in member.outputs and getattr(member, "by_default", True)
    }
    report = evaluate(tmp_path / "run")
    assert set(report["baselines"]) == quick and "bm25" in quick
    assert set(report["fusion"]["systems"]) == {"tuned", *quick}


def test_sampled_negatives_are_called_sampled(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    for labels, sampled in (({"negatives": 2}, True), ({"at_least": 4}, False)):
        plain = toy_recipe(task="purchase", tune={"max_steps": 1}).model_dump(mode="json")
        plain["data"]["labels"] = labels
        run = tmp_path / str(sampled)
        tune(Recipe.from_mapping(plain), run=run)
        assert evaluate(run)["protocol"]["sampled"] is sampled
