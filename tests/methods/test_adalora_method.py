"""AdaLoRA's life: ranks fall, a resume is bitwise, PEFT and the plain LoRA agree with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from method_toys import base_of, config_of, method_of, output, plan_of, save, stock_output, stock_warnings
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from recft.errors import TuneError
from recft.methods._allocation import Importance, Schedule, kept_by_score
from recft.methods._base import Attached

pytestmark = stock_warnings
STEPS = 16


def start(kind: str = "bert", quantization: str = "none", **settings: Any) -> tuple[PreTrainedModel, Any]:
    """A toy with a new AdaLoRA."""
    model = base_of(kind, quantization)
    config = config_of("adalora", **{"rank": 4, **settings})
    return model, method_of("adalora").attach(model, config, plan_of(total_steps=STEPS, dropout=0.1))


def train(model: PreTrainedModel, adapter: Attached, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Some steps towards other outputs, with randomness that depends on the step alone."""
    model.train()
    for step in steps:
        torch.manual_seed(step)
        penalty = adapter.penalty()
        loss = (output(model) - torch.randn(17, 32)).square().mean()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adapter.after_backward(step)
        optimizer.zero_grad()
    model.eval()


def optimizer_of(adapter: Attached) -> torch.optim.Optimizer:
    """AdamW on the adapter."""
    return torch.optim.AdamW(adapter.parameters().values(), lr=3e-3)


def n_on(adapter: Attached) -> int:
    """How many values of E are not zero."""
    return sum(int((tensor != 0).sum()) for name, tensor in adapter.parameters().items() if "lora_E" in name)


@pytest.fixture(scope="module", params=["bert", "llama"])
def tuned(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel, Attached, list[int]]:
    """A toy after a whole life, and the ranks on the way."""
    model, adapter = start(request.param)
    optimizer = optimizer_of(adapter)
    ranks = []
    for step in range(STEPS):
        train(model, adapter, optimizer, range(step, step + 1))
        ranks.append(n_on(adapter))
    return request.param, model, adapter, ranks


def test_ranks_fall_from_the_first_to_the_target_and_stay(
    tuned: tuple[str, PreTrainedModel, Attached, list[int]],
) -> None:
    ranks = tuned[3]
    n_layers = len(tuned[2].parameters()) // 3
    assert ranks[0] == 6 * n_layers and ranks[-1] == 4 * n_layers
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) > 3
    assert ranks[-4:] == [4 * n_layers] * 4
    sizes = {len(tensor) for name, tensor in tuned[2].tensors().items() if name.endswith("lora_E")}
    assert len(sizes) > 1, "ranks were dealt out evenly: nothing was learned about importance"


def test_stock_peft_loads_the_pruned_adapter_to_equal_outputs(
    tuned: tuple[str, PreTrainedModel, Attached, list[int]], tmp_path: Path
) -> None:
    kind, model, adapter, _ = tuned
    save(tmp_path, adapter.config(), adapter.tensors())
    assert adapter.config()["rank_pattern"] is not None
    assert torch.allclose(stock_output(kind, tmp_path), output(model), atol=1e-6)


def test_the_plain_lora_gives_equal_outputs_in_stock_peft(
    tuned: tuple[str, PreTrainedModel, Attached, list[int]], tmp_path: Path
) -> None:
    kind, model, adapter, _ = tuned
    plain = method_of("adalora").plain_lora(adapter.config(), adapter.tensors())
    assert plain is not None and plain[0]["peft_type"] == "LORA" and plain[0]["r"] == plain[0]["lora_alpha"]
    save(tmp_path, *plain)
    assert torch.allclose(stock_output(kind, tmp_path), output(model), atol=1e-5)
    merged = base_of(kind)
    for name, module in merged.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = method_of("lora").merge(*plain, name, module.weight.data)
    assert torch.allclose(output(merged), output(model), atol=1e-5)


def test_the_pruned_adapter_is_restored_and_merged_to_equal_outputs(
    tuned: tuple[str, PreTrainedModel, Attached, list[int]],
) -> None:
    kind, model, adapter, _ = tuned
    fresh = base_of(kind)
    restored = method_of("adalora").restore(fresh, adapter.config(), plan_of())
    restored.load(adapter.tensors())
    assert torch.equal(output(fresh), output(model)) and restored.config() == adapter.config()
    merged = base_of(kind)
    for name, module in merged.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = method_of("adalora").merge(
                adapter.config(), adapter.tensors(), name, module.weight.data
            )
    assert torch.allclose(output(merged), output(model), atol=1e-5)


def test_a_new_adapter_takes_up_a_pruned_one(tuned: tuple[str, PreTrainedModel, Attached, list[int]]) -> None:
    kind, model, adapter, _ = tuned
    fresh, other = start(kind)
    other.load(adapter.tensors())
    assert torch.allclose(output(fresh), output(model), atol=1e-6)
    train(fresh, other, optimizer_of(other), range(STEPS))
    assert n_on(other) == n_on(adapter)


@pytest.mark.parametrize("stop", [1, 7, 14], ids=["warm-up", "falling", "fallen"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_resume_is_bitwise(stop: int, quantization: str) -> None:
    model, adapter = start(quantization=quantization)
    optimizer = optimizer_of(adapter)
    train(model, adapter, optimizer, range(stop))
    saved: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in adapter.parameters().items()}
    state, moments = adapter.state(), copy.deepcopy(optimizer.state_dict())
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    resumed_model, resumed = start(quantization=quantization)
    with torch.no_grad():
        for name, parameter in resumed.parameters().items():
            parameter.copy_(saved[name])
    resumed.load_state(state)
    resumed_optimizer = optimizer_of(resumed)
    resumed_optimizer.load_state_dict(moments)
    train(model, adapter, optimizer, range(stop, STEPS))
    train(resumed_model, resumed, resumed_optimizer, range(stop, STEPS))
    assert resumed.config() == adapter.config()
    assert all(torch.equal(tensor, resumed.tensors()[name]) for name, tensor in adapter.tensors().items())


def test_the_last_allocation_is_made_up_for_where_its_step_was_skipped() -> None:
    model, adapter = start()
    optimizer = optimizer_of(adapter)
    last = adapter.schedule.last
    train(model, adapter, optimizer, range(last))
    train(model, adapter, optimizer, range(last + 1, STEPS))
    assert n_on(adapter) == 4 * len(adapter.parameters()) // 3


def test_saving_between_two_allocations_keeps_what_came_back() -> None:
    model, adapter = start(every_steps=4)
    train(model, adapter, optimizer_of(adapter), range(8))
    fresh = base_of("bert")
    restored = method_of("adalora").restore(fresh, adapter.config(), plan_of())
    restored.load(adapter.tensors())
    assert torch.equal(output(fresh), output(model))


def test_the_orthogonality_term_is_the_papers_and_not_in_the_forward() -> None:
    model, adapter = start()
    first = adapter.penalty()
    assert first is not None and first.item() < 1e-9
    base = output(base_of("bert"))
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            if "lora_E" not in name:
                parameter.mul_(2.0)
    term = adapter.penalty()
    assert term is not None and term.item() == pytest.approx(0.1 * 6 * 9)  # ‖4·I - I‖² of 6 directions
    assert torch.equal(output(model), base)
    assert start(orthogonality=0.0)[1].penalty() is None


def test_ranks_that_need_not_fall_do_not() -> None:
    model, adapter = start(rank=3, initial_rank=3)
    train(model, adapter, optimizer_of(adapter), range(STEPS))
    assert n_on(adapter) == 3 * len(adapter.parameters()) // 3
    assert adapter.config()["rank_pattern"] is None


def test_called_after_gradients_are_cleared_it_says_so() -> None:
    _, adapter = start()
    with pytest.raises(TuneError, match=r"has no gradient.*before zero_grad"):
        adapter.after_backward(0)


def test_an_adapter_that_is_only_loaded_has_no_life() -> None:
    model = base_of("bert")
    adapter = method_of("adalora").attach(model, config_of("adalora"), plan_of())
    adapter.after_backward(0)
    assert {name.split(".")[0] for name in adapter.state()} == {"kept"}


def test_settings_that_leave_no_room_are_refused() -> None:
    with pytest.raises(ValidationError, match="initial_rank is at least rank"):
        config_of("adalora", rank=8, initial_rank=4)
    with pytest.raises(ValidationError, match="below 1"):
        config_of("adalora", warmup_share=0.5, final_share=0.5)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 10, 1000])
def test_every_run_however_short_reaches_the_target(total_steps: int) -> None:
    schedule = Schedule.of_run(total_steps, (0.1, 0.3), None, (60, 40))
    due = [step for step in range(total_steps) if schedule.due(step)]
    budgets = [schedule.budget(step) for step in due]
    assert budgets[-1] == 40 and budgets == sorted(budgets, reverse=True)
    model = base_of("bert")
    method_of("adalora").attach(model, config_of("adalora"), plan_of(total_steps))


def test_importance_equals_a_slow_reference() -> None:
    torch.manual_seed(0)
    names = {"E": (2, 1), "A": (2, 3), "B": (4, 2)}
    parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in names.items()}
    importance = Importance()
    mean = {name: [0.0] * parameter.numel() for name, parameter in parameters.items()}
    spread = {name: [0.0] * parameter.numel() for name, parameter in parameters.items()}
    for _ in range(3):
        for name, parameter in parameters.items():
            parameter.grad = torch.randn_like(parameter)
            flat = zip(parameter.flatten().tolist(), parameter.grad.flatten().tolist(), strict=True)
            for index, (value, gradient) in enumerate(flat):
                now = abs(value * gradient)
                mean[name][index] = 0.85 * mean[name][index] + 0.15 * now
                spread[name][index] = 0.85 * spread[name][index] + 0.15 * abs(now - mean[name][index])
        importance.observe(parameters)
    score = {name: [m * s for m, s in zip(mean[name], spread[name], strict=True)] for name in names}
    wanted = [score["E"][i] + sum(score["A"][3 * i : 3 * i + 3]) / 3 + sum(score["B"][i::2]) / 4 for i in range(2)]
    assert importance.scores("E", "A", "B").tolist() == pytest.approx(wanted, rel=1e-5)


def test_the_budget_goes_to_the_best_of_all_layers_and_ties_to_the_first() -> None:
    kept = kept_by_score({"a": torch.tensor([1.0, 5.0, 1.0]), "b": torch.tensor([1.0, 7.0])}, 3)
    assert {name: mask.tolist() for name, mask in kept.items()} == {"a": [True, True, False], "b": [False, True]}
