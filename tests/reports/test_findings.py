"""From rows to findings: differences, slices, gaps, words, examples, and what a whole evaluation writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recft.data.slices import Slice
from recft.data.store import Records
from recft.errors import DataError, RecipeError
from recft.evaluate import evaluate
from recft.metrics._base import Labels
from recft.metrics._intervals import holm, p_value, paired
from recft.recipe import Recipe
from recft.reports import findings
from recft.run import read_json
from recft.schema import EvalSettings
from recft.training.exam import Exam, System
from recft.training.scoring import Scored, score
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]

LORA = {"name": "lora", "rank": 4}
NAMES = ("ndcg@10", "mrr@10", "recall@3")
TITLES = [f"商品 {number}" for number in range(20)]


def an_exam(n: int = 60, output: str = "ranking", names: tuple[str, ...] = NAMES, seed: int = 0) -> Exam:
    """Records of two targets each, by twelve users."""
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.choice(20, 2, replace=False) for _ in range(n)]).astype(np.int32)
    grades = np.ones(2 * n) if output == "ranking" else rng.integers(0, 2, 2 * n)
    own = Records(
        keys=[f"用户 {row % 12}" for row in range(n)],
        queries=[f"query {row}" for row in range(n)],
        users=None,
        starts=None,
        cuts=None,
        times=None,
        offsets=np.arange(0, 2 * n + 1, 2, dtype=np.int64),
        items=items,
        grades=grades.astype(np.float32),
    )
    task: Any = SimpleNamespace(output=output)
    return Exam(task, task, own, TITLES, names, EvalSettings(bootstrap=200))


def row_of(exam: Exam, strength: float, seed: int) -> Scored:
    """A row that knows of the targets by so much."""
    rng, own = np.random.default_rng(seed), exam.records
    scores = rng.normal(size=(len(own), 20))
    owners = np.repeat(np.arange(len(own)), 2)
    scores[owners, own.items] += strength * np.where(own.grades > 0, 1, -1 if exam.task.output == "labels" else 1)
    if exam.task.output == "labels":
        scores = 1 / (1 + np.exp(-scores))

    def pairs(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([scores[row, own.items[own.offsets[row] : own.offsets[row + 1]]] for row in rows])

    return score(exam, System(lambda rows: scores[rows], pairs))


# -- differences ------------------------------------------------------------------------------------------------------


def test_differences_are_the_paired_test_s_with_holm_over_metrics() -> None:
    exam = an_exam()
    ours, theirs = row_of(exam, 1.0, 1), row_of(exam, 0.7, 2)
    found = findings.differences(ours, theirs, exam, seed=3)
    assert list(found) == list(NAMES)
    keys = np.array(exam.records.keys)
    ps = {}
    for name, entry in found.items():
        pair = ours.per_record[name], theirs.per_record[name], keys
        expected = paired(*pair, 200, 3)
        assert (entry["mean"], tuple(entry["ci"]), entry["n"]) == (expected.mean, expected.interval, 60)
        assert entry["mean"] == pytest.approx(ours.values[name] - theirs.values[name])
        ps[name] = p_value(*pair, 200, 3)
        assert entry["p"] == ps[name]
    assert {name: entry["p_holm"] for name, entry in found.items()} == holm(ps)  # type: ignore[arg-type]
    assert any(entry["p_holm"] > entry["p"] for entry in found.values())


def test_a_row_is_no_different_from_itself() -> None:
    for output, names in (("ranking", NAMES), ("labels", ("auc", "log_loss"))):
        exam = an_exam(output=output, names=names)
        row = row_of(exam, 1.0, 1)
        for entry in findings.differences(row, row, exam, 0).values():
            assert (entry["mean"], entry["ci"], entry["p"], entry["p_holm"]) == (0, [0, 0], 1, 1)


def test_what_one_row_has_no_number_for_is_not_compared() -> None:
    exam = an_exam(output="labels", names=("auc", "log_loss"))
    model = row_of(exam, 1.0, 1)
    order = dataclasses.replace(model, values=model.values | {"log_loss": np.nan}, probabilities=False)
    assert list(findings.differences(model, order, exam, 0)) == ["auc"]
    assert list(findings.intervals_of(order, exam, 0)) == ["auc"]


def test_an_interval_holds_its_score() -> None:
    for output, names in (("ranking", NAMES), ("labels", ("auc", "log_loss"))):
        exam = an_exam(output=output, names=names)
        row = row_of(exam, 0.5, 1)
        for name, interval in findings.intervals_of(row, exam, 0).items():
            assert interval is not None and interval[0] <= row.values[name] <= interval[1]


def test_one_cluster_has_no_interval_and_no_p() -> None:
    exam = an_exam(n=5)
    exam = dataclasses.replace(exam, records=dataclasses.replace(exam.records, keys=["one"] * 5))
    row = row_of(exam, 1.0, 1)
    assert set(findings.intervals_of(row, exam, 0).values()) == {None}
    for entry in findings.differences(row, row_of(exam, 0.2, 2), exam, 0).values():
        assert entry["ci"] is None and entry["p"] is None and entry["p_holm"] is None


# -- slices -----------------------------------------------------------------------------------------------------------


def test_slices_of_records_add_up() -> None:
    exam = an_exam()
    rows = {"base": row_of(exam, 0.3, 1), "tuned": row_of(exam, 1.0, 2), "ease": row_of(exam, 0.6, 3)}
    first = np.repeat(np.arange(60) < 17, 2)
    found = findings.sliced(rows, exam, {"a": Slice("f", first), "b": Slice("f", ~first)}, 0)
    assert {name: one["n"] for name, one in found.items()} == {"a": 17, "b": 43}
    for row, scored in rows.items():
        for metric in NAMES:
            parts = sum(one["n"] * one["rows"][row][metric] for one in found.values())
            assert parts / 60 == pytest.approx(scored.values[metric])
    for one in found.values():
        assert one["of"] == "f" and set(one["ci"]) == {"base", "tuned"} and set(one["paired"]) == {"tuned - base"}
        entry = one["paired"]["tuned - base"]["ndcg@10"]
        assert entry["n"] == one["n"]
        assert entry["mean"] == pytest.approx(one["rows"]["tuned"]["ndcg@10"] - one["rows"]["base"]["ndcg@10"])


def test_a_slice_of_items_is_a_ranking_without_the_other_targets() -> None:
    exam = an_exam()
    row = row_of(exam, 1.0, 1)
    keep = np.tile([True, False], 60)
    part = findings.part_of(row, exam, keep)
    own = exam.records
    alone = dataclasses.replace(exam, records=dataclasses.replace(own, items=own.items.copy()))
    assert part.n == 60 and part.ranks is not None
    for record in range(60):
        target, other = own.items[2 * record], own.items[2 * record + 1]
        rng = np.random.default_rng(1).normal(size=(60, 20))
        owners = np.repeat(np.arange(60), 2)
        rng[owners, own.items] += 1.0
        better = sum(rng[record, item] > rng[record, target] for item in range(20) if item not in (target, other))
        assert part.per_record["mrr@10"][record] == pytest.approx(1 / (better + 1) if better < 10 else 0)
    assert len(alone.records) == 60


def test_a_slice_of_labels_is_its_pairs() -> None:
    exam = an_exam(output="labels", names=("accuracy", "log_loss"))
    row = row_of(exam, 1.0, 1)
    mask = np.arange(120) % 3 == 0
    found = findings.sliced(
        {"base": row, "tuned": row},
        exam,
        {"in": Slice("x", mask), "out": Slice("x", ~mask), "none": Slice("x", mask & ~mask)},
        0,
    )
    assert set(found) == {"in", "out"}, "an empty slice says nothing"
    for metric in ("accuracy", "log_loss"):
        parts = sum(one["n"] * one["rows"]["tuned"][metric] for one in found.values())
        assert parts / 120 == pytest.approx(row.values[metric])


def test_gaps_are_between_the_best_and_the_worst_of_a_family() -> None:
    def one(of: str, **rows: Any) -> dict[str, Any]:
        return {"of": of, "n": 5, "rows": rows}

    slices = {
        "head": one("pop", base={"ndcg@10": 0.5, "rmse": 1.0}, tuned={"ndcg@10": 0.6, "rmse": 0.5}),
        "tail": one("pop", base={"ndcg@10": 0.1, "rmse": 3.0}, tuned={"ndcg@10": 0.7, "rmse": np.nan}),
        "middle": one("pop", base={"ndcg@10": 0.3, "rmse": None}, tuned={"ndcg@10": 0.4, "rmse": 0.9}),
        "alone": one("cold", base={"ndcg@10": 0.5}, tuned={"ndcg@10": 0.5}),
    }
    found = findings.gaps(slices)
    assert set(found) == {"pop"} and set(found["pop"]) == {"base", "tuned"}
    assert found["pop"]["base"]["ndcg@10"] == {"gap": pytest.approx(0.4), "best": "head", "worst": "tail"}
    assert found["pop"]["base"]["rmse"] == {"gap": pytest.approx(2.0), "best": "head", "worst": "tail"}
    assert found["pop"]["tuned"]["rmse"] == {"gap": pytest.approx(0.4), "best": "head", "worst": "middle"}
    assert found["pop"]["tuned"]["ndcg@10"]["best"] == "tail"


# -- words ------------------------------------------------------------------------------------------------------------


def a_report(mean: float, ci: list[float] | None, metric: str = "ndcg@10", **more: Any) -> dict[str, Any]:
    entry = {metric: {"mean": mean, "ci": ci, "n": 9}}
    return {"tuned": {metric: 0.5}, "base": {metric: 0.4}, "baselines": {}, "paired": {"tuned - base": entry}, **more}


@pytest.mark.parametrize(
    ("mean", "ci", "metric", "said"),
    [
        (0.1, [0.05, 0.2], "ndcg@10", "The tuned model beats the untuned base: +0.1000 [+0.0500, +0.2000] (ndcg@10)."),
        (-0.1, [-0.2, -0.05], "ndcg@10", "The tuned model is worse than the untuned base"),
        (0.1, [-0.05, 0.2], "ndcg@10", "The tuned model is not shown to beat the untuned base"),
        (0.1, [0.0, 0.2], "ndcg@10", "is not shown to beat"),
        (0.1, None, "ndcg@10", "is not shown to beat the untuned base: +0.1000 (ndcg@10)."),
        (-0.1, [-0.2, -0.05], "rmse", "The tuned model beats the untuned base: -0.1000"),
        (0.1, [0.05, 0.2], "rmse", "The tuned model is worse than the untuned base"),
        (0.1, [-0.05, 0.2], "log_loss", "is not shown to beat"),
    ],
)
def test_words_say_what_the_interval_shows(mean: float, ci: list[float] | None, metric: str, said: str) -> None:
    (sentence,) = findings.verdicts(a_report(mean, ci, metric))
    assert said in sentence and sentence.endswith(f"({metric}).")


def test_words_name_the_best_classic_row_and_the_model_s_worth() -> None:
    entry = {"ndcg@10": {"mean": -0.1, "ci": [-0.2, -0.01], "n": 9}}
    nothing = {"ndcg@10": {"mean": 0.001, "ci": [-0.01, 0.01], "n": 9}}
    report = a_report(0.1, [0.05, 0.2], fused={"ndcg@10": 0.7}, fused_without_model={"ndcg@10": 0.7})
    report["baselines"] = {"ease": {"ndcg@10": 0.6}, "popularity": {"ndcg@10": 0.2}, "other": {"ndcg@10": None}}
    report["paired"] |= {"tuned - ease": entry, "fused - fused_without_model": nothing}
    base, classic, worth = findings.verdicts(report)
    assert "beats the untuned base" in base
    assert classic.startswith("The tuned model is worse than the best classic row (ease): -0.1000")
    assert worth.startswith("The sum with the model is not shown to beat the same sum refitted without it: +0.0010")
    assert "Beside the classic rows the model adds nothing that is shown" in worth
    report["paired"]["fused - fused_without_model"] = {"ndcg@10": {"mean": 0.1, "ci": [0.05, 0.2], "n": 9}}
    assert "adds nothing" not in findings.verdicts(report)[2] and "beats" in findings.verdicts(report)[2]


def test_another_run_s_model_is_no_classic_row() -> None:
    entry = {"ndcg@10": {"mean": 0.1, "ci": [0.05, 0.2], "n": 9}}
    report = a_report(0.1, [0.05, 0.2], beside=["second"])
    report["baselines"] = {"second": {"ndcg@10": 0.9}, "ease": {"ndcg@10": 0.3}}
    report["paired"] |= {"tuned - second": entry, "tuned - ease": entry}
    assert "the best classic row (ease)" in findings.verdicts(report)[1]
    report["baselines"].pop("ease")
    assert len(findings.verdicts(report)) == 1


def test_without_a_number_there_are_no_words() -> None:
    assert findings.verdicts({"tuned": {"ndcg@10": None}, "paired": {}}) == []
    assert findings.verdicts({"tuned": {"ndcg@10": 0.3}, "paired": {}}) == []


# -- examples, classes, calibration -----------------------------------------------------------------------------------


def test_examples_are_the_best_and_the_worst_with_titles() -> None:
    exam = an_exam()
    rows = {"base": row_of(exam, 0.5, 1), "tuned": row_of(exam, 0.5, 2)}
    found = findings.examples(rows, exam, [f"c{row}" * 400 for row in range(60)], TITLES, "ndcg@10")
    changes = [one["tuned_score"] - one["base_score"] for one in found]
    assert len(found) == 10 and min(changes[:5]) > 0 > max(changes[5:])
    every = rows["tuned"].per_record["ndcg@10"] - rows["base"].per_record["ndcg@10"]
    assert sorted(changes[:5], reverse=True) == pytest.approx(sorted(every, reverse=True)[:5])
    assert sorted(changes[5:]) == pytest.approx(sorted(every)[:5])
    for one in found:
        row = int(one["context"][1 : one["context"].index("c", 1)])
        own = exam.records.items[2 * row : 2 * row + 2]
        assert one["targets"] == [TITLES[item] for item in own] and one["key"] == exam.records.keys[row]
        assert len(one["context"]) <= 500 and len(one["tuned"]) == len(one["base"]) == 5
        assert rows["tuned"].top is not None
        assert one["tuned"] == [TITLES[item] for item in rows["tuned"].top[row][:5]]
    json.dumps(found, allow_nan=False)


def test_without_a_difference_there_are_no_examples() -> None:
    exam = an_exam()
    row = row_of(exam, 0.5, 1)
    assert findings.examples({"base": row, "tuned": row}, exam, [""] * 60, TITLES, "ndcg@10") == []
    assert findings.examples({"base": row, "tuned": row}, exam, [""] * 60, TITLES, "coverage@5") == []


def test_classes_are_counted_by_true_and_predicted() -> None:
    chances = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    row = Scored({}, labels=Labels(chances, np.array([0, 0, 2, 2]), np.arange(4)))
    found = findings.classes({"tuned": row}, ["红", "b", "c"])
    assert found["labels"] == ["红", "b", "c"]
    assert found["rows"]["tuned"]["confusion"] == [[1, 1, 0], [0, 0, 0], [0, 1, 1]]
    report = found["rows"]["tuned"]["report"]
    assert report["红"]["precision"] == 1 and report["红"]["recall"] == 0.5 and report["c"]["n"] == 2
    json.dumps(found)


def test_a_calibrated_row_is_nearer_to_what_happened() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(4000)
    truth = (rng.random(4000) < chance).astype(int)
    sure = 1 / (1 + np.exp(-3 * np.log(chance / (1 - chance))))
    rows = {
        name: Scored({}, labels=Labels(scores, truth, np.arange(4000)))
        for name, scores in (("tuned", chance), ("uncalibrated", sure))
    }
    found = findings.calibration(rows, "temperature")
    assert (
        found["kind"] == "temperature" and found["rows"]["tuned"]["ece"] < 0.05 < found["rows"]["uncalibrated"]["ece"]
    )
    bins = found["rows"]["tuned"]["bins"]
    assert sum(one["n"] for one in bins) == 4000
    assert all(abs(one["confidence"] - one["share"]) < 0.1 for one in bins if one["n"] > 100)


# -- a whole evaluation -----------------------------------------------------------------------------------------------


EVAL = {
    "baselines": ["popularity", "skip-markov"],
    "slices": ["item_popularity", "repeat", "history_length", "brand"],
    "robustness": {"typos": 0.5, "word-order": 1.0},
    "metrics": ["ndcg@10", "coverage@10", "judged@10"],
}


@pytest.fixture(scope="session")
def sliced_run(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A next-item run with everything that a report can hold, and a second run beside it."""
    folder = tmp_path_factory.mktemp("findings")
    recipe = toy_recipe("next-item", "encoder", LORA, eval=EVAL, tune={"max_steps": 3})
    items = recipe.data.items.model_copy(update={"columns": ("brand",)}) if recipe.data.items else None
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"items": items})})
    other = recipe.model_copy(update={"name": "second", "seed": 5})
    tune(other, folder / "second")
    beside = recipe.eval.model_copy(update={"beside": (str(folder / "second"),)})
    tune(recipe.model_copy(update={"eval": beside}), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def whole_report(sliced_run: Path) -> dict[str, Any]:
    return evaluate(sliced_run)


def test_a_whole_report_is_written_with_its_page(sliced_run: Path, whole_report: dict[str, Any]) -> None:
    assert read_json(sliced_run / "eval" / "test.json") == whole_report and whole_report["format"] == 2
    assert {"slices", "gaps", "robustness", "fusion", "verdicts", "examples", "beside"} <= set(whole_report)
    page = (sliced_run / "report.html").read_text(encoding="utf-8")
    for word in ("head_item", "brand=oak", "typos", "fused", "second", whole_report["verdicts"][0].split(":")[0]):
        assert word in page, word
    assert "://" not in page.replace("http://www.w3.org", "")
    assert set(whole_report["ci"]) == {
        "base",
        "tuned",
        "popularity",
        "skip-markov",
        "second",
        "fused",
        "fused_without_model",
    }
    for name in ("base", "popularity", "skip-markov", "second"):
        assert whole_report["paired"][f"tuned - {name}"]["ndcg@10"]["n"] == whole_report["n"]
    assert {"fused - tuned", "fused - fused_without_model"} <= set(whole_report["paired"])


def test_families_of_slices_hold_every_target_once(whole_report: dict[str, Any]) -> None:
    families: dict[str, int] = {}
    for one in whole_report["slices"].values():
        families[one["of"]] = families.get(one["of"], 0) + one["n"]
        assert set(one["rows"]) == set(whole_report["ci"])
        assert "coverage@10" not in one["rows"]["tuned"], "a score of whole lists has no slices"
    assert families == dict.fromkeys(EVAL["slices"], whole_report["n"]), "one target a record"
    for family, entry in whole_report["gaps"].items():
        best, worst = entry["tuned"]["ndcg@10"]["best"], entry["tuned"]["ndcg@10"]["worst"]
        slices = whole_report["slices"]
        gap = slices[best]["rows"]["tuned"]["ndcg@10"] - slices[worst]["rows"]["tuned"]["ndcg@10"]
        assert gap == pytest.approx(entry["tuned"]["ndcg@10"]["gap"]) and slices[best]["of"] == family


def test_predictions_carry_what_slices_are_made_of(sliced_run: Path, whole_report: dict[str, Any]) -> None:
    frame = pl.read_parquet(sliced_run / "eval" / whole_report["predictions"]["path"])
    assert frame.height == whole_report["n"]
    for row in ("tuned", "fused", "second"):
        value = whole_report[row] if row in whole_report else whole_report["baselines"][row]
        assert frame[f"{row}:ndcg@10"].mean() == pytest.approx(value["ndcg@10"])


def test_spoilt_contexts_are_compared_with_clean_ones(whole_report: dict[str, Any]) -> None:
    found = whole_report["robustness"]
    assert set(found) == {"typos", "word-order"} and found["typos"]["share"] == 0.5
    for name, one in found.items():
        for row in ("base", "tuned"):
            entry = one["paired"][f"{row}: {name} - clean"]["ndcg@10"]
            expected = one["rows"][row]["ndcg@10"] - whole_report[row]["ndcg@10"]
            assert entry["mean"] == pytest.approx(expected, abs=1e-9)


def test_the_sum_holds_every_model_and_without_them_none(whole_report: dict[str, Any]) -> None:
    fusion = whole_report["fusion"]
    named = [{name.partition(":")[0] for name in fusion[key]} for key in ("weights", "weights_without_model")]
    assert named == [{"tuned", "popularity", "skip-markov", "second"}, {"popularity", "skip-markov"}]
    assert fusion["fitted_on"] == "valid" and fusion["n"] > 0
    assert not any("second" in sentence for sentence in whole_report["verdicts"]), "a second model is no classic row"


def test_a_run_over_other_data_does_not_stand_beside(sliced_run: Path, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe("retrieval", "encoder", LORA, tune={"max_steps": 1}), tmp_path / "queries")
    recipe = Recipe.load(sliced_run / "recipe.yaml")
    original = (sliced_run / "recipe.yaml").read_text(encoding="utf-8")

    def with_beside(*paths: Path) -> None:
        settings = recipe.eval.model_copy(update={"beside": tuple(map(str, paths))})
        changed = recipe.model_copy(update={"eval": settings}).to_yaml()
        (sliced_run / "recipe.yaml").write_text(changed, encoding="utf-8")
        evaluate(sliced_run, split="valid")

    try:
        second = sliced_run.parent / "second"
        for paths in ((tmp_path / "queries",), (second, second)):
            with pytest.raises(
                DataError, match=r"eval.beside: .*a run of another name over the same prepared data; fix"
            ):
                with_beside(*paths)
        with pytest.raises(DataError, match="is no run folder"):
            with_beside(tmp_path / "nothing")
    finally:
        (sliced_run / "recipe.yaml").write_text(original, encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slices": ("colour",)}, r"eval.slices: there is no 'colour'"),
        ({"robustness": {"typo": 0.1}}, r"there is no 'typo'\. Did you mean 'typos'"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_scored(
    change: dict[str, Any], said: str, sliced_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    recipe = Recipe.load(sliced_run / "recipe.yaml")
    original = (sliced_run / "recipe.yaml").read_text(encoding="utf-8")
    wrong = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=change)})
    monkeypatch.setattr(
        sys.modules["recft.reports.report"], "model_system", lambda *_: pytest.fail("a model was asked")
    )
    try:
        (sliced_run / "recipe.yaml").write_text(wrong.to_yaml(), encoding="utf-8")
        with pytest.raises(RecipeError, match=said):
            evaluate(sliced_run, split="valid")
    finally:
        (sliced_run / "recipe.yaml").write_text(original, encoding="utf-8")


def test_validation_has_no_sum(sliced_run: Path) -> None:
    report = evaluate(sliced_run, split="valid")
    assert "fused" not in report and "fusion" not in report, "it would be scored on what it was fitted on"


def test_an_empty_split_is_refused(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    split = {"by": "query", "valid": 0.2, "test": 0.0}
    tune(toy_recipe("retrieval", "encoder", LORA, tune={"max_steps": 1}, data={"split": split}), tmp_path / "run")
    with pytest.raises(DataError, match=r"--split: the test split of retrieval is empty .*fix: "):
        evaluate(tmp_path / "run")
    assert evaluate(tmp_path / "run", split="valid")["n"] > 0


def test_classes_and_calibration_are_in_the_report_of_a_classification(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    settings = {"baselines": ["tfidf-logistic"], "candidates": "judged"}
    tune(toy_recipe("classify", "encoder", LORA, tune={"max_steps": 2}, eval=settings), tmp_path / "run")
    report = evaluate(tmp_path / "run")
    assert report["classes"]["labels"] == ["black", "red", "黑色"] or len(report["classes"]["labels"]) == 3
    for row in ("base", "tuned"):
        confusion = np.array(report["classes"]["rows"][row]["confusion"])
        assert confusion.shape == (3, 3) and confusion.sum() == report["n"]
    assert report["calibration"]["kind"] == "none", "twelve validation texts are too few"
    assert report["fused"] and set(report["fusion"]["weights"]) == {"tuned", "tfidf-logistic"}
    assert report["protocol"]["candidates"] == "pairs" and report["protocol"]["counted"] == "records"
