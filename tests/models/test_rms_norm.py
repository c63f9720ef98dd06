"""RMS norms in fewer passes: equal to transformers', and put in only where they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from recft.models import rms_norm as module
from recft.models.rms_norm import put_in, rms_norm

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
KINDS: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaModel, LlamaConfig),
    "qwen3": (Qwen3Model, Qwen3Config),
    "gemma2": (Gemma2Model, Gemma2Config),
}
IDS = torch.randint(0, 50, (3, 17), generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def norm_of(dtype: torch.dtype) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(24, eps=1e-4).requires_grad_(False)
    norm.weight.copy_(drawn(24, seed=3))
    return norm.to(dtype)


@pytest.fixture(params=[100, 2**17])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a few rows at a time, once all."""
    monkeypatch.setattr(module, "NUMBERS", request.param)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_and_its_gradient_are_transformers(dtype: torch.dtype) -> None:
    x = (drawn(2, 15, 24) * torch.logspace(-3, 1, 15)[:, None]).requires_grad_()
    turned = drawn(2, 15, 24, seed=1)
    exact = norm_of(torch.float32)
    expected = exact(x)
    of_x = torch.autograd.grad(expected, x, turned)[0]
    near = x.detach().to(dtype).requires_grad_()
    norm = norm_of(dtype)
    plain, found = norm(near), rms_norm(near, norm.weight, 1e-4)
    of_plain, of_found = (torch.autograd.grad(out, near, turned.to(dtype))[0] for out in (plain, found))
    assert found.dtype == of_found.dtype == dtype
    assert torch.equal(near, x.detach().to(dtype))  # nothing was written over
    if dtype == torch.float32:
        assert off(found, expected) < 1e-6 and off(of_found, of_x) < 1e-5
    else:
        assert off(found, expected) < 1.1 * off(plain, expected) and off(of_found, of_x) < 1.1 * off(of_plain, of_x)


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model, config = KINDS[kind]
    return model(config(**SHAPE)).eval().requires_grad_(False)


def results(model: Any) -> tuple[Tensor, Tensor]:
    """Hidden states and the gradient of the embeddings that went in."""
    inside = model.get_input_embeddings()(IDS).detach().requires_grad_()
    out = model(inputs_embeds=inside, use_cache=False).last_hidden_state
    return out.detach(), torch.autograd.grad(out, inside, drawn(*out.shape, seed=2))[0]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_a_model_computes_as_before(kind: str) -> None:
    model = model_of(kind)
    expected, kinds = results(model), {type(module) for module in model.modules()}
    put_in(model)
    found = results(model)
    assert off(found[0], expected[0]) < 1e-5 and off(found[1], expected[1]) < 1e-5
    swapped = {type(module) for module in model.modules()} - kinds
    # Gemma's norm multiplies by one more than its weight.
    assert len(swapped) == (0 if kind == "gemma2" else 1)
    assert {module.__name__ for module in swapped} <= {module.__name__ for module in kinds}
    copied = copy.deepcopy(model)
    assert torch.equal(results(copied)[0], found[0])


def test_an_encoder_without_one_stays_as_it_is() -> None:
    plain = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    model = BertModel(BertConfig(**plain, intermediate_size=48))
    kinds = [type(module) for module in model.modules()]
    put_in(model)
    assert [type(module) for module in model.modules()] == kinds


def test_a_norm_that_is_trained_or_exported_is_transformers() -> None:
    model = model_of("llama")
    put_in(model)
    model.norm.weight.requires_grad_()
    model(input_ids=IDS).last_hidden_state.sum().backward()
    assert model.norm.weight.grad is not None and bool(model.norm.weight.grad.any())
    with torch.no_grad():
        graph = torch.export.export(model, (), {"input_ids": IDS, "use_cache": False}, strict=False)
    assert (
        off(graph.module()(input_ids=IDS, use_cache=False).last_hidden_state, model(input_ids=IDS).last_hidden_state)
        < 1e-5
    )
    assert "addcmul" not in str(graph.graph) and "vecdot" not in str(graph.graph)
