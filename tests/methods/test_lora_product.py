"""LoRA's product in one function: equal to PEFT's layer, and PEFT's layer again wherever it has to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_toys import INPUTS, base_of, config_of, method_of, output, plan_of, shake, shaken
from torch import Tensor, nn

from recft.methods import _lora_product, lora
from recft.methods._lora_product import low_rank_linear


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, right: Tensor, left: Tensor, scale: float) -> Tensor:
    """The slow reference: PEFT's formula, A and B in x's dtype."""
    low = nn.functional.linear(x, right.to(x.dtype))
    return nn.functional.linear(x, weight, bias) + nn.functional.linear(low, left.to(x.dtype)) * scale


def parts(dtype: torch.dtype, bias: bool = True) -> Any:
    """x, W, b, A, B, s with gradients where a layer has them."""
    drawn = torch.Generator().manual_seed(3)

    def of(*shape: int, dtype: torch.dtype = dtype, trained: bool = False) -> Tensor:
        return torch.randn(shape, generator=drawn).to(dtype).requires_grad_(trained)

    weights = of(12, 20), of(12) if bias else None
    own = of(4, 20, dtype=torch.float32, trained=True), of(12, 4, dtype=torch.float32, trained=True)
    return of(2, 5, 20, trained=True), *weights, *own, 1.5


def results(function: Callable[..., Tensor], given: Any) -> list[Tensor]:
    """The output, and the gradients of x, A and B."""
    x, _, _, right, left, _ = given
    out = function(*given)
    turned = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (x, right, left), turned)]


def off(found: Tensor, expected: Tensor) -> float:
    """How far two tensors are from one another, relative to the second."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_plain_formula(bias: bool) -> None:
    given = parts(torch.float32, bias)
    for found, expected in zip(results(low_rank_linear, given), results(plain, given), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert off(found, expected) < 1e-6


def test_in_bfloat16_it_is_as_near_to_float32_as_the_plain_formula() -> None:
    given = parts(torch.bfloat16)
    exact = [part.detach().float().requires_grad_(part.requires_grad) for part in given[:5]]
    wanted = results(plain, (*exact, given[5]))
    for found, slow, expected in zip(results(low_rank_linear, given), results(plain, given), wanted, strict=True):
        assert found.dtype == slow.dtype
        assert off(found, expected) < 1.3 * off(slow, expected)


def test_gradients_are_the_numeric_ones() -> None:
    given = tuple(part.detach().double() if isinstance(part, Tensor) else part for part in parts(torch.float32))
    for place in (0, 3, 4):
        given[place].requires_grad_()
    assert torch.autograd.gradcheck(low_rank_linear, given)


def test_an_input_without_a_gradient_gets_none() -> None:
    x, weight, bias, right, left, scale = parts(torch.float32)
    low_rank_linear(x.detach(), weight, bias, right, left, scale).sum().backward()
    assert right.grad is not None and left.grad is not None
    assert not low_rank_linear(x.detach(), weight, bias, right.detach(), left.detach(), scale).requires_grad


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each product that goes the fast way."""
    made: list[int] = []

    def counted(*given: Any) -> Tensor:
        made.append(1)
        return low_rank_linear(*given)

    monkeypatch.setattr(_lora_product, "low_rank_linear", counted)
    return made


def slow(kind: str, monkeypatch: pytest.MonkeyPatch, quantization: str = "none", **settings: Any) -> Any:
    """The same adapter in PEFT's own layers."""
    with monkeypatch.context() as patch:
        patch.setattr(_lora_product, "in_one_product", lambda layer: None)
        return shaken(kind, "lora", quantization, **settings)


def trained(model: Any, adapter: Any) -> tuple[Tensor, Tensor]:
    """A forward's output and all gradients of the adapter, one after the other."""
    model.train()
    out = output(model)
    out.square().mean().backward()
    return out.detach(), torch.cat([parameter.grad.flatten() for parameter in adapter.parameters().values()])


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_model_trains_as_with_pefts_layers(
    kind: str, quantization: str, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    found = trained(*shaken(kind, "lora", quantization, rank=4, rslora=True))
    assert bool(calls) == (quantization == "none")
    calls.clear()
    expected = trained(*slow(kind, monkeypatch, quantization, rank=4, rslora=True))
    assert not calls
    assert off(found[0], expected[0]) < 1e-5 and off(found[1], expected[1]) < 1e-5


def test_off_it_is_the_base_and_on_again_the_adapter(calls: list[int]) -> None:
    model, adapter = shaken("llama", "lora")
    on = output(model)
    calls.clear()
    with adapter.disabled():
        assert torch.equal(output(model), output(base_of("llama")))
    assert not calls
    assert torch.equal(output(model), on)


def test_with_gradient_checkpointing_gradients_are_the_same() -> None:
    model: Any
    model, adapter = shaken("llama", "lora", rank=4)
    expected = trained(model, adapter)[1]
    for parameter in adapter.parameters().values():
        parameter.grad = None
    model.activation_checkpointing_enable()
    assert off(trained(model, adapter)[1], expected) < 1e-6


def test_a_copy_of_the_model_computes_the_same_and_is_on_its_own() -> None:
    model, adapter = shaken("bert", "lora", rank=4)
    copied = copy.deepcopy(model)
    assert torch.equal(output(copied), output(model))
    before = output(copied)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1)
    assert torch.equal(output(copied), before) and not torch.equal(output(model), before)


def test_with_dropout_training_takes_pefts_layer_and_evaluation_does_not(calls: list[int]) -> None:
    model = base_of("bert")
    shake(method_of("lora").attach(model, config_of("lora"), plan_of(dropout=0.5)))
    model.train()
    assert not torch.equal(output(model), output(model))
    assert not calls
    model.eval()
    output(model)
    assert calls


def test_dora_and_autocast_take_pefts_layer(calls: list[int]) -> None:
    output(shaken("bert", "lora", dora=True)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output(shaken("bert", "lora")[0])
    assert not calls


def test_an_exported_graph_has_plain_products_only() -> None:
    model, _ = shaken("llama", "lora", rank=4)
    model.config.use_cache = False
    with torch.no_grad():
        graph = torch.export.export(model, (), dict(INPUTS), strict=False)
        found = graph.module()(**INPUTS).last_hidden_state
    assert "_Product" not in str(graph)
    assert off(found[INPUTS["attention_mask"].bool()], output(model)) < 1e-5


def test_layers_keep_pefts_class_name_and_their_parameters_names() -> None:
    model, adapter = shaken("bert", "lora", rank=2)
    layer: Any = model.get_submodule("encoder.layer.0.output.dense")
    assert type(layer).__name__ == "Linear" and isinstance(layer, type(layer).__mro__[1])
    assert {name.split(".", 5)[-1] for name in adapter.parameters()} >= {"lora_A.default.weight"}
    assert lora.MEMBER.mergeable
