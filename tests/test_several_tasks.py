"""Several tasks in one run: one adapter, batches by weight, scores by task, an export of each."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from recft import cli, registry
from recft.compare import compare
from recft.data.mapping import table_of
from recft.errors import DataError, ExportError, GateError, RecipeError
from recft.evaluate import evaluate
from recft.export import export
from recft.recipe import Recipe
from recft.recommend import recommend, recommend_file
from recft.run import hash_file, read_json
from recft.training import assemble, loop
from recft.training.opened import open_run
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]

PROMPTS = {"before": "history: ", "between": " item: ", "after": ""}
THREE: list[dict[str, Any]] = [
    {"name": "retrieval"},
    {"name": "next-item", "weight": 2},
    {"name": "purchase", **PROMPTS},
]
WRITTEN: dict[str, Any] = {"name": "next-item", "score_by": "likelihood", "before": "history: ", "after": " item: "}
MIX: list[dict[str, Any]] = [
    {"name": "retrieval"},
    WRITTEN,
    {"name": "purchase", **PROMPTS, "after": " answer:", "weight": 2},
]


def several(
    toy_recipe: ToyRecipe, toy_shop: Path, tasks: list[dict[str, Any]], kind: str = "encoder", **tune_settings: Any
) -> dict[str, Any]:
    """A plain recipe of several tasks over the shop's queries and log."""
    raw = toy_recipe("retrieval", kind, {"name": "lora", "rank": 4}).model_dump(mode="json")
    raw.pop("task")
    log = {"path": str(toy_shop / "log.csv"), "user": "user", "item": "item", "time": "time", "rating": "rating"}
    raw["tasks"] = tasks
    raw["data"] |= {"interactions": log, "labels": {"negatives": 2}, "split": {"valid": 0.2, "test": 0.2}}
    raw["tune"] |= {"max_steps": 8, "eval_every_steps": 4, "max_tokens": 48, **tune_settings}
    return raw


@pytest.fixture(scope="session")
def three_run(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned run of retrieval, next-item and purchase on an encoder."""
    run = tmp_path_factory.mktemp("several") / "three"
    tune(Recipe.from_mapping(several(toy_recipe, toy_shop, THREE)), run)
    return run


@pytest.fixture(scope="session")
def three_report(three_run: Path) -> dict[str, Any]:
    return evaluate(three_run, gates=("purchase:auc >= 0", "ndcg@10 >= 0"))


@pytest.fixture(scope="session")
def mixed_run(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned run of a vector, a likelihood and answers on a causal base."""
    run = tmp_path_factory.mktemp("several") / "mixed"
    tune(Recipe.from_mapping(several(toy_recipe, toy_shop, MIX, "causal")), run)
    return run


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_recipe_of_several_tasks_goes_to_yaml_and_back(toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_mapping(several(toy_recipe, toy_shop, THREE))
    raw = YAML(typ="safe").load(io.StringIO(recipe.to_yaml()))
    assert "task" not in raw and [task["name"] for task in raw["tasks"]] == ["retrieval", "next-item", "purchase"]
    assert Recipe.from_mapping(raw) == recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
    assert recipe.task == recipe.tasks[0] and [task.weight for task in recipe.tasks] == [1, 2, 1]


def test_each_part_has_the_table_that_its_task_reads(toy_recipe: ToyRecipe, toy_shop: Path) -> None:
    parts = Recipe.from_mapping(several(toy_recipe, toy_shop, THREE)).parts()
    assert [part.task.name for part in parts] == ["retrieval", "next-item", "purchase"]
    assert [part.data.queries is None for part in parts] == [False, True, True]
    assert [part.data.interactions is None for part in parts] == [True, False, False]
    assert [part.data.labels.negatives for part in parts] == [None, None, 2]
    assert all(part.tasks == () and len(part.parts()) == 1 for part in parts)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"tasks": ["retrieval", "retrieval"]}, r"tasks: retrieval, retrieval \(rule: each task stands once; fix: "),
        ({"tasks": ["next-item", "next_item"]}, r"tasks: next-item, next-item \(rule: each task stands once; fix: "),
        ({"task": "purchase"}, r"task: given beside tasks \(rule: a run has one task or a list of them; fix: "),
        ({"tasks": "retrieval"}, r"tasks: 'retrieval' \(rule: a list of tasks; fix: "),
        ({"tasks": ["retrieval", "purchse"]}, r"tasks\.1\.name: .*there is no 'purchse'\. Did you mean 'purchase'"),
        ({"tasks": ["retrieval", {"weight": 2}]}, r"tasks\.1\.name: is missing"),
        ({"tasks": ["retrieval", {"name": "purchase", "weight": 0}]}, r"tasks\.1\.weight: 0 .*greater than 0"),
        ({"tasks": ["retrieval", {"name": "purchase", "wieght": 1}]}, r"tasks\.1\.wieght: unknown key.*'weight'"),
        ({"tasks": ["retrieval", 3]}, r"tasks\.1: 3 \(rule: .*fix: "),
        ({"tasks": ["retrieval", ["purchase"]]}, r"tasks\.1: \['purchase'\] \(rule: .*fix: "),
    ],
)
def test_a_wrong_list_of_tasks_is_refused(
    change: dict[str, Any], expected: str, toy_recipe: ToyRecipe, toy_shop: Path
) -> None:
    with pytest.raises(RecipeError, match=expected):
        Recipe.from_mapping(several(toy_recipe, toy_shop, THREE) | change)


def test_a_task_whose_table_is_missing_is_refused_by_name(
    toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path
) -> None:
    raw = several(toy_recipe, toy_shop, THREE)
    raw["data"].pop("interactions")
    with pytest.raises(RecipeError, match=r"data.queries: task next-item reads interactions .*fix: "):
        tune(Recipe.from_mapping(raw), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_what_belongs_to_one_table_is_not_held_against_another(toy_recipe: ToyRecipe, toy_shop: Path) -> None:
    raw = several(toy_recipe, toy_shop, [*THREE, {"name": "classify"}])
    raw["data"] |= {
        "texts": {"path": str(toy_shop / "texts.csv"), "text": ["text"], "label": "label"},
        "users": {"path": "users.csv", "id": "user", "text": ["name"]},
        "triples": {"path": "triples.csv", "head": "h", "relation": "r", "tail": "t"},
    }
    parts = {part.task.name: part.data for part in Recipe.from_mapping(raw).parts()}
    assert [name for name, data in parts.items() if data.users is not None] == ["next-item", "purchase"]
    assert [name for name, data in parts.items() if data.triples is None] == ["classify"]
    for name, data in parts.items():
        assert table_of(data, name, registry.load("recft.tasks", name).tables)


def test_a_new_head_and_answers_do_not_go_together(toy_recipe: ToyRecipe, toy_shop: Path) -> None:
    raw = several(toy_recipe, toy_shop, [{"name": "purchase", **PROMPTS}, {"name": "classify"}], "causal")
    raw["data"]["texts"] = {"path": str(toy_shop / "texts.csv"), "text": ["text"], "label": "label"}
    with pytest.raises(RecipeError, match=r"tasks: .*answers and classifier on one causal base .*fix: .*runs of their"):
        assemble.check(Recipe.from_mapping(raw))
    raw["model"]["base"] = toy_recipe("retrieval", "encoder").model.base
    assert assemble.check(Recipe.from_mapping(raw))["head"] == "classifier"


# -- tuning -----------------------------------------------------------------------------------------------------------


def test_steps_are_shared_by_weight(
    toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    gradients = loop._Loop._gradients

    def watched(self: Any, drawn: Any, step: int) -> Any:
        seen.append(drawn.part.model.serving.task if self.job.own else "head")
        return gradients(self, drawn, step)

    monkeypatch.setattr(loop._Loop, "_gradients", watched)
    tune(Recipe.from_mapping(several(toy_recipe, toy_shop, THREE)), tmp_path / "run")
    assert Counter(seen) == {"retrieval": 2, "next-item": 4, "purchase": 2, "head": 8}


def bytes_of(run: Path) -> dict[str, str]:
    kept = [*(run / "adapter").iterdir(), run / "serving.json", *sorted((run / "checkpoints").rglob("*.safetensors"))]
    return {str(file.relative_to(run)): hash_file(file) for file in kept}


def test_a_killed_run_ends_in_the_same_bits(
    three_run: Path, toy_recipe: ToyRecipe, toy_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = Recipe.from_mapping(several(toy_recipe, toy_shop, THREE)), tmp_path / "run"
    after_step = loop._Loop.after_step

    def killed(self: Any) -> None:
        after_step(self)
        if self.job.own and self.progress.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(recipe, run)
    assert read_json(run / "manifest.json")["exit_status"] == 130
    tune(recipe, run, resume=True)
    assert bytes_of(run) == bytes_of(three_run)
    names = ("loss", "step", "ndcg@10")
    lines = [
        [[json.loads(line).get(name) for name in names] for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (run, three_run)
    ]
    assert lines[0] == lines[1] and len(lines[0]) >= 8


# -- scores -----------------------------------------------------------------------------------------------------------


def test_the_report_has_a_part_for_each_task(three_run: Path, three_report: dict[str, Any]) -> None:
    parts = three_report["tasks"]
    assert list(parts) == ["retrieval", "next-item", "purchase"]
    for name, part in parts.items():
        assert part["task"] == name and part["n"] > 0 and part["protocol"]["split"] == "test"
        assert set(part["tuned"]) == set(part["base"]) and part["data"]["items"] == 40
        path = three_run / "eval" / part["predictions"]["path"]
        assert path.name == f"test.{name}.predictions.parquet" and hash_file(path) == part["predictions"]["sha256"]
        assert pl.read_parquet(path).height == part["n"]
    assert parts["purchase"]["protocol"]["sampled"] and not parts["next-item"]["protocol"]["sampled"]
    # What a one-task reader reads of it is the first task's.
    assert {name: three_report[name] for name in parts["retrieval"]} == parts["retrieval"]
    assert read_json(three_run / "eval" / "test.json") == three_report
    page = (three_run / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in parts)


def test_a_gate_names_its_task(three_run: Path, three_report: dict[str, Any]) -> None:
    assert [gate["passed"] for gate in three_report["gates"]] == [True, True]
    with pytest.raises(GateError, match=r"purchase:auc"):
        evaluate(three_run, gates=("purchase:auc >= 1.5",))


def test_each_task_scores_as_a_run_of_its_own_would(three_run: Path) -> None:
    from recft.models.encoder import Encoder
    from recft.training.scoring import score_model

    opened = open_run(three_run)
    report = read_json(three_run / "eval" / "test.json")
    tuned = assemble.open_adapter(opened.recipe, opened.folder.adapter)
    assert tuned.views["retrieval"].base is tuned.views["purchase"].base, "one model, seen three ways"
    from recft.training.opened import exam_of

    for recipe, store in opened.parts:
        view = tuned.of(recipe.task.name)
        scored = score_model(exam_of(recipe, store, "test"), Encoder(view.model, view.tokenizer))
        for metric, value in scored.values.items():
            told = report["tasks"][recipe.task.name]["tuned"][metric]
            # Probabilities are told as calibrated ones, and what a score is undefined on has none.
            assert (told is None and np.isnan(value)) or told == pytest.approx(value) or metric == "log_loss", metric


# -- exports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retrieval", "next-item", "purchase"])
@pytest.mark.parametrize("target", ["merged", "adapter"])
def test_each_task_is_exported_and_verified(target: str, task: str, three_run: Path, tmp_path: Path) -> None:
    made = export(three_run, target, tmp_path / "out", task=task)
    assert made["task"]["name"] == made["serving"]["task"] == task
    assert made["certificate"]["verdict"] == "passed"
    assert verify(tmp_path / "out")["certificate"]["verdict"] == "passed"
    asked: dict[str, Any] = {"query": "red chair"} if task == "retrieval" else {"history": ["i1", "i2"]}
    ours, served = recommend(three_run, task=task, top=5, **asked), recommend(tmp_path / "out", top=5, **asked)
    assert [place["score"] for place in served] == pytest.approx([place["score"] for place in ours], abs=1e-4)
    assert recommend(tmp_path / "out", task=task, top=5, **asked) == served
    other = "purchase" if task != "purchase" else "retrieval"
    with pytest.raises(RecipeError, match=rf"--task: {other} \(rule: this export has {task}"):
        recommend(tmp_path / "out", task=other, **asked)


@pytest.mark.parametrize("task", ["retrieval", "next-item", "purchase"])
def test_a_vector_a_likelihood_and_answers_share_a_causal_base(task: str, mixed_run: Path, tmp_path: Path) -> None:
    heads = {name: one["head"] for name, one in read_json(mixed_run / "serving.json").items()}
    assert heads == {"retrieval": "embedding", "next-item": "likelihood", "purchase": "answers"}
    for target in ("merged", "adapter"):
        made = export(mixed_run, target, tmp_path / target, task=task)
        assert made["certificate"]["verdict"] == "passed", target
        assert verify(tmp_path / target)["certificate"]["verdict"] == "passed"


def test_all_heads_of_a_causal_base_are_scored(mixed_run: Path) -> None:
    report = evaluate(mixed_run)
    for name, metric in (("retrieval", "ndcg@10"), ("next-item", "ndcg@10"), ("purchase", "auc")):
        part = report["tasks"][name]
        assert 0 <= part["tuned"][metric] <= 1
        assert "tuned - base" in part["paired"]


def test_without_a_name_or_with_a_wrong_one_the_tasks_are_named(three_run: Path, tmp_path: Path) -> None:
    names = r"this run has retrieval, next-item, purchase; fix: name one of its tasks"
    for call in (
        lambda task: export(three_run, "merged", tmp_path / "out", task=task),
        lambda task: recommend(three_run, query="red", task=task),
        lambda task: open_run(three_run).part(task),
    ):
        for task in (None, "rating", "purchse"):
            with pytest.raises((RecipeError, ExportError), match=names):
                call(task)
    assert not (tmp_path / "out").exists()
    assert open_run(three_run).part("next_item")[0].task.name == "next-item"


def test_the_commands_take_a_task(three_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*words: str) -> object:
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        return left.value.code

    asked = ("recommend", str(three_run), "--history", "i1,i2", "--top", "3", "--quiet")
    assert code(*asked, "--task", "next-item", "--json", str(tmp_path / "list.json")) == 0
    assert read_json(tmp_path / "list.json") == recommend(three_run, history=["i1", "i2"], task="next-item", top=3)
    out = str(tmp_path / "out")
    assert code("export", str(three_run), "--to", "adapter", "--out", out, "--task", "retrieval", "--quiet") == 0
    assert read_json(tmp_path / "out" / "recft-export.json")["task"]["name"] == "retrieval"
    assert code(*asked, "--task", "rating") == 1
    assert "this run has retrieval, next-item, purchase" in capsys.readouterr().err


def test_many_lists_are_of_the_task_that_is_named(three_run: Path, tmp_path: Path) -> None:
    pl.DataFrame({"history": ["i1,i2", "i7"]}).write_csv(tmp_path / "in.csv")
    recommend_file(three_run, tmp_path / "in.csv", tmp_path / "out.parquet", top=3, task="next-item")
    lists = pl.read_parquet(tmp_path / "out.parquet")["items"].to_list()
    alone = [recommend(three_run, history=given, task="next-item", top=3) for given in (["i1", "i2"], ["i7"])]
    assert lists == [[place["item"] for place in places] for places in alone]
    with pytest.raises(RecipeError, match=r"this run has retrieval"):
        recommend_file(three_run, tmp_path / "in.csv", tmp_path / "out.parquet")


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_travels_from_validation_to_the_export(three_run: Path, tmp_path: Path) -> None:
    from recft.models.encoder import Encoder
    from recft.training.calibration import calibrated, fit_calibration
    from recft.training.opened import exam_of
    from recft.training.scoring import score_model

    serving = read_json(three_run / "serving.json")
    kept = serving["purchase"]["calibration"]
    assert kept["kind"] == "temperature" and serving["retrieval"]["calibration"] is None
    opened = open_run(three_run)
    recipe, store = opened.part("purchase")
    tuned = assemble.open_adapter(opened.recipe, opened.folder.adapter).of("purchase")
    encoder = Encoder(tuned.model, tuned.tokenizer)
    valid, test = (score_model(exam_of(recipe, store, split), encoder).labels for split in ("valid", "test"))
    assert valid is not None and test is not None and len(valid) >= 50
    assert fit_calibration("temperature", valid.scores, valid.labels)["temperature"] == pytest.approx(
        kept["temperature"], rel=1e-3
    )
    # The table's log-loss is of corrected probabilities, and the raw ones stand beside.
    report = evaluate(three_run)["tasks"]["purchase"]
    chance = calibrated(kept, test.scores)
    expected = -np.where(test.labels > 0, np.log(chance), np.log1p(-chance)).mean()
    assert report["tuned"]["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert report["calibration"]["kind"] == "temperature"
    rows = report["calibration"]["rows"]
    assert set(rows) == {"tuned", "uncalibrated"} and rows["tuned"]["ece"] != rows["uncalibrated"]["ece"]
    frame = pl.read_parquet(three_run / "eval" / report["predictions"]["path"])
    np.testing.assert_allclose(frame["tuned:score"].to_numpy(), chance, atol=1e-6)
    made = export(three_run, "merged", tmp_path / "out", task="purchase")
    assert made["serving"]["calibration"] == kept
    ours, served = (
        {place["item"]: place["score"] for place in recommend(folder, history=["i3"], top=40, task="purchase")}
        for folder in (three_run, tmp_path / "out")
    )
    assert served == pytest.approx(ours, abs=1e-5) and all(0 < score < 1 for score in ours.values())
    # Without the correction the run's own figures are others.
    copy = tmp_path / "copy"
    shutil.copytree(three_run, copy)
    serving["purchase"]["calibration"] = None
    (copy / "serving.json").write_text(json.dumps(serving), encoding="utf-8")
    raw = {place["item"]: place["score"] for place in recommend(copy, history=["i3"], top=40, task="purchase")}
    both = np.array([[raw[item], ours[item]] for item in raw])
    np.testing.assert_allclose(calibrated(kept, both[:, 0]), both[:, 1], atol=1e-6)
    assert np.abs(both[:, 0] - both[:, 1]).max() > 1e-4


def test_too_few_pairs_are_not_calibrated(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    notes: list[str] = []
    recipe = toy_recipe("purchase", "causal", tune={"max_steps": 1}, data={"labels": {"at_least": 3}})
    tune(recipe, tmp_path / "run", listen=lambda event, values: notes.append(str(values.get("text", ""))))
    assert read_json(tmp_path / "run" / "serving.json")["purchase"]["calibration"] is None
    assert any("too few validation pairs" in note for note in notes)


# -- compare ----------------------------------------------------------------------------------------------------------


def test_each_task_of_several_runs_is_compared(three_run: Path, three_report: dict[str, Any], tmp_path: Path) -> None:
    """Another seed is pooled, another recipe stands beside it, each task beside its own."""
    paths = [three_run]
    for name, change in (("seed", {"seed": 7}), ("other", {})):
        paths.append(tmp_path / name)
        shutil.copytree(three_run, paths[-1])
        recipe = Recipe.load(three_run / "recipe.yaml").model_copy(update={"name": name, **change})
        if name == "other":
            baselines = {"baselines": ("popularity",), "bootstrap": 100}
            recipe = recipe.model_copy(update={"eval": recipe.eval.model_copy(update=baselines)})
        (paths[-1] / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    classics = {task: part["baselines"] for task, part in evaluate(tmp_path / "other")["tasks"].items()}
    found = compare(paths)
    first = Recipe.load(three_run / "recipe.yaml").name
    rows = {row["run"]: row for row in found["rows"]}
    for task, part in three_report["tasks"].items():
        ours, base = rows[f"{first}: {task}"], rows[f"{first}: {task} (base)"]
        assert ours["runs"] == 2 and rows[f"other: {task}"]["runs"] == 1
        assert ours["scores"] == pytest.approx({name: part["tuned"][name] for name in ours["scores"]})
        assert base["scores"] == pytest.approx({name: part["base"][name] for name in base["scores"]})
        assert set(found["paired"][f"other: {task} - {first}: {task}"]) == set(ours["scores"])
        assert found["protocols"][f"other: {task}"] == part["protocol"]
    # The same name in another task is another row.
    named = ["popularity", *(f"popularity (other: {task})" for task in list(classics)[1:])]
    for row, scores in zip(named, classics.values(), strict=True):
        known = {name: value for name, value in scores["popularity"].items() if value is not None}
        assert rows[row]["scores"] == pytest.approx({name: known[name] for name in rows[row]["scores"]})
    for ours, theirs in (name.split(" - ") for name in found["paired"]):
        of_tasks = [{task for task in three_report["tasks"] if f": {task}" in one} for one in (ours, theirs)]
        assert of_tasks[1] <= of_tasks[0], "a row beside one of another task"
    with pytest.raises(DataError, match=r"are both .*: retrieval with seed"):
        compare([three_run, three_run])
