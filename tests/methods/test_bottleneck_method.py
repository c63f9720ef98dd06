"""Bottleneck adapters: where they sit, what they compute, which architectures they know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from method_toys import SHAPE, base_of, config_of, method_of, output, plan_of, shake, shaken
from torch import Tensor
from transformers import PreTrainedModel

from recft.errors import ModelError

PLACES = {
    ("bert", "houlsby"): ["encoder.layer.1.attention.output.dense", "encoder.layer.1.output.dense"],
    ("bert", "pfeiffer"): ["encoder.layer.1.output.dense"],
    ("bert", "parallel"): ["encoder.layer.1.output.dense"],
    ("llama", "houlsby"): ["layers.1.self_attn.o_proj", "layers.1.mlp.down_proj"],
    ("llama", "pfeiffer"): ["layers.1.mlp.down_proj"],
    ("llama", "parallel"): ["layers.1.mlp.down_proj"],
}


@pytest.mark.parametrize(("kind", "placement"), list(PLACES))
def test_adapters_sit_where_the_placement_says(kind: str, placement: str) -> None:
    _, adapter = shaken(kind, "bottleneck", layers=[1], placement=placement)
    assert list(dict.fromkeys(name.split(".bottleneck")[0] for name in adapter.parameters())) == PLACES[kind, placement]
    assert all(name.startswith("base_model.model.") for name in adapter.tensors())
    assert adapter.config()["peft_type"] == "BOTTLENECK"


def by_hand(part: Any, x: Tensor, scale: float, activation: Any) -> Tensor:
    """The formula."""
    inner = x @ part.down.weight.T + part.down.bias
    added: Tensor = scale * (activation(inner) @ part.up.weight.T + part.up.bias)
    return added


def test_behind_the_layer_it_reads_the_layers_output() -> None:
    model, _ = shaken("bert", "bottleneck", placement="pfeiffer", activation="gelu", scale=0.5)
    layer: Any = model.get_submodule("encoder.layer.0.output.dense")
    x = torch.randn(3, 64)
    plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
    wanted = plain + by_hand(layer.bottleneck, plain, 0.5, torch.nn.functional.gelu)
    assert torch.allclose(layer(x), wanted, atol=1e-6)


@pytest.mark.parametrize("scale", [None, "learned"])
def test_beside_the_feed_forward_part_it_reads_what_came_into_it(scale: str | None) -> None:
    model, adapter = shaken("llama", "bottleneck", placement="parallel", activation="silu", scale=scale)
    mlp: Any = model.get_submodule("layers.0.mlp")
    x = torch.randn(2, 5, 32)
    with adapter.disabled():
        plain = mlp(x)
    part = mlp.down_proj.bottleneck
    assert isinstance(part.scale, torch.nn.Parameter) == (scale == "learned")
    wanted = plain + by_hand(part, x, part.scale, torch.nn.functional.silu)
    assert torch.allclose(mlp(x), wanted, atol=1e-6)
    assert float(method_scale(scale)) == 4.0


def method_scale(scale: str | None) -> Tensor:
    """The scale that a new parallel adapter starts with."""
    model = base_of("llama")
    method_of("bottleneck").attach(model, config_of("bottleneck", placement="parallel", scale=scale), plan_of())
    part: Any = model.get_submodule("layers.0.mlp.down_proj.bottleneck")
    return torch.as_tensor(part.scale).detach()


@pytest.mark.parametrize("placement", ["houlsby", "parallel"])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Roberta", {}),
        ("XLMRoberta", {}),
        ("DistilBert", {}),
        ("ModernBert", {"initializer_range": 0.5}),
        ("DebertaV2", {}),
        ("MPNet", {}),
        ("Electra", {"embedding_size": 32}),
        ("Qwen2", {"num_key_value_heads": 2}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
        ("Mistral", {"num_key_value_heads": 2}),
        ("Gemma", {"num_key_value_heads": 2, "head_dim": 8}),
        ("Phi3", {"num_key_value_heads": 2}),
        ("GPTNeoX", {}),
    ],
)
def test_many_architectures_are_recognised(architecture: str, settings: dict[str, Any], placement: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        **{**SHAPE, "pad_token_id": 0, "eos_token_id": 2, **settings}
    )
    model: PreTrainedModel = getattr(transformers, f"{architecture}Model")(config).eval()
    before = output(model)
    adapter = method_of("bottleneck").attach(model, config_of("bottleneck", placement=placement), plan_of())
    assert torch.equal(output(model), before)
    shake(adapter)
    output(model).square().sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters().values())
    assert not torch.allclose(output(model), before, atol=1e-4)


def test_a_block_with_unknown_parts_is_refused() -> None:
    model: Any = base_of("bert")
    for layer in model.encoder.layer:
        layer.transform = layer.intermediate
        del layer.intermediate
    with pytest.raises(ModelError, match=r"method.placement: the parts of 'encoder.layer.0' in BertModel"):
        method_of("bottleneck").attach(model, config_of("bottleneck"), plan_of())
