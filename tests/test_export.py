"""Exports that serve other scores are caught, and nothing is overwritten or changed unseen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recft import registry
from recft.errors import ExportError
from recft.export import CARD, export
from recft.exports.merged import Merged
from recft.models.weights import float32_base
from recft.recipe import Recipe
from recft.run import read_json
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]

Sabotage = Callable[[Path], None]


@pytest.fixture
def run(toy_recipe: ToyRecipe, tmp_path: Path) -> Path:
    """A tuned run on a plain base."""
    tune(toy_recipe(method={"name": "lora", "rank": 4}), tmp_path / "run")
    return tmp_path / "run"


def flip_a_sign(draft: Path) -> None:
    tensors = load_file(draft / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer.0.output.dense.weight"))
    row, column = divmod(int(tensors[name].abs().argmax()), tensors[name].shape[1])
    tensors[name][row, column] *= -1
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})


def swap_two_words(draft: Path) -> None:
    tokenizer = json.loads((draft / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words["red"], words["chair"] = words["chair"], words["red"]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize(
    ("sabotage", "words"),
    [(flip_a_sign, ("scores differ by",)), (swap_two_words, ("scores differ", "tokenized differently"))],
)
def test_a_spoilt_artefact_fails_and_is_left_under_a_name_that_says_so(
    sabotage: Sabotage, words: tuple[str, ...], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Merged.write

    def spoilt(self: Merged, source: Any, folder: Path) -> None:
        write(self, source, folder)
        sabotage(folder)

    monkeypatch.setattr(Merged, "write", spoilt)
    with pytest.raises(ExportError, match=r"out.failed: the certificate failed.*rule: .*fix: ") as caught:
        export(run, "merged", tmp_path / "out")
    assert all(word in str(caught.value) for word in words), caught.value
    assert " tuned, " in str(caught.value) and " served" in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.draft").exists()
    assert read_json(tmp_path / "out.failed" / "recft-export.json")["certificate"]["verdict"] == "failed"
    with pytest.raises(ExportError, match="the certificate fails"):
        verify(tmp_path / "out.failed")


def test_serving_that_pools_otherwise_fails(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    opened = Merged.open

    def otherwise(self: Merged, folder: Path, how: Any) -> Any:
        return opened(self, folder, dataclasses.replace(how, serving=dataclasses.replace(how.serving, pooling="last")))

    monkeypatch.setattr(Merged, "open", otherwise)
    with pytest.raises(ExportError, match=r"scores differ by"):
        export(run, "merged", tmp_path / "out")


def test_a_merge_that_changes_nothing_is_an_error(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = type(registry.load("recft.methods", "lora"))
    monkeypatch.setattr(method, "merge", lambda self, config, tensors, name, weight: weight)
    with pytest.raises(ExportError, match="merging changed no weight"):
        export(run, "merged", tmp_path / "out")


def test_verify_finds_a_changed_byte_a_missing_file_and_no_export(run: Path, tmp_path: Path) -> None:
    export(run, "merged", tmp_path / "out")
    (run / "adapter").rename(run / "gone")  # nothing of the run is read
    certified = verify(tmp_path / "out")
    assert certified["certificate"]["at_export"]["engine"] == "transformers"
    weights = tmp_path / "out" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ExportError, match=r"model.safetensors: has changed: SHA-256 .*fix: export again"):
        verify(tmp_path / "out")
    weights.write_bytes(whole)
    verify(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer.json: is missing"):
        verify(tmp_path / "out")
    with pytest.raises(ExportError, match=r"holds no recft-export.json.*fix: check the path"):
        verify(run)


def test_nothing_is_overwritten_unasked_and_nothing_but_an_export_at_all(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match=r"exists already.*fix: .*--force"):
        export(run, "merged", out)
    with pytest.raises(ExportError, match=r"holds no recft-export.json .*never other files"):
        export(run, "merged", out, force=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(out)
    first = export(run, "merged", out)
    (out / "added").write_text("x")
    again = export(run, "merged", out, force=True)
    names = set(first["files"]) - {CARD}  # the card tells how fast it was this time
    assert {name: again["files"][name] for name in names} == {name: first["files"][name] for name in names}
    assert set(again["files"]) == set(first["files"]) and not (out / "added").exists()


def test_a_target_that_cannot_carry_the_run_names_those_that_can(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe(method={"name": "prefix", "virtual_tokens": 4}), tmp_path / "run")
    with pytest.raises(ExportError, match=r"--to merged: cannot carry this run \(prefix\)") as caught:
        export(tmp_path / "run", "merged", tmp_path / "out")
    assert "targets that can carry it: adapter, distil, index, onnx" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_tasks_own_metric_is_certified_whatever_the_report_shows(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe(method={"name": "lora", "rank": 4}, eval={"metrics": ["mrr@10"]}), tmp_path / "run")
    found = export(tmp_path / "run", "merged", tmp_path / "out")["certificate"]
    assert set(found["metrics"]["served"]) == {"mrr@10", "ndcg@10"}
    assert found["metric"] == "ndcg@10" and abs(found["metric_change"]) < 0.01


@pytest.mark.parametrize("onto", ["auto", "original", "dequantized"])
def test_the_weights_under_the_adapter_are_those_asked_for(onto: Any, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(method={"name": "lora", "rank": 4}, quantization="nf4")
    tune(recipe, tmp_path / "run")
    description = export(tmp_path / "run", "merged", tmp_path / "out", onto=onto)
    chosen, reason = description["onto"]["weights"], description["onto"]["reason"]
    assert ("validation ndcg@10: dequantized" in reason) if onto == "auto" else (chosen == onto)
    if onto == "auto":
        scores = description["onto"]["scores"]
        assert scores[chosen] == max(scores["dequantized"], scores["original"])
        assert all(f"{name} {score:.4f}" in reason for name, score in scores.items())
    written = load_file(tmp_path / "out" / "model.safetensors")
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    config = read_json(tmp_path / "run" / "adapter" / "adapter_config.json")
    base = float32_base(recipe.model, "embedding", torch.float32, chosen).model
    name = "encoder.layer.1.output.dense"
    merged = registry.load("recft.methods", "lora").merge(
        config, tensors, name, base.get_parameter(f"{name}.weight").detach()
    )
    assert torch.equal(written[f"{name}.weight"], merged)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_smaller_dtype_is_judged_by_the_adapters_own_effect(
    dtype: str, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    recipe = toy_recipe(
        method={"name": "lora", "rank": 4},
        export={"dtype": dtype, "tolerances": {"top_k_agreement": 0.9}},
        tune={"learning_rate": 0.05},
    )
    tune(recipe, tmp_path / "run")
    found = export(tmp_path / "run", "merged", tmp_path / "out")["certificate"]
    assert found["dtype"] == dtype and 0 < found["kl"] <= 0.01 * found["effect_kl"]
