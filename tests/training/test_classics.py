"""Classic rows: chosen on validation, fitted once, cached by all that decides them; what is wrong is refused."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.baselines._base import known
from recft.data.store import Store
from recft.errors import RecipeError
from recft.evaluate import evaluate
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.run import read_json
from recft.training import classics
from recft.training.classics import Classic, chosen, fitting
from recft.training.exam import Exam
from recft.training.opened import exam_of
from recft.training.scoring import score
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]
Heard = list[str]

LORA = {"name": "lora", "rank": 4}


@pytest.fixture(scope="session")
def shop_store(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Store]:
    """The toy shop's queries, prepared."""
    recipe = toy_recipe("retrieval")
    return recipe, prepare(recipe, tmp_path_factory.mktemp("classics") / "data")


@pytest.fixture(scope="session")
def log_store(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Store]:
    """The toy shop's log, prepared for the next item."""
    recipe = toy_recipe("next-item")
    return recipe, prepare(recipe, tmp_path_factory.mktemp("classics") / "log")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recft" / "baselines"


class Counting:
    """A member that counts its fits, and is best with `power: 1`."""

    summary = "counts"
    tables = ("queries",)
    outputs = ("ranking",)
    grid: tuple[Mapping[str, Any], ...] = ({"power": -1}, {"power": 1}, {"power": 0})
    probabilities = False

    def __init__(self) -> None:
        self.fits: list[tuple[str, int]] = []

    def fit(self, known: Any, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.fits.append((known.split, settings["power"]))
        relevant = known.records.grades > 0
        taken = np.bincount(known.records.items[relevant], minlength=len(known.store.item_ids))
        return {"taken": taken * settings["power"], "name": np.array(["黑色", "red"]), "none": np.zeros((0, 3))}

    def scores(self, arrays: Any, store: Store, records: Any, rows: np.ndarray) -> np.ndarray:
        assert arrays["name"].tolist() == ["黑色", "red"] and arrays["none"].shape == (0, 3)
        near = np.arange(len(store.item_ids))[None] == records.items[records.offsets[rows]][:, None]
        power = np.sign(arrays["taken"].sum())
        return np.asarray(near * power + 1e-6 * arrays["taken"], np.float32)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """`bm25` replaced by a member that counts."""
    member = Counting()
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda family, name: member if name == "bm25" else load(family, name))
    return member


def choose(store: tuple[Recipe, Store], **more: Any) -> tuple[Classic, Exam, Heard]:
    recipe, prepared = store
    exam = dataclasses.replace(exam_of(recipe, prepared, "valid", ("ndcg@10",)), **more)
    heard: Heard = []
    found = chosen("bm25", prepared, exam, "ndcg@10", lambda _, values: heard.append(str(values.get("text"))))
    return found, exam, heard


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_settings_are_chosen_on_validation_once(
    counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]
) -> None:
    found, _, heard = choose(shop_store)
    assert found.settings == {"power": 1}
    assert counting.fits == [("valid", -1), ("valid", 1), ("valid", 0)] and heard == [
        "bm25: 3 settings tried on validation"
    ]
    again, _, heard = choose(shop_store)
    assert again.settings == {"power": 1} and len(counting.fits) == 3 and heard == []
    assert len(list(cache.iterdir())) == 1


def test_the_best_settings_score_best_and_the_fit_is_refitted_for_test(
    counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]
) -> None:
    found, exam, _ = choose(shop_store)
    values = []
    for settings in counting.grid:
        one = dataclasses.replace(found, settings=settings)
        values.append(score(exam, one.system(exam, "valid")).values["ndcg@10"])
    assert np.argmax(values) == 1
    recipe, store = shop_store
    test = exam_of(recipe, store, "test", ("ndcg@10",))
    counting.fits.clear()
    found.system(test, "test")
    assert counting.fits == [("test", 1)]


def test_a_metric_to_keep_low_is_kept_low(toy_recipe: ToyRecipe, tmp_path: Path, cache: Path) -> None:
    recipe = toy_recipe("rating")
    store = prepare(recipe, tmp_path / "data")
    valid = exam_of(recipe, store, "valid", ("rmse",))
    member = registry.load("recft.baselines", "biases")
    found = chosen("biases", store, valid, "rmse", lambda *_: None)
    values = [
        score(valid, Classic("biases", member, settings, store).system(valid, "valid")).values["rmse"]
        for settings in member.grid
    ]
    assert len(values) > 1
    assert values[list(member.grid).index(found.settings)] == min(values)


def test_without_validation_records_the_first_settings_stand(
    counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]
) -> None:
    _, exam, _ = choose(shop_store)
    counting.fits.clear()
    found, _, _ = choose(shop_store, records=exam.records.take(np.zeros(0, int)))
    assert found.settings == {"power": -1} and counting.fits == []


@pytest.mark.parametrize(
    "change", [{"candidates": "sampled 5"}, {"mask": True}, {"gain": "exponential"}, {"records": 2}, {"grid": True}]
)
def test_other_rules_are_another_choice(
    change: dict[str, Any], counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]
) -> None:
    _, exam, _ = choose(shop_store)
    counting.fits.clear()
    more: dict[str, Any] = dict(change)
    if "mask" in change:
        more = {"settings": exam.settings.model_copy(update={"mask_history": True})}
    elif "gain" in change:
        more = {"settings": exam.settings.model_copy(update=change)}
    elif "records" in change:
        more = {"records": exam.records.take(np.arange(change["records"]))}
    elif "grid" in change:
        counting.grid, more = ({"power": 0}, {"power": 1}), {}
    choose(shop_store, **more)
    assert counting.fits


# -- the cache --------------------------------------------------------------------------------------------------------


def test_what_is_cached_is_what_was_fitted(counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]) -> None:
    found, exam, _ = choose(shop_store)
    first, second = (found.system(exam, "valid") for _ in range(2))
    assert counting.fits.count(("valid", 1)) == 2, "once for choosing, once for the row"
    rows = np.arange(len(exam.records))
    assert first.block is not None and second.block is not None
    np.testing.assert_array_equal(first.block(rows), second.block(rows))
    for file in cache.iterdir():
        with np.load(file, allow_pickle=False) as held:
            assert all(held[name].dtype != object for name in held.files)


@pytest.mark.parametrize("name", registry.names("recft.baselines"))
def test_every_member_s_arrays_come_back_equal(
    name: str, cache: Path, shop_store: tuple[Recipe, Store], log_store: tuple[Recipe, Store]
) -> None:
    member = registry.load("recft.baselines", name)
    recipe, store = shop_store if "queries" in member.tables else log_store
    if store.table not in member.tables or "ranking" not in member.outputs:
        pytest.skip(f"{name} is for {', '.join(member.outputs)} of {', '.join(member.tables)}")
    settings = dict(member.grid[0])
    fitted = member.fit(known(store, "valid"), settings)
    kept = [classics._cached(name, store, ["test", settings], lambda: fitted) for _ in range(2)]
    assert len(list(cache.iterdir())) == 1
    for one in kept:
        assert one.keys() == fitted.keys()
        for part, array in fitted.items():
            assert one[part].dtype == array.dtype
            np.testing.assert_array_equal(one[part], array)
    exam = exam_of(recipe, store, "valid", ("ndcg@10",))
    blocks = [np.asarray(member.scores(arrays, store, exam.records, np.arange(2))) for arrays in (fitted, kept[1])]
    np.testing.assert_array_equal(blocks[0], blocks[1])


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "pickle"])
def test_a_damaged_file_is_computed_again(
    damage: str, counting: Counting, cache: Path, shop_store: tuple[Recipe, Store]
) -> None:
    found, exam, _ = choose(shop_store)
    found.system(exam, "valid")
    before = {file.name: file.read_bytes() for file in cache.iterdir()}
    for file in cache.iterdir():
        whole = before[file.name]
        middle = whole.find(b"\x93NUMPY") + 200
        spoilt = {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "text": "旧 no archive".encode(),
            "flipped": whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 8]) + whole[middle + 8 :],
            "pickle": b"\x80\x04N.",
        }
        file.write_bytes(spoilt[damage])
    counting.fits.clear()
    again, _, _ = choose(shop_store)
    again.system(exam, "valid")
    assert again.settings == {"power": 1} and len(counting.fits) == 4
    for file in cache.iterdir():
        with np.load(file, allow_pickle=False) as held:
            assert held.files, "what was damaged is whole again"


def test_a_cache_that_cannot_be_written_costs_time_alone(
    counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shop_store: tuple[Recipe, Store]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, exam, _ = choose(shop_store)
    found.system(exam, "valid")
    found.system(exam, "valid")
    assert found.settings == {"power": 1} and len(counting.fits) == 5


def test_large_fits_are_not_kept(
    counting: Counting, cache: Path, monkeypatch: pytest.MonkeyPatch, shop_store: tuple[Recipe, Store]
) -> None:
    monkeypatch.setattr(classics, "MOST_CACHED_BYTES", 16)
    found, exam, _ = choose(shop_store)
    found.system(exam, "valid")
    assert [file.name.startswith("bm25-") for file in cache.iterdir()] == [True], "the choice alone is small"


def test_the_key_is_data_settings_split_and_code(
    cache: Path, monkeypatch: pytest.MonkeyPatch, shop_store: tuple[Recipe, Store]
) -> None:
    _, store = shop_store
    calls: list[int] = []

    def ask(store: Store = store, name: str = "bm25", key: Any = ("bm25", "test", {"k1": 1.2})) -> None:
        classics._cached(name, store, list(key), lambda: calls.append(1) or {"x": np.arange(3)})  # type: ignore[func-returns-value]

    ask()
    ask()
    assert len(calls) == 1
    ask(key=("bm25", "valid", {"k1": 1.2}))
    ask(key=("bm25", "test", {"k1": 1.3}))
    ask(name="popularity")
    assert len(calls) == 4
    ask(dataclasses.replace(store, card=store.card | {"data_sha256": "0" * 64}))
    assert len(calls) == 5
    monkeypatch.setattr(classics, "hash_folder", lambda *_: "another code")
    ask()
    assert len(calls) == 6


@pytest.mark.parametrize("package", ["recft.baselines", "recft.data", "recft.metrics"])
def test_code_that_members_share_is_part_of_the_key(
    package: str, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop_store: tuple[Recipe, Store]
) -> None:
    folder = tmp_path / "family"
    folder.mkdir()
    for name in ("__init__.py", "bm25.py", "_shared.py"):
        (folder / name).write_text(f"# {name}\n")
    monkeypatch.setattr(importlib.import_module(package), "__file__", str(folder / "__init__.py"))
    calls: list[int] = []
    for _ in range(2):
        classics._cached("bm25", shop_store[1], ["x"], lambda: calls.append(1) or {"x": np.zeros(1)})  # type: ignore[func-returns-value]
    assert len(calls) == 1
    (folder / "_shared.py").write_text("# changed\n")
    classics._cached("bm25", shop_store[1], ["x"], lambda: calls.append(1) or {"x": np.zeros(1)})  # type: ignore[func-returns-value]
    assert len(calls) == 2


# -- which rows -------------------------------------------------------------------------------------------------------


def test_rows_that_make_sense_are_found_by_table_and_output(
    shop_store: tuple[Recipe, Store], log_store: tuple[Recipe, Store]
) -> None:
    for _, store in (shop_store, log_store):
        for output in ("ranking", "labels", "values", "classes", "likelihood"):
            found = fitting(None, store, output)
            for name in registry.names("recft.baselines"):
                member = registry.load("recft.baselines", name)
                able = store.table in member.tables and output in member.outputs
                assert (name in found) == (able and getattr(member, "by_default", True)), (name, output)
    assert "bm25" in fitting(None, shop_store[1], "ranking")
    assert fitting((), shop_store[1], "ranking") == []
    assert fitting(("popularity", "item_knn"), log_store[1], "ranking") == ["popularity", "item-knn"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bm25",
            r"eval.baselines: bm25 on interactions for ranking \(rule: it is for .* of .*; fix: .*make sense: .*ease",
        ),
        ("mf", r"eval.baselines: mf on interactions for ranking"),
        ("bm52", r"there is no 'bm52'\. Did you mean 'bm25'"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(name: str, expected: str, log_store: tuple[Recipe, Store]) -> None:
    with pytest.raises(RecipeError, match=expected):
        fitting((name,), log_store[1], "ranking")


def test_a_report_shows_the_rows_that_were_asked_for(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe("next-item", "encoder", LORA, tune={"max_steps": 2}), tmp_path / "run")
    recipe = Recipe.load(tmp_path / "run" / "recipe.yaml")

    def rows(baselines: Any) -> set[str]:
        changed = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"baselines": baselines})})
        (tmp_path / "run" / "recipe.yaml").write_text(changed.to_yaml(), encoding="utf-8")
        return set(evaluate(tmp_path / "run")["baselines"])

    assert rows(()) == set()
    assert "fused" not in read_json(tmp_path / "run" / "eval" / "test.json")
    assert rows(("popularity", "skip-markov")) == {"popularity", "skip-markov"}
    report = read_json(tmp_path / "run" / "eval" / "test.json")
    named = {name.partition(":")[0] for name in report["fusion"]["weights_without_model"]}
    assert named == {"popularity", "skip-markov"}
    assert {name.partition(":")[0] for name in report["fusion"]["weights"]} == {"tuned", *named}
    assert {"fused", "fused_without_model"} <= set(report["ci"])
    assert rows(None) == set(fitting(None, Store.open(tmp_path / "run" / "data"), "ranking"))
    with pytest.raises(RecipeError, match=r"eval.baselines: bm25 on interactions"):
        rows(("bm25",))
