"""Every method on every base at every quantization: tuned, resumed to the same bytes, scored, exported, verified."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForSequenceClassification

from recft import registry
from recft.data.store import Store
from recft.errors import ExportError, RecipeError
from recft.evaluate import evaluate
from recft.export import export
from recft.methods._base import SAVED_PREFIX
from recft.models.base import quiet
from recft.models.encoder import encode
from recft.models.text_model import TextModel
from recft.recipe import Recipe
from recft.run import read_json
from recft.training import assemble
from recft.training.assemble import check, load_adapter, open_adapter
from recft.training.opened import exam_of
from recft.training.scoring import score_model
from recft.tune import tune
from recft.verify import verify

ToyRecipe = Callable[..., Recipe]

QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
KINDS = ("encoder", "causal")
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 3},
    "prefix": {"virtual_tokens": 4},
    "bottleneck": {"reduction_factor": 8},
}
"""Small sizes; a new method needs no line here."""

CELLS = list(product(registry.names("recft.methods"), QUANTIZATIONS, KINDS))


def method_of(name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, **SETTINGS.get(name, {}), **settings}


def stop_after(checkpoint: Path) -> Callable[[str, Mapping[str, Any]], None]:
    """A listener that is an interrupt at the end of the step after this checkpoint: logged, not yet saved."""

    def listen(event: str, values: Mapping[str, Any]) -> None:
        if event == "step" and checkpoint.is_dir():
            raise KeyboardInterrupt

    return listen


def lines(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without times."""
    timed = ("examples_per_second", "tokens_per_second", "memory_bytes")
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in found]


def tuned_and_resumed(recipe: Recipe, folder: Path) -> Path:
    """A whole run, after a second one that was interrupted and resumed was found equal to it byte for byte."""
    whole, broken = folder / "whole", folder / "broken"
    summary = tune(recipe, whole)
    assert summary["exit_status"] == 0 and summary["steps"] == 4
    with pytest.raises(KeyboardInterrupt):
        tune(recipe, broken, listen=stop_after(broken / "checkpoints" / "step-00000002"))
    assert read_json(broken / "manifest.json")["exit_status"] == 130
    assert [path.name for path in sorted((broken / "checkpoints").iterdir())] == ["step-00000001", "step-00000002"]
    assert len([line for line in lines(broken) if "loss" in line]) == 3
    tune(recipe, broken, resume=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (broken / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes(), name
    assert lines(broken) == lines(whole)
    return whole


def scored(run: Path, recipe: Recipe) -> dict[str, Any]:
    """The test report, after a look at its rows."""
    report = evaluate(run)
    task = registry.load("recft.tasks", recipe.task.name)
    for row in ("base", "tuned"):
        assert set(report[row]) == set(task.metrics)
        # Precision is undefined where nothing is said to be a yes.
        assert all(report[row][name] is not None for name in task.metrics if name != "precision"), (
            f"{row}: {report[row]}"
        )
    assert report["n"] > 0 and read_json(run / "eval" / "test.json")["tuned"] == report["tuned"]
    return report


def served(run: Path, target: str, out: Path) -> dict[str, Any]:
    """What an export says of itself, after it was verified."""
    description = export(run, target, out)
    certificate = description["certificate"]
    assert certificate["verdict"] == "passed" and certificate["rows"] > 0
    assert certificate["effect_kl"] > 0
    assert verify(out)["certificate"]["verdict"] == "passed"
    return description


def slow_where(slow: bool, *values: Any) -> Any:
    return pytest.param(*values, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(("method", "quantization", "kind"), CELLS)
def test_every_cell(method: str, quantization: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(kind=kind, method=method_of(method), quantization=quantization)
    assert check(recipe)["model.quantization"] == quantization
    run = tuned_and_resumed(recipe, tmp_path)
    scored(run, recipe)
    for target in [target for target in ("merged", "adapter") if carries(run, target)][:1]:
        served(run, target, tmp_path / target)


@pytest.mark.parametrize("settings", [{"average": 0.5}, {"average": 0.5, "interpolate": 0.5}])
def test_what_is_served_in_the_parameters_place_is_resumed_too(
    settings: dict[str, float], toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    tuned_and_resumed(toy_recipe(method=method_of("lora"), tune=settings), tmp_path)


def carries(run: Path, target: str) -> bool:
    """Whether this target can carry the run; where it cannot, the refusal names one that can."""
    try:
        export(run, target, run, onto="dequantized")  # the folder exists: nothing is ever written
    except ExportError as error:
        if "exists already" in str(error):
            return True
        assert "onnx" in str(error)
    return False


ONNX_CELLS = [
    slow_where((quantization, kind) != default, method, quantization, kind)
    for (method, default), quantization, kind in product(
        (("prefix", ("nf4", "causal")), ("bottleneck", ("nf4", "encoder"))), QUANTIZATIONS, KINDS
    )
]


@pytest.mark.parametrize(("method", "quantization", "kind"), ONNX_CELLS)
def test_what_cannot_be_merged_is_served_from_a_graph(
    method: str, quantization: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    tune(toy_recipe(kind=kind, method=method_of(method), quantization=quantization), tmp_path / "run")
    assert served(tmp_path / "run", "onnx", tmp_path / "onnx")["certificate"]["dtype"] == "float32"


TARGET_CELLS = [
    slow_where(target == "onnx" and kind == "encoder", target, quantization, kind)
    for target, quantization, kind in product(("adapter", "onnx", "sentence-transformers"), ("nf4",), KINDS)
]


@pytest.mark.parametrize(("target", "quantization", "kind"), TARGET_CELLS)
def test_what_can_be_merged_is_served_by_every_target(
    target: str, quantization: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    tune(toy_recipe(kind=kind, method=method_of("adalora"), quantization=quantization), tmp_path / "run")
    served(tmp_path / "run", target, tmp_path / "out")


# (task, method, quantization, kind): each task with a method of each kind, on each kind of base that it runs on.
TASK_CELLS = [
    ("next-item", "lora", "none", "encoder"),
    ("next-item", "lora", "int8", "causal"),
    ("next-item", "prefix", "nf4", "encoder"),
    ("next-item", "bottleneck", "none", "causal"),
    ("purchase", "lora", "none", "encoder"),
    ("purchase", "lora", "nf4", "causal"),
    ("purchase", "adalora", "int8", "encoder"),
    ("purchase", "prefix", "none", "causal"),
    ("purchase", "bottleneck", "nf4", "encoder"),
    ("relevance", "lora", "none", "encoder"),
    ("relevance", "adalora", "int8", "encoder"),
    ("relevance", "prefix", "none", "causal"),
    ("relevance", "bottleneck", "nf4", "causal"),
    ("rating", "lora", "int8", "causal"),
    ("rating", "adalora", "nf4", "encoder"),
    ("rating", "prefix", "none", "encoder"),
    ("rating", "bottleneck", "none", "causal"),
    ("classify", "lora", "nf4", "causal"),
    ("classify", "adalora", "none", "encoder"),
    ("classify", "prefix", "int8", "encoder"),
    ("classify", "bottleneck", "fp4", "causal"),
    ("reply", "lora", "none", "causal"),
    ("reply", "adalora", "nf4", "causal"),
    ("reply", "prefix", "none", "causal"),
    ("reply", "bottleneck", "int8", "causal"),
    ("preference", "lora", "nf4", "causal"),
    ("preference", "adalora", "none", "causal"),
    ("preference", "prefix", "int8", "causal"),
    ("preference", "bottleneck", "none", "causal"),
]


@pytest.mark.parametrize(("task", "method", "quantization", "kind"), TASK_CELLS)
def test_the_other_tasks(
    task: str, method: str, quantization: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    recipe = toy_recipe(task, kind, method_of(method), quantization)
    run = tuned_and_resumed(recipe, tmp_path)
    report = scored(run, recipe)
    assert report["base"] != report["tuned"]
    target = next(target for target in ("merged", "adapter", "onnx") if carries(run, target))
    served(run, target, tmp_path / target)


@pytest.mark.parametrize("target", ["merged", "adapter", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_new_head_is_tuned_on_the_base_alone_first_and_travels(
    target: str, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tune(toy_recipe("purchase", "encoder", method_of("lora")), run)
    base_head = load_file(run / "base_head.safetensors")
    config, tensors = load_adapter(run / "adapter")
    assert config["modules_to_save"] == ["classifier"]
    for name, alone in base_head.items():
        assert not torch.equal(tensors[f"{SAVED_PREFIX}{name}"], alone), "the head was not tuned with the adapter"
    served(run, target, tmp_path / "out")
    if target != "onnx":
        stem = {"merged": "model", "adapter": "adapter_model"}[target]
        written = load_file(tmp_path / "out" / f"{stem}.safetensors")
        for name in base_head:
            kept = written[name if target == "merged" else f"{SAVED_PREFIX}{name}"]
            assert torch.equal(kept, tensors[f"{SAVED_PREFIX}{name}"])


def test_the_base_row_of_a_new_head_is_the_frozen_base_with_the_head_tuned_on_it(
    toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    recipe = toy_recipe("purchase", "encoder", method_of("lora"))
    tune(recipe, tmp_path / "run")
    report = evaluate(tmp_path / "run")
    with quiet():
        model = BertForSequenceClassification.from_pretrained(recipe.model.base, num_labels=1)
    missing, unknown = model.load_state_dict(load_file(tmp_path / "run" / "base_head.safetensors"), strict=False)
    assert not unknown and not any("classifier" in name for name in missing)
    tuned = open_adapter(recipe, tmp_path / "run" / "adapter")
    store = Store.open(tmp_path / "run" / "data")
    alone = TextModel(model.eval(), tuned.model.serving)
    exam = exam_of(recipe, store, "test")
    values = score_model(exam, lambda texts: encode(alone, tuned.tokenizer, texts)).values
    for name in ("auc", "gauc", "log_loss"):
        assert values[name] == pytest.approx(report["base"][name], abs=1e-6)
    assert values["auc"] != 0.5


REFUSED = [
    ({"method": {"name": "lora", "dora": True}, "quantization": "int8"}, {}, "int8"),
    ({"method": "prefix"}, {"architecture": "qwen3_next"}, "attention"),
    ({"method": "lora"}, {"architecture": "albert"}, "share"),
    ({"method": "adalora"}, {"architecture": "gpt2"}, "Conv1D"),
]


@pytest.mark.parametrize(("settings", "facts", "word"), REFUSED)
def test_a_refused_cell_says_why_before_anything_is_read(
    settings: dict[str, Any],
    facts: dict[str, str],
    word: str,
    toy_recipe: ToyRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = toy_recipe(**settings)
    known = assemble.facts_of(recipe) | facts
    monkeypatch.setattr(assemble, "facts_of", lambda _recipe: known)
    for name in ("load_base", "tokenizer_of"):
        monkeypatch.setattr(assemble, name, lambda *_args, name=name: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(sys.modules["recft.tune"], "prepare", lambda *_args, **_options: pytest.fail("data was read"))
    with pytest.raises(RecipeError, match=rf"(?s){word}.*fix: ") as caught:
        tune(recipe, tmp_path / "run")
    assert "this combination cannot work" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_every_refusal_of_every_member_is_whole() -> None:
    for family in ("recft.methods", "recft.tasks", "recft.exports"):
        for name in registry.names(family):
            for refusal in registry.load(family, name).refusals:
                assert refusal.reason and refusal.fix and refusal.when, f"{family}.{name}"
