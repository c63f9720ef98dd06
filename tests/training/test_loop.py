"""The loop as a run sees it: memory, averages, the best step, what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recft import registry
from recft.errors import ModelError, TuneError
from recft.methods._base import SAVED_PREFIX
from recft.models.base import tokenizer_of
from recft.models.blocks import blocks_of, compiled_forwards
from recft.models.passes import passes
from recft.models.text_model import TextModel
from recft.models.tokens import Tokens
from recft.recipe import Recipe
from recft.run import read_json, write_json
from recft.training import assemble, loop, memory, optimizer
from recft.training.assemble import Tuned, load_adapter
from recft.training.memory import Fit
from recft.training.mixing import Order, Part
from recft.training.schedule import learning_rate
from recft.training.servings import servings_of
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]

LORA = {"name": "lora", "rank": 4}
NO_DROPOUT: dict[str, Any] = {"dropout": 0.0}


def adapter_of(run: Path) -> dict[str, Tensor]:
    return load_adapter(run / "adapter")[1]


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=tolerance), name


def last_step_only(**settings: Any) -> dict[str, Any]:
    """Settings under which the adapter that is kept is that of the last step."""
    return {**NO_DROPOUT, "eval_every_steps": 100, **settings}


# -- memory -----------------------------------------------------------------------------------------------------------


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(method=LORA, tune=last_step_only(max_steps=2))
    tune(recipe, tmp_path / "whole")
    forward = TextModel.forward

    def small(model: TextModel, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if model.training and torch.is_grad_enabled() and input_ids.numel() > 3 * recipe.tune.max_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(model, input_ids, *args, **kwargs)

    monkeypatch.setattr(TextModel, "forward", small)
    notes: list[str] = []
    summary = tune(recipe, tmp_path / "small", listen=lambda event, values: notes.append(str(values.get("text"))))
    assert summary["micro_batch"] <= 3 and any("out of memory" in note for note in notes)
    for checkpoint in (tmp_path / "small" / "checkpoints").iterdir():
        assert read_json(checkpoint / "progress.json")["micro_batch"] == summary["micro_batch"]
    assert_near(adapter_of(tmp_path / "small"), adapter_of(tmp_path / "whole"))


def test_a_single_text_that_does_not_fit_says_what_to_do(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(model: TextModel, *args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TextModel, "forward", none)
    with pytest.raises(TuneError, match=r"1 texts a forward pass.*fix: .*tune.max_tokens"):
        tune(toy_recipe(method=LORA), tmp_path / "run")


def test_a_text_that_does_not_fit_has_half_of_the_blocks_computed_again_then_all(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(method=LORA, tune=last_step_only(max_steps=1))
    assert tune(recipe, tmp_path / "whole")["checkpointed_blocks"] == 0, "as many as memory needs"
    forward = TextModel.forward

    def small(model: TextModel, *args: Any, **kwargs: Any) -> Tensor:
        on = sum(bool(block.gradient_checkpointing) for block in blocks_of(model.base))
        if model.training and torch.is_grad_enabled() and on < 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(TextModel, "forward", small)
    notes: list[str] = []
    summary = tune(recipe, tmp_path / "small", listen=lambda event, values: notes.append(str(values.get("text"))))
    assert (summary["micro_batch"], summary["checkpointed_blocks"]) == (1, 2)
    told = [note for note in notes if "blocks computed again" in note]
    assert ["1 of 2" in told[0], "2 of 2" in told[1]] == [True, True]
    for checkpoint in (tmp_path / "small" / "checkpoints").iterdir():
        assert read_json(checkpoint / "progress.json")["checkpointed_blocks"] == 2
    assert_near(adapter_of(tmp_path / "small"), adapter_of(tmp_path / "whole"))


@pytest.mark.parametrize("setting", [False, True])
def test_where_it_was_decided_memory_does_not_decide(
    setting: bool, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(model: TextModel, *args: Any, **kwargs: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(TextModel, "forward", none)
    notes: list[str] = []
    recipe = toy_recipe(method=LORA, tune={"gradient_checkpointing": setting, "max_steps": 1})
    with pytest.raises(TuneError, match="1 texts a forward pass"):
        tune(recipe, tmp_path / "run", listen=lambda event, values: notes.append(str(values.get("text"))))
    assert not any("computed again" in note for note in notes)


def test_a_resumed_run_computes_the_same_blocks_again(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe("purchase", "causal", LORA, tune=last_step_only(max_steps=4, dropout=0.2))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(memory, "first_fit", lambda *_: Fit(1, 1))
        tune(recipe, whole)
        shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-00000004")
    write_json(cut / "manifest.json", {"exit_status": 130})
    seen: list[list[bool]] = []
    one_step = loop._Loop.one_step

    def watched(self: Any) -> None:
        seen.append([bool(block.gradient_checkpointing) for block in blocks_of(self.job.tuned.model.base)])
        one_step(self)

    monkeypatch.setattr(loop._Loop, "one_step", watched)
    summary = tune(recipe, cut, resume=True)  # which by itself would begin with none
    assert summary["checkpointed_blocks"] == 1 and seen == [[False, True]]
    for name, tensor in adapter_of(whole).items():
        assert torch.equal(tensor, adapter_of(cut)[name]), name


# -- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retrieval", "preference"])
def test_drawing_ahead_changes_no_bit(
    task: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "encoder" if task == "retrieval" else "causal"
    recipe = toy_recipe(task, kind, LORA, tune={"max_steps": 5, "augment": {"typos": 0.3}, "dropout": 0.2})
    tune(recipe, tmp_path / "plain")
    threads: list[str] = []
    draw = loop._Loop._draw

    def watched(self: Any, step: int) -> Any:
        threads.append(threading.current_thread().name)
        return draw(self, step)

    monkeypatch.setattr(loop._Loop, "_draw", watched)
    monkeypatch.setattr(loop, "draws_ahead", lambda _: True)
    tune(recipe, tmp_path / "ahead")
    assert sum(name.startswith("next-batch") for name in threads) == 4
    for name, tensor in adapter_of(tmp_path / "plain").items():
        assert torch.equal(tensor, adapter_of(tmp_path / "ahead")[name]), name


@pytest.mark.slow
# The compiler asks a tensor within the graph for its gradient: a warning that it keeps to itself where it may.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_a_compiled_run_tunes_the_same_adapter(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe("purchase", "causal", LORA, tune=last_step_only(max_steps=2))
    tune(recipe, tmp_path / "plain")
    asked: list[str] = []

    def traced(base: Any) -> Any:
        asked.append("blocks")
        return compiled_forwards(base, backend="eager")  # building takes a compiler, and its time

    monkeypatch.setattr(loop, "compiled_forwards", traced)
    tune(toy_recipe("purchase", "causal", LORA, tune=last_step_only(max_steps=2, compile=True)), tmp_path / "compiled")
    assert asked == ["blocks"]
    assert_near(adapter_of(tmp_path / "compiled"), adapter_of(tmp_path / "plain"), 1e-5)


def test_other_errors_of_the_machine_are_not_taken_for_memory(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: TextModel, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(TextModel, "forward", broken)
    with pytest.raises(RuntimeError, match=r"illegal"):
        tune(toy_recipe(method=LORA), tmp_path / "run")


# -- what is served ---------------------------------------------------------------------------------------------------


def trajectory(recipe: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The parameters at the start and after every step of a run, by saved name."""
    seen: list[dict[str, Tensor]] = []
    one_step = loop._Loop.one_step

    def watched(self: Any) -> None:
        if not seen:
            seen.append(self.job.tuned.attached.tensors())
        one_step(self)
        seen.append(self.job.tuned.attached.tensors())

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "one_step", watched)
        tune(recipe, run)
    return seen


def test_the_running_average_is_what_its_formula_says(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(method=LORA, tune=last_step_only(average=0.3))
    seen = trajectory(recipe, tmp_path / "run", monkeypatch)
    expected = seen[0]
    for step, values in enumerate(seen[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in values.items()}
    assert_near(adapter_of(tmp_path / "run"), expected, 1e-6)
    assert not torch.equal(*(next(iter(tensors.values())) for tensors in (adapter_of(tmp_path / "run"), seen[-1])))


def test_interpolation_goes_part_of_the_way_from_the_start(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(method=LORA, tune=last_step_only(interpolate=0.25))
    seen = trajectory(recipe, tmp_path / "run", monkeypatch)
    expected = {name: start + 0.25 * (seen[-1][name] - start) for name, start in seen[0].items()}
    assert_near(adapter_of(tmp_path / "run"), expected, 1e-6)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_adalora_ends_with_its_target_rank_and_keeps_off_what_is_off(
    average: float, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    method = {"name": "adalora", "rank": 2, "initial_rank": 4}
    recipe = toy_recipe(method=method, tune={"max_steps": 12, "average": average, "checkpoint_every_steps": 100})
    tune(recipe, tmp_path / "run")
    _, tensors = load_adapter(tmp_path / "run" / "adapter")
    last = read_json(tmp_path / "run" / "manifest.json")
    values = [tensor for name, tensor in tensors.items() if name.endswith("lora_E")]
    assert last["best_step"] > 0
    if last["best_step"] > 9:
        assert sum(len(tensor) for tensor in values) == 2 * len(values)
    state = load_file(next((tmp_path / "run" / "checkpoints").iterdir()) / "state.safetensors")
    for kind in ("parameter", "average") if average else ("parameter",):
        on = {
            name: int((tensor != 0).sum())
            for name, tensor in state.items()
            if name.startswith(f"{kind}/") and "lora_E" in name
        }
        assert sum(on.values()) == 2 * len(values), f"{kind}: {on}"


def test_adaloras_penalty_is_in_the_training_gradients_alone(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recft.methods._adalora import AdaLoraAdapter

    training: list[bool] = []
    penalty = AdaLoraAdapter.penalty

    def watched(self: AdaLoraAdapter) -> Tensor | None:
        training.append(torch.is_grad_enabled())
        return penalty(self)

    monkeypatch.setattr(AdaLoraAdapter, "penalty", watched)
    method = {"name": "adalora", "rank": 2}
    tune(toy_recipe(method={**method, "orthogonality": 0.0}, tune={"max_steps": 2}), tmp_path / "without")
    assert training == [True, True], "once a step, and never while validation is scored"
    tune(toy_recipe(method={**method, "orthogonality": 50.0}, tune={"max_steps": 2}), tmp_path / "with")
    first = [json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0]) for run in ("without", "with")]
    assert first[0]["loss"] == first[1]["loss"], "the loss that is told has the penalty in it"


# -- the best step ----------------------------------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Lets every evaluation of a run score the next of these."""
    import sys

    module = sys.modules["recft.tune"]
    left = iter(scores)
    real = module.score_model

    def score(exam: Any, encode: Any) -> Any:
        found = real(exam, encode)
        return dataclasses.replace(found, values=dict.fromkeys(found.values, next(left)))

    monkeypatch.setattr(module, "score_model", score)


def test_the_adapter_that_is_kept_is_that_of_the_best_step(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy_recipe(method=LORA, tune={"eval_every_steps": 1})
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3])
    seen = trajectory(recipe, tmp_path / "run", monkeypatch)
    summary = read_json(tmp_path / "run" / "manifest.json")
    assert (summary["best"], summary["best_step"], summary["steps"]) == (0.3, 2, 4)
    assert_near(adapter_of(tmp_path / "run"), seen[2], 0.0)


def test_patience_ends_the_run(toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_steps": 9, "eval_every_steps": 1, "early_stopping": {"patience": 2}}
    scripted(monkeypatch, [0.1, 0.5, 0.4, 0.3, 0.9])
    summary = tune(toy_recipe(method=LORA, tune=settings), tmp_path / "run")
    assert (summary["steps"], summary["best_step"], summary["stopped_early"]) == (4, 2, True)


def test_a_metric_to_keep_low_is_kept_low(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Calibration would score validation once more than the run is judged.
    settings = {"eval_every_steps": 1, "early_stopping": {"metric": "log_loss"}, "calibration": "none"}
    scripted(monkeypatch, [0.5, 0.2, 0.4, 0.3])
    assert tune(toy_recipe("purchase", "causal", LORA, tune=settings), tmp_path / "run")["best_step"] == 2


def test_the_best_score_is_the_saved_adapters_own(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    from recft.evaluate import evaluate

    summary = tune(toy_recipe(method=LORA, tune={"eval_every_steps": 1}), tmp_path / "run")
    report = evaluate(tmp_path / "run", split="valid")
    assert report["tuned"]["ndcg@10"] == pytest.approx(summary["best"], abs=1e-9)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("method", registry.names("recft.methods"))
def test_an_evaluation_is_without_dropout(
    method: str, quantization: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    module = sys.modules["recft.tune"]
    real, seen = module.score_model, []

    def score(exam: Any, encode: Any) -> Any:
        for seed in range(3):
            torch.manual_seed(seed)
            found = real(exam, encode)
            seen.append(found.values["nll"])
        return found

    monkeypatch.setattr(module, "score_model", score)
    tune(toy_recipe("reply", "causal", method, quantization, tune={"dropout": 0.5, "max_steps": 2}), tmp_path / "run")
    assert len(seen) == 3 and len(set(seen)) == 1, seen


def test_an_undefined_score_is_an_error_that_names_the_metric(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [float("nan")] * 4)
    with pytest.raises(TuneError, match=r"tune.early_stopping.metric: ndcg@10 is undefined.*fix: "):
        tune(toy_recipe(method=LORA), tmp_path / "run")
    assert read_json(tmp_path / "run" / "manifest.json")["exit_status"] == 1


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_an_adapter_that_gets_no_gradient_is_an_error(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TextModel.forward

    def cut_off(model: TextModel, *args: Any, **kwargs: Any) -> Tensor:
        output = forward(model, *args, **kwargs)
        return output.detach() + 0 * output

    monkeypatch.setattr(TextModel, "forward", cut_off)
    with pytest.raises(TuneError, match=r"no gradient reaches its parameters.*method.layers"):
        tune(toy_recipe(method=LORA), tmp_path / "run")


def test_one_batch_without_anything_to_learn_is_none(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = type(registry.load("recft.tasks", "retrieval"))
    loss, calls = task.loss, []

    def first_is_flat(self: Any, config: Any, outputs: Tensor, *rest: Any) -> Tensor:
        calls.append(1)
        found: Tensor = loss(self, config, outputs, *rest)
        return 0 * found if len(calls) == 1 else found

    monkeypatch.setattr(task, "loss", first_is_flat)
    assert tune(toy_recipe(method=LORA), tmp_path / "run")["steps"] == 4


def test_an_adapter_without_effect_is_an_error(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"switching it off changes outputs by 0.0e\+00"):
        tune(toy_recipe(method=LORA, tune={"learning_rate": 1e-30, "weight_decay": 0.0}), tmp_path / "run")


def test_a_loss_that_is_not_finite_is_an_error(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = type(registry.load("recft.tasks", "retrieval"))
    monkeypatch.setattr(task, "loss", lambda self, config, outputs, *rest: outputs.sum() / 0)
    for dtype in ("float32", "float16"):
        recipe = toy_recipe(method=LORA, model={"compute_dtype": dtype})
        with pytest.raises(TuneError, match=r"not finite at step 0.*tune.learning_rate"):
            tune(recipe, tmp_path / dtype)


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retrieval", "purchase"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smaller_dtypes_tune(dtype: str, task: str, toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = toy_recipe(task, "encoder", LORA, model={"compute_dtype": dtype}, tune={"max_steps": 2})
    summary = tune(recipe, tmp_path / "run")
    assert summary["compute_dtype"] == dtype
    assert {tensor.dtype for tensor in adapter_of(tmp_path / "run").values()} == {torch.float32}


def test_float16_leaves_out_a_step_that_overflows_and_halves_its_scale(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_LOSS_SCALE", 2.0**30)
    recipe = toy_recipe(
        method=LORA,
        model={"compute_dtype": "float16"},
        tune={"max_steps": 40, "checkpoint_every_steps": 100, "eval_every_steps": 40},
    )
    tune(recipe, tmp_path / "run")
    progress = read_json(next((tmp_path / "run" / "checkpoints").iterdir()) / "progress.json")
    assert progress["loss_scale"] < 2.0**30


# -- going on ---------------------------------------------------------------------------------------------------------


def test_a_run_starts_from_another_and_reports_both_adapters_on_both_tests(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task, kind in (("retrieval", "encoder"), ("purchase", "encoder")):
        old, new = tmp_path / task / "old", tmp_path / task / "new"
        tune(toy_recipe(task, kind, LORA), old)
        recipe = toy_recipe(task, kind, LORA, tune={"start_from": str(old), "learning_rate": 1e-4})
        seen = trajectory(recipe, new, monkeypatch)
        before = adapter_of(old)
        first = seen[0] if task == "retrieval" else seen[4]  # four steps of the new head alone come first
        assert_near(first, {name: before[name] for name in first}, 0.0)
        report = read_json(new / "eval" / "start_from.json")
        assert set(report) == {"new adapter", "old adapter", "best_step"}
        assert all(set(report[name]) == {"old test", "new test"} for name in ("new adapter", "old adapter"))
        if task == "purchase":  # the head goes on from where it was tuned with the adapter
            name = "classifier.weight"
            moved = (adapter_of(new)[SAVED_PREFIX + name] - before[SAVED_PREFIX + name]).abs().max()
            assert moved < 4 * 1e-4 * 1.5


def test_another_method_cannot_be_started_from(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    tune(toy_recipe(method=LORA), tmp_path / "old")
    recipe = toy_recipe(method={"name": "lora", "rank": 2}, tune={"start_from": str(tmp_path / "old")})
    with pytest.raises(TuneError, match=r"tune.start_from: .* has other method settings.*fix: copy"):
        tune(recipe, tmp_path / "new")


# -- parts ------------------------------------------------------------------------------------------------------------


def test_the_schedule_rises_stays_and_falls() -> None:
    for shape, middle in (("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)):
        rates = [learning_rate(step, 110, 1.0, 10, shape) for step in range(110)]
        assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)]) and max(rates) == 1.0
        assert rates[60] == pytest.approx(middle)
        assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] >= 0
    assert learning_rate(0, 1, 1.0, 0, "cosine") == 1.0


def test_every_epoch_is_another_order_of_all_examples() -> None:
    part: Any = Part(model=None, n_examples=10, batch=None, loss=None)  # type: ignore[arg-type]
    order = Order([part], 4, 6, seed=3)
    rows = [order.at(step)[1].tolist() for step in range(6)]
    assert [len(part) for part in rows] == [4, 4, 2] * 2
    epochs = [[*rows[0], *rows[1], *rows[2]], [*rows[3], *rows[4], *rows[5]]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]


def test_the_optimizers_state_goes_there_and_back(toy_recipe: ToyRecipe) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = toy_recipe().tune

    def fresh() -> dict[str, torch.nn.Parameter]:
        return {"a.weight": torch.nn.Parameter(torch.ones(3, 2)), "a.bias": torch.nn.Parameter(torch.ones(3))}

    grads = [{name: torch.randn(value.shape, generator=generator) for name, value in fresh().items()} for _ in range(4)]

    def step(made: torch.optim.Optimizer, own: dict[str, torch.nn.Parameter], n: int) -> None:
        for name, parameter in own.items():
            parameter.grad = grads[n][name]
        made.step()

    one, two = fresh(), fresh()
    whole = optimizer.make(one, settings, torch.device("cpu"))
    for n in range(4):
        step(whole, one, n)
        if n == 1:
            tensors, plain = optimizer.state_of(whole, one)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            with torch.no_grad():
                for name, parameter in two.items():
                    parameter.copy_(one[name])
    resumed = optimizer.make(two, settings, torch.device("cpu"))
    optimizer.load_state(resumed, two, tensors, json.loads(json.dumps(plain)))
    for n in (2, 3):
        step(resumed, two, n)
    assert all(torch.equal(one[name], two[name]) for name in one)
    decays = {len(group["params"]): group["weight_decay"] for group in whole.param_groups}
    assert [group["weight_decay"] for group in whole.param_groups] == [settings.weight_decay, 0.0], decays


def test_an_8_bit_optimizer_is_refused_on_a_cpu(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(TuneError, match=r"'adamw8bit' on cpu.*fix: set tune.optimizer: adamw"):
        tune(toy_recipe(method=LORA, tune={"optimizer": "adamw8bit"}), tmp_path / "run")


def test_texts_are_cut_to_max_tokens(toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []

    def watched(model: TextModel, tokens: Sequence[Tokens], *rest: Any) -> Any:
        widths.extend(len(row["input_ids"]) for row in tokens)
        return passes(model, tokens, *rest)

    monkeypatch.setattr("recft.training.step.passes", watched)
    tune(toy_recipe("next-item", "causal", LORA, tune={"max_tokens": 11, "max_steps": 1}), tmp_path / "run")
    assert max(widths) == 11


def test_a_prefix_starts_from_the_words_of_the_recipe(toy_recipe: ToyRecipe) -> None:
    def start(method: dict[str, Any]) -> Tensor:
        recipe = toy_recipe(method={"name": "prefix", "virtual_tokens": 4, **method})
        servings = servings_of([(recipe, ())], tokenizer_of(recipe.model))
        made: Tuned = assemble.new(recipe, servings, 4, ["red chair"] * 3, torch.device("cpu"))
        return next(iter(made.attached.tensors().values()))

    words = start({"init": "text", "init_text": "oak desk"})
    assert torch.equal(words, start({"init": "text", "init_text": "oak desk"}))
    assert not torch.equal(words, start({"init": "text", "init_text": "usb cable"}))
    assert not torch.equal(words, start({}))
    assert np.isfinite(words.numpy()).all()


@pytest.mark.parametrize("kind", ["encoder", "causal"])
@pytest.mark.parametrize("method", registry.names("recft.methods"))
def test_gradient_checkpointing_computes_layers_again_and_gives_the_same_adapter(
    method: str, kind: str, toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []

    def counting(folder: str, on: bool) -> dict[str, Tensor]:
        recipe = toy_recipe(kind=kind, method={"name": method}, tune={"max_steps": 2, "gradient_checkpointing": on})
        real = assemble.new

        def new(*args: Any, **options: Any) -> Tuned:
            tuned = real(*args, **options)
            blocks = next(m for m in tuned.model.base.modules() if isinstance(m, torch.nn.ModuleList))
            norm = next(m for m in blocks[0].modules() if "norm" in type(m).__name__.lower())
            norm.register_forward_hook(lambda *_: passes.append(1) if tuned.model.training else None)
            return tuned

        monkeypatch.setattr(assemble, "new", new)
        passes.clear()
        tune(recipe, run=tmp_path / folder)
        monkeypatch.setattr(assemble, "new", real)
        return load_adapter(tmp_path / folder / "adapter")[1]

    plain = counting("plain", on=False)
    n_plain = len(passes)
    again = counting("again", on=True)
    assert len(passes) > n_plain, "a checkpointed block is passed once more in the backward pass"
    for name, tensor in plain.items():
        assert torch.allclose(tensor, again[name], atol=1e-5), name
