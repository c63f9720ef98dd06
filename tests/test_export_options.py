"""What `export` can be told: dtype, rows, the weights beneath, and what an interrupted one leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file

from recft.errors import DataError, ExportError, RecipeError
from recft.export import CARD, DESCRIPTION, ITEMS, ROWS, export
from recft.exports.merged import Merged
from recft.models.merging import PROGRESS
from recft.recipe import Recipe
from recft.recommend import recommend
from recft.run import read_json
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]


@pytest.fixture
def run(toy_recipe: ToyRecipe, tmp_path: Path) -> Path:
    tune(toy_recipe(method={"name": "lora", "rank": 4}, tune={"learning_rate": 0.05}), tmp_path / "run")
    return tmp_path / "run"


def test_settings_are_laid_over_the_runs_recipe_and_only_exports(run: Path, tmp_path: Path) -> None:
    told = ["export.dtype=bfloat16", "export.tolerances.top_k_agreement=0.8"]
    description = export(run, "merged", tmp_path / "out", overrides=told)
    assert description["dtype"] == "bfloat16"
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        "torch.bfloat16"
    }
    with pytest.raises(RecipeError, match=r"--set: 'tune.epochs=9' .*export.*fix: "):
        export(run, "merged", tmp_path / "other", overrides=["tune.epochs=9"])
    with pytest.raises(RecipeError, match=r"export.dtyp: unknown key.*Did you mean 'dtype'"):
        export(run, "merged", tmp_path / "other", overrides=["export.dtyp=int8"])
    with pytest.raises(ExportError, match=r"export.dtype: nf4.*written in float32"):
        export(run, "onnx", tmp_path / "other", overrides=["export.dtype=nf4"])
    with pytest.raises(RecipeError, match=r"export.targets.onix.*Did you mean 'onnx'"):
        export(run, "onnx", tmp_path / "other", overrides=["export.targets.onix={}"])
    with pytest.raises(RecipeError, match=r"export.targets.onnx.speed: unknown key"):
        export(run, "onnx", tmp_path / "other", overrides=["export.targets.onnx={speed: 9}"])
    assert not (tmp_path / "other").exists()


def test_without_rows_nothing_of_the_shop_travels(run: Path, tmp_path: Path) -> None:
    export(run, "merged", tmp_path / "out", rows=False)
    assert not (tmp_path / "out" / ROWS).exists() and not (tmp_path / "out" / ITEMS).exists()
    with pytest.raises(ExportError, match=r"--run"):
        verify(tmp_path / "out")
    assert verify(tmp_path / "out", run=run)["certificate"]["verdict"] == "passed"
    with pytest.raises(DataError, match=r"without its catalogue.*--items"):
        recommend(tmp_path / "out", query="oak desk")
    items = run / "data" / "items.parquet"
    named = recommend(tmp_path / "out", query="oak desk", top=3, items=items)
    ours = recommend(run, query="oak desk", top=3)
    assert [(place["item"], place["title"]) for place in named] == [(place["item"], place["title"]) for place in ours]
    pl.DataFrame({"id": [1, 2], "name": ["椅子", "🎒"]}).write_csv(tmp_path / "items.csv")
    with pytest.raises(DataError, match=r"has the columns id, name.*id, text"):
        recommend(tmp_path / "out", query="oak desk", items=tmp_path / "items.csv")
    pl.DataFrame({"id": [1, 2], "text": ["椅子", "🎒"]}).write_csv(tmp_path / "items.csv")
    assert {place["title"] for place in recommend(tmp_path / "out", query="a", items=tmp_path / "items.csv")} == {
        "椅子",
        "🎒",
    }
    with pytest.raises(RecipeError, match=r"--items.*a run has its own catalogue"):
        recommend(run, query="oak desk", items=items)


def test_what_travels_names_no_user_and_every_file_is_hashed(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe("next-item"), tmp_path / "run")
    description = export(tmp_path / "run", "merged", tmp_path / "out")
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {*description["files"], DESCRIPTION} and {ROWS, ITEMS, CARD} <= files
    users = [f"u{number}" for number in range(30)]
    frame = pl.read_parquet(tmp_path / "out" / ROWS)
    words = {word for column in frame.columns for value in frame[column].to_list() for word in str(value).split()}
    assert not words & {*users, *(f"'{user}'" for user in users)}
    assert not list((tmp_path / "out").rglob(PROGRESS))


@pytest.mark.parametrize("dtype", ["auto", "nf4"])
def test_auto_puts_the_weights_side_by_side(dtype: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(
        method={"name": "lora", "rank": 4},
        quantization="nf4",
        export={"dtype": dtype, "tolerances": {"top_k_agreement": 0.01, "quantized_metric": 1.0}},
    )
    tune(recipe, tmp_path / "run")
    found = export(tmp_path / "run", "merged", tmp_path / "out")
    scores = found["onto"]["scores"]
    assert {"dequantized", "original", "dequantized, requantized (nf4)"} <= set(scores)
    deciding = {
        name: scores[f"{name}, requantized (nf4)" if dtype == "nf4" else name] for name in ("dequantized", "original")
    }
    assert deciding[found["onto"]["weights"]] == max(deciding.values())
    assert all(name in found["onto"]["reason"] for name in scores)
    assert found["certificate"]["dtype"] == ("nf4" if dtype == "nf4" else "float32")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("tmp")]


def test_an_interrupted_merge_is_gone_on_with(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, "merged", tmp_path / "whole")
    write = Merged.write

    def stopped(self: Merged, source: Any, folder: Path) -> None:
        write(self, source, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Merged, "write", stopped)
        heard: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            export(run, "merged", tmp_path / "out", listen=lambda _, told: heard.append(str(told.get("text"))))
    draft = tmp_path / "out.draft"
    assert any("stays in" in line and "out.draft" in line for line in heard)
    assert (draft / PROGRESS).is_file() and not (tmp_path / "out").exists()
    before = (draft / "model.safetensors").stat().st_mtime_ns
    description = export(run, "merged", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert (
        description["files"]["model.safetensors"]
        == read_json(tmp_path / "whole" / DESCRIPTION)["files"]["model.safetensors"]
    )
    assert not draft.exists()
    shutil.rmtree(tmp_path / "out")
    # What another dtype has left is not taken.
    with monkeypatch.context() as patch:
        patch.setattr(Merged, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            export(run, "merged", tmp_path / "out")
    told = ["export.dtype=bfloat16", "export.tolerances.top_k_agreement=0.5"]
    export(run, "merged", tmp_path / "out", overrides=told)
    dtypes = {str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert dtypes == {"torch.bfloat16"}


def test_what_an_engine_refuses_is_said_before(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe(method={"name": "lora", "rank": 4, "dora": True}), tmp_path / "run")
    heard: list[str] = []

    def listen(event: str, values: Any) -> None:
        heard.append(f"{event}: {values.get('text') or values.get('name')}")

    export(tmp_path / "run", "adapter", tmp_path / "out", listen=listen)
    refusal = next(place for place, line in enumerate(heard) if line.startswith("note: vLLM will not take this"))
    writing = next(place for place, line in enumerate(heard) if line.startswith("stage: writing adapter"))
    assert refusal < writing and "merged" in heard[refusal]
