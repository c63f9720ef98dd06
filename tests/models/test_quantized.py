"""k-bit bases: exact float32 weights, and no silent change by an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from recft.models.base import load_base
from recft.models.weights import float32_base, weight_of
from recft.schema import ModelSettings

CPU = torch.device("cpu")
IDS = torch.tensor([[2, 9, 14, 30, 7, 3], [2, 21, 8, 3, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long()}
BITS = ["nf4", "fp4", "int8"]


@pytest.fixture(params=["tiny_bert", "tiny_llama"])
def base(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def settings_of(folder: Path, quantization: str) -> ModelSettings:
    return ModelSettings.model_validate({"base": str(folder), "quantization": quantization})


def gradients(model: nn.Module, adapters: dict[str, nn.Parameter]) -> list[Tensor]:
    for parameter in adapters.values():
        parameter.grad = None
    model.train()
    model(**BATCH).last_hidden_state.square().mean().backward()
    return [parameter.grad.clone() for parameter in adapters.values() if parameter.grad is not None]


def with_lora(model: nn.Module) -> dict[str, nn.Parameter]:
    """A plain low-rank update beside every k-bit layer, by hooks: no library stands between."""
    torch.manual_seed(0)
    adapters: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if type(module).__name__ not in ("Linear4bit", "SteadyLinear8bitLt"):
            continue
        down = nn.Parameter(torch.randn(2, module.in_features) * 0.1)
        up = nn.Parameter(torch.randn(module.out_features, 2) * 0.1)
        adapters |= {f"{name}.down": down, f"{name}.up": up}
        module.register_forward_hook(lambda _m, args, out, down=down, up=up: out + args[0] @ down.T @ up.T)
    return adapters


@pytest.mark.parametrize("quantization", BITS)
def test_gradients_before_and_after_an_evaluation_are_equal(base: Path, quantization: str) -> None:
    model = load_base(settings_of(base, quantization), "embedding", CPU, torch.bfloat16).model
    adapters = with_lora(model)
    with torch.no_grad():
        for parameter in model.parameters():  # so that products of both dtypes meet in none
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
    before = gradients(model, adapters)
    weights = {name: weight_of(module) for name, module in model.named_modules() if hasattr(module, "in_features")}
    training = model(**BATCH).last_hidden_state.detach()
    model.eval()
    with torch.no_grad():
        evaluated = model(**BATCH).last_hidden_state
    torch.testing.assert_close(evaluated, training, atol=1e-5, rtol=1e-5)
    after = gradients(model, adapters)
    assert before
    assert len(after) == len(before)
    for left, right in zip(before, after, strict=True):
        assert torch.equal(left, right)
    for name, weight in weights.items():
        assert torch.equal(weight_of(model.get_submodule(name)), weight)


@pytest.mark.parametrize("quantization", BITS)
def test_dequantized_base_computes_as_the_quantized_one(base: Path, quantization: str) -> None:
    settings = settings_of(base, quantization)
    quantized = load_base(settings, "embedding", CPU, torch.float32).model
    plain = float32_base(settings, "embedding", torch.float32, "dequantized").model
    original = float32_base(settings, "embedding", torch.float32, "original").model
    assert all(parameter.dtype == torch.float32 for parameter in plain.parameters())
    with torch.no_grad():
        kbit, exact, published = (model(**BATCH).last_hidden_state for model in (quantized, plain, original))
    real = BATCH["attention_mask"].bool()
    torch.testing.assert_close(kbit[real], exact[real], atol=1e-5, rtol=1e-4)
    assert (exact - published)[real].abs().max() > 1e-3  # quantizing did change something


def test_original_is_the_file(base: Path) -> None:
    plain = float32_base(settings_of(base, "nf4"), "embedding", torch.bfloat16, "original").model
    stock = AutoModel.from_pretrained(base)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name


def test_dequantized_base_can_be_cast_and_saved_as_any_other(base: Path, tmp_path: Path) -> None:
    plain = float32_base(settings_of(base, "nf4"), "embedding", torch.float32, "dequantized").model
    plain.float().save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert not hasattr(again.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(again(**BATCH).last_hidden_state, plain(**BATCH).last_hidden_state)
    assert plain.bfloat16().dtype == torch.bfloat16


@pytest.mark.parametrize("quantization", BITS)
def test_heads_and_embeddings_are_never_quantized(base: Path, quantization: str) -> None:
    head = "classifier" if "bert" in base.name else "answers"
    model = load_base(settings_of(base, quantization), head, CPU, torch.float32).model
    kbit = [
        name for name, module in model.named_modules() if type(module).__name__ in ("Linear4bit", "SteadyLinear8bitLt")
    ]
    assert kbit
    assert not [name for name in kbit if any(word in name for word in ("head", "classifier", "pooler", "embed"))]


@pytest.mark.parametrize("quantization", BITS)
def test_what_sits_on_a_quantized_layer_is_evaluated_without_dropout(base: Path, quantization: str) -> None:
    model = load_base(settings_of(base, quantization), "embedding", CPU, torch.float32).model
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.add_module("beside", nn.Dropout(0.5))
    model.train()
    assert all(layer.get_submodule("beside").training for layer in layers)
    model.eval()
    assert not any(layer.get_submodule("beside").training for layer in layers)
