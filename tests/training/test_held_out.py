"""Rows that travel: of every task, written and read back, they score what the small exam scores, and name nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rows_toys import TASKS, fake, made

from recft import registry
from recft.data.store import Records
from recft.exports._rows import Rows
from recft.models.base import tokenizer_of
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.schema import EvalSettings
from recft.training import held_out as module
from recft.training.asked import fitting_metrics
from recft.training.exam import Exam
from recft.training.held_out import held_out, lists_of, rows_of, scored_rows
from recft.training.opened import exam_of
from recft.training.scoring import score_model
from recft.training.servings import servings_of

ToyRecipe = Callable[..., Recipe]


def same(a: Rows, b: Rows) -> None:
    for field in dataclasses.fields(Rows):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            assert np.array_equal(ours, theirs), field.name
        elif field.name == "stars":
            assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize(("task", "kind"), TASKS, ids=str)
def test_rows_score_what_the_small_exam_scores(toy_recipe: ToyRecipe, tmp_path: Path, task: Any, kind: str) -> None:
    held = made(toy_recipe, tmp_path, task, kind, 30)
    recipe, whole, small, rows, serving = held.recipe, held.whole, held.small, held.rows, held.serving
    rows.write(tmp_path / "rows.parquet")
    read = Rows.read(tmp_path / "rows.parquet")
    same(rows, read)
    names = fitting_metrics(recipe)
    found = scored_rows(read, recipe.task, names, "linear", read.context_outputs, read.item_outputs)
    expected = score_model(small, held.encode)
    assert found.values == pytest.approx(expected.values, nan_ok=True)
    assert set(found.values) == set(names) and any(not np.isnan(value) for value in found.values.values())
    assert found.n == expected.n
    assert len(rows.contexts) <= 30 and len(set(rows.contexts)) == len(rows.contexts)
    assert len(small.records) <= len(whole.records) and rows.n_records == len(small.records)
    # Other numbers score otherwise: the figures come of the outputs that are handed over.
    mixed = read.context_outputs.copy()
    mixed[:, 0] += np.random.default_rng(0).normal(size=len(mixed)) * 30
    other = scored_rows(read, recipe.task, names, "linear", mixed, read.item_outputs)
    assert other.values != pytest.approx(found.values, nan_ok=True)
    ids = [row["input_ids"] for row in serving.tokens(held.tokenizer, rows.contexts)]
    assert rows.context_tokens == ids and all(ids)
    assert bool(rows.items) == (small.task.reads(small.config) == "towers")
    task_object = registry.load("recft.tasks", recipe.task.name)
    lists = lists_of(read, recipe.task, read.context_outputs, read.item_outputs)
    assert bool(lists) == (task_object.output in ("ranking", "classes"))


@pytest.mark.parametrize(("task", "kind"), [("next-item", "encoder"), ("rating", "encoder"), ("purchase", "encoder")])
def test_rows_name_nobody(toy_recipe: ToyRecipe, tmp_path: Path, task: Any, kind: str) -> None:
    held = made(toy_recipe, tmp_path, task, kind, 30)
    store, small, rows = held.store, held.small, held.rows
    rows.write(tmp_path / "rows.parquet")
    assert set(small.records.keys) <= set(store.user_ids)
    frame = pl.read_parquet(tmp_path / "rows.parquet")
    told = {value for name in frame.columns if frame[name].dtype == pl.String for value in frame[name].drop_nulls()}
    assert not told & set(store.user_ids)
    assert not any(user in repr(value) for user in store.user_ids for value in told - {"item"} if user in value.split())
    assert rows.clusters[0] == 0 and rows.clusters.max() < len(rows.clusters), "numbers by first appearance"
    assert len(np.unique(rows.clusters)) == len(set(small.records.keys))


def test_a_judged_ranking_is_of_its_own_pairs(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe("retrieval", eval={"candidates": "judged"})
    store = prepare(recipe, tmp_path / "data")
    tokenizer = tokenizer_of(recipe.model)
    serving = servings_of([(recipe, store.item_ids)], tokenizer)["retrieval"]
    small = held_out(exam_of(recipe, store, "test"), 500)
    encode = fake("embedding", 5)
    rows = rows_of(small, encode, serving, tokenizer)
    found = scored_rows(rows, recipe.task, small.names, "linear", rows.context_outputs, rows.item_outputs)
    assert rows.judged and found.values == pytest.approx(score_model(small, encode).values)
    every = scored_rows(
        dataclasses.replace(rows, judged=False), recipe.task, small.names, "linear", rows.context_outputs,
        rows.item_outputs,
    )  # fmt: skip
    assert every.values["ndcg@10"] < found.values["ndcg@10"]


def test_gain_calibration_and_metrics_of_lists(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    held = made(toy_recipe, tmp_path, "retrieval", "encoder", 30)
    recipe, rows = held.recipe, held.rows
    score = [
        scored_rows(rows, recipe.task, ("ndcg@10", "coverage@10"), gain, rows.context_outputs, rows.item_outputs).values
        for gain in ("linear", "exponential")
    ]
    assert set(score[0]) == {"ndcg@10"} and score[0] != score[1]
    held = made(toy_recipe, tmp_path / "2", "purchase", "encoder", 30)
    recipe, rows = held.recipe, held.rows
    plain, softer = (
        scored_rows(rows, recipe.task, ("log_loss", "auc"), "linear", rows.context_outputs, rows.item_outputs, how)
        for how in (None, {"kind": "temperature", "temperature": 3.0})
    )
    assert softer.values["auc"] == plain.values["auc"] and softer.values["log_loss"] < plain.values["log_loss"]


def test_scores_that_are_no_numbers_are_refused(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    from recft.errors import ModelError

    held = made(toy_recipe, tmp_path, "retrieval", "encoder", 30)
    recipe, rows = held.recipe, held.rows
    outputs = rows.context_outputs.copy()
    outputs[0] = np.nan
    with pytest.raises(ModelError, match="not a number"):
        scored_rows(rows, recipe.task, ("ndcg@10",), "linear", outputs, rows.item_outputs)


# -- bounds -----------------------------------------------------------------------------------------------------------


def big(task: str, n_records: int, pairs: int, n_items: int, **more: Any) -> Exam:
    rng = np.random.default_rng(0)
    config = registry.load("recft.tasks", task).Config.model_validate({"name": task} | more.pop("config", {}))
    items = np.concatenate([rng.choice(n_items, pairs, replace=False) for _ in range(n_records)])
    grades = rng.integers(0, 4, n_records * pairs).astype(np.float32)
    records = Records(
        keys=[f"k{row}" for row in range(n_records)],
        queries=[f"query {row} 椅子" for row in range(n_records)],
        users=None,
        starts=np.zeros(n_records, np.int64),
        cuts=np.zeros(n_records, np.int64),
        times=None,
        offsets=np.arange(n_records + 1, dtype=np.int64) * pairs,
        items=items.astype(np.int32),
        grades=grades,
        log_items=np.zeros(0, np.int32),
    )
    texts = [f"item {number}" for number in range(n_items)]
    loaded = registry.load("recft.tasks", task)
    return Exam(loaded, config, records, texts, loaded.metrics, EvalSettings(), **more)


@pytest.mark.parametrize("most", [1, 3, 8, 25, 100, 500])
@pytest.mark.parametrize(("task", "pairs"), [("relevance", 30), ("relevance", 3), ("purchase", 7), ("reply", 1)])
def test_pairs_are_no_more_than_were_asked_for(task: str, pairs: int, most: int) -> None:
    exam = big(task, 600, pairs, 4000, candidates="judged")
    small = held_out(exam, most)
    sizes = np.diff(small.records.offsets)
    assert small.records.offsets[-1] == len(small.records.items) == len(small.records.grades) <= most
    assert (sizes > 0).all() and sizes.max() <= 10
    assert len(small.records) >= min(most // max(2, min(pairs, 10)), 20)
    if pairs > 2 and most >= 8:  # both ends stay, or nothing could be told apart
        for row in range(len(small.records)):
            own = small.records.grades[small.records.offsets[row] : small.records.offsets[row + 1]]
            whole = exam.records.keys.index(small.records.keys[row])
            grades = exam.records.grades[exam.records.offsets[whole] : exam.records.offsets[whole + 1]]
            assert own.max() == grades.max() and own.min() == grades.min()


@pytest.mark.parametrize("most", [8, 100, 500])
def test_who_reads_the_catalogue_gets_a_few_others(most: int) -> None:
    exam = big("next-item", 600, 2, 4000, config={"score_by": "likelihood"})
    exam = dataclasses.replace(exam, records=dataclasses.replace(exam.records, grades=np.ones(1200, np.float32)))
    small = held_out(exam, most)
    assert small.candidates == "judged" and len(small.records.items) <= most
    sizes = np.diff(small.records.offsets)
    assert sizes.min() >= 2
    for row in range(len(small.records)):
        own = slice(*small.records.offsets[row : row + 2])
        assert small.records.grades[own].max() == 1 and small.records.grades[own].min() == 0
        assert len(set(small.records.items[own].tolist())) == sizes[row]
        whole = exam.records.keys.index(small.records.keys[row])
        targets = exam.records.items[exam.records.offsets[whole] : exam.records.offsets[whole + 1]]
        wrong = small.records.items[own][small.records.grades[own] == 0]
        assert not np.isin(wrong, targets).any(), "no target counts as wrong"


def test_items_are_the_targets_first_and_then_spread(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    from recft.schema import ModelSettings

    monkeypatch.setattr(module, "MOST_ITEMS", 100)
    tokenizer = tokenizer_of(ModelSettings(base=str(tiny_bert)))
    serving = dataclasses.replace(_serving(), max_tokens=16)
    small = held_out(big("retrieval", 60, 8, 4000), 40)
    rows = rows_of(small, fake("embedding", 3), serving, tokenizer)
    assert len(small.records) == 40 and len(rows.items) == 100
    for row in range(40):
        own = small.records.grades[small.records.offsets[row] : small.records.offsets[row + 1]]
        kept = rows.grades[rows.offsets[row] : rows.offsets[row + 1]]
        assert kept.max(initial=0) == own.max(), "the best target of every record is there"
    for record in range(rows.n_records):
        for pair in range(rows.offsets[record], rows.offsets[record + 1]):
            assert rows.items[rows.pairs[pair]] == f"item {rows.item_numbers[rows.pairs[pair]]}"
    few = rows_of(held_out(big("retrieval", 3, 2, 4000), 40), fake("embedding", 3), serving, tokenizer)
    assert len(few.items) == 100 and few.item_numbers.max() - few.item_numbers.min() > 3800
    # Two of the same text stand as two: a record may have judged both.
    twins = big("retrieval", 3, 2, 10)
    twins = dataclasses.replace(twins, items=["chair"] * 10)
    rows = rows_of(held_out(twins, 40), fake("embedding", 3), serving, tokenizer)
    found = scored_rows(rows, twins.config, ("ndcg@10",), "linear", rows.context_outputs, rows.item_outputs)
    assert len(rows.items) == 10 and found.values["ndcg@10"] > 0


def _serving() -> Any:
    from recft.models.text_model import Serving

    return Serving("retrieval", "encoder", "embedding", "mean", True, 16)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contexts", [["椅子", "", "🎒 b"], [("a", "b"), ("", "c"), ("x", "")], []])
@pytest.mark.parametrize("items", [["one", "two 打印机"], []])
def test_any_rows_are_read_as_they_were_written(tmp_path: Path, contexts: list[Any], items: list[Any]) -> None:
    outputs = np.arange(6, dtype=np.float32).reshape(3, 2)[: len(contexts)]
    rows = Rows(
        contexts=contexts,
        items=items,
        context_outputs=outputs if len(contexts) else np.zeros((0, 0), np.float32),
        item_outputs=np.full((2, 2), 0.1, np.float32) if items else np.zeros((0, 0), np.float32),
        context_tokens=[[1, 2], [], [3]][: len(contexts)],
        item_tokens=[[7], [8, 9]][: len(items)],
        item_numbers=np.array([4, 9], np.int32)[: len(items)],
        offsets=np.array([0, 0, 2], np.int64),
        pairs=np.array([1, 0], np.int32),
        grades=np.array([0.5, 1], np.float32),
        places=np.array([0, 1], np.int32) if items else np.zeros(0, np.int32),
        clusters=np.array([0, 0], np.int32),
        stars=[np.array([5, 0.5], np.float32), np.zeros(0, np.float32)],
        judged=not items,
    )
    rows.write(tmp_path / "rows.parquet")
    same(rows, Rows.read(tmp_path / "rows.parquet"))


def test_a_file_that_is_no_rows_is_an_error(tmp_path: Path) -> None:
    from recft.errors import ExportError

    (tmp_path / "a").write_bytes(b"no parquet")
    pl.DataFrame({"part": ["context"]}).write_parquet(tmp_path / "b")
    for name, words in (("a", "cannot be read"), ("b", "has no column text")):
        with pytest.raises(ExportError, match=rf"{words}.*rule: .*fix: export again"):
            Rows.read(tmp_path / name)
