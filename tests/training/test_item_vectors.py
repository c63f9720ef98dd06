"""Items are read once by a finished model: the same scores bit for bit with the cache and without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recft.evaluate import evaluate
from recft.models.encoder import Encoder
from recft.recipe import Recipe
from recft.recommend import recommend, recommend_file
from recft.reports import report as report_module
from recft.training import item_vectors
from recft.training.assemble import Tuned, open_adapter
from recft.training.item_vectors import ItemEncoder, finished, model_hash
from recft.training.opened import open_run
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def run(toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors") / "run"
    tune(toy_recipe("next-item", eval={"robustness": {"typos": 0.3}}), folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recft" / "vectors"


def opened(run: Path) -> tuple[Tuned, Recipe, Encoder, list[str]]:
    found = open_run(run)
    recipe, store = found.part(None)
    tuned = open_adapter(found.recipe, found.folder.adapter)
    return tuned, recipe, Encoder(tuned.model, tuned.tokenizer), store.item_texts


def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What is asked of models from now on."""
    asked: list[list[Any]] = []
    plain = Encoder.__call__

    def read(self: Encoder, texts: Sequence[Any]) -> np.ndarray:
        asked.append(list(texts))
        return plain(self, texts)

    monkeypatch.setattr(Encoder, "__call__", read)
    return asked


def plain_of(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("seconds", "predictions")}


def test_a_report_is_the_same_with_the_cache_and_without_it(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(report_module, "finished", lambda encoder, *_: encoder)
        without = evaluate(run)
    assert not cache.exists()
    predictions = pl.read_parquet(run / "eval" / "test.predictions.parquet")
    cold = evaluate(run)
    assert len(list(cache.rglob("*.safetensors"))) == 2, "the base's, and the tuned model's"
    asked = reads(monkeypatch)
    warm = evaluate(run)
    assert plain_of(cold) == plain_of(warm) == plain_of(without)
    assert pl.read_parquet(run / "eval" / "test.predictions.parquet").equals(predictions)
    items = set(open_run(run).part(None)[1].item_texts)
    assert not any(items <= set(texts) for texts in asked), "the catalogue is not read again"


def test_a_list_is_the_same_with_the_cache_and_without_it(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cold = recommend(run, history=["i3", "i0"], top=5)
    asked = reads(monkeypatch)
    assert recommend(run, history=["i3", "i0"], top=5) == cold
    assert [len(texts) for texts in asked] == [1], "the context alone"
    table = tmp_path / "wanted.csv"
    table.write_text('history\n"i3,i0"\ni1\n', encoding="utf-8")
    recommend_file(run, table, tmp_path / "lists.parquet", top=5)
    lists = pl.read_parquet(tmp_path / "lists.parquet")
    assert lists["items"][0].to_list() == [place["item"] for place in cold]
    assert lists["scores"][0].to_list() == pytest.approx([place["score"] for place in cold], abs=1e-6)


def test_base_and_tuned_model_share_nothing(run: Path, cache: Path) -> None:
    tuned, recipe, encoder, texts = opened(run)
    adapter = run / "adapter"
    plain = encoder(texts)
    ours = finished(encoder, recipe, adapter)
    assert isinstance(ours, ItemEncoder)
    np.testing.assert_array_equal(ours.items(texts), plain)
    with tuned.as_base():
        base = finished(encoder, recipe, None)
        assert isinstance(base, ItemEncoder)
        untuned = base.items(texts)
        np.testing.assert_array_equal(untuned, encoder(texts))
    assert np.abs(untuned - plain).max() > 1e-6
    np.testing.assert_array_equal(ours.items(texts), plain)


def test_a_changed_title_alone_is_read_anew(run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recipe, encoder, texts = opened(run)
    ours = finished(encoder, recipe, run / "adapter")
    assert isinstance(ours, ItemEncoder)
    first = ours.items(texts)
    asked = reads(monkeypatch)
    second = ours.items(["红色打印机 🎒", *texts[1:]])
    assert asked == [["红色打印机 🎒"]]
    np.testing.assert_array_equal(second[1:], first[1:])
    np.testing.assert_allclose(second[0], encoder(["红色打印机 🎒"])[0], rtol=0, atol=0)


def test_whatever_decides_a_vector_changes_the_model_s_hash(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, recipe, encoder, _ = opened(run)
    adapter = run / "adapter"
    other = tmp_path / "adapter"
    other.mkdir()
    for file in adapter.iterdir():
        data = file.read_bytes()
        (other / file.name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if file.suffix == ".safetensors" else data)
    found = [
        model_hash(encoder, recipe, adapter),
        model_hash(encoder, recipe, other),
        model_hash(encoder, recipe, None),
    ]
    assert model_hash(encoder, recipe, adapter) == found[0]
    half = recipe.model.model_copy(update={"compute_dtype": "bfloat16"})
    found.append(model_hash(encoder, recipe.model_copy(update={"model": half}), adapter))
    found.append(model_hash(dataclasses.replace(encoder, chunk_tokens=64), recipe, adapter))
    with monkeypatch.context() as patch:
        patch.setattr(encoder.model, "serving", dataclasses.replace(encoder.model.serving, max_tokens=7))
        found.append(model_hash(encoder, recipe, adapter))
    with monkeypatch.context() as patch:
        patch.setattr(item_vectors, "hash_folder", lambda path, *_: str(path))
        found.append(model_hash(encoder, recipe, adapter))
    assert len(set(found)) == len(found)


def test_calibration_does_not_change_the_model_s_hash(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recipe, encoder, _ = opened(run)
    before = model_hash(encoder, recipe, None)
    monkeypatch.setattr(encoder.model, "serving", dataclasses.replace(encoder.model.serving, calibration={"kind": "x"}))
    assert model_hash(encoder, recipe, None) == before


def test_a_model_without_vectors_has_no_cache(
    toy_recipe: ToyRecipe, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, recipe, encoder, _ = opened(run)
    monkeypatch.setattr(encoder.model, "serving", dataclasses.replace(encoder.model.serving, head="likelihood"))
    assert finished(encoder, recipe, None) is encoder
