"""LoRA: PEFT reads it, its scales, its targets, its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_toys import (
    INPUTS,
    base_of,
    config_of,
    method_of,
    output,
    plan_of,
    save,
    shake,
    shaken,
    stock_output,
    stock_warnings,
)
from pydantic import ValidationError

from recft.errors import ModelError
from recft.methods._base import Attached
from recft.registry import refused

pytestmark = stock_warnings
VARIANTS: list[dict[str, Any]] = [
    {"rank": 4},
    {"rank": 4, "rslora": True},
    {"rank": 4, "dora": True},
    {"rank": 4, "layers": "last 1", "targets": ["query", "q_proj", "output.dense"]},
]


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("settings", VARIANTS[:3], ids=["plain", "rslora", "dora"])
def test_stock_peft_loads_it_to_equal_outputs(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model, adapter = shaken(kind, "lora", **settings)
    save(tmp_path, adapter.config(), adapter.tensors())
    assert torch.allclose(stock_output(kind, tmp_path), output(model), atol=1e-6)


def test_stock_peft_loads_it_over_nf4(tmp_path: Path) -> None:
    model, adapter = shaken("llama", "lora", "nf4", rank=4, dora=True)
    save(tmp_path, adapter.config(), adapter.tensors())
    assert torch.allclose(stock_output("llama", tmp_path, "nf4"), output(model), atol=1e-6)


def test_names_are_short_only_where_they_mean_the_same_modules(tmp_path: Path) -> None:
    model, adapter = shaken("bert", "lora", layers="last 1", targets=["query", "output.dense"], rank=2)
    assert adapter.config()["target_modules"] == [
        "encoder.layer.2.attention.output.dense",
        "encoder.layer.2.attention.self.query",
        "encoder.layer.2.output.dense",
    ]
    save(tmp_path, adapter.config(), adapter.tensors())
    assert torch.allclose(stock_output("bert", tmp_path), output(model), atol=1e-6)
    whole = shaken("bert", "lora", rank=2)[1].config()["target_modules"]
    assert {"query", "key", "value"} < set(whole) and "dense" not in whole  # the pooler has a `dense` too
    llama = shaken("llama", "lora", rank=2)[1].config()["target_modules"]
    assert llama == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_a_target_that_is_not_there_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match=r"method.targets: .*'q_pro'.*Did you mean 'q_proj'.*v_proj"):
        method_of("lora").attach(base_of("llama"), config_of("lora", targets=["q_pro"]), plan_of())


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 16}, 2.0),
        ({"rank": 16, "rslora": True}, 2.0),
        ({"rank": 4, "alpha": 6}, 1.5),
        ({"rank": 4, "rslora": True, "alpha": 6}, 3.0),
    ],
)
def test_the_scale_is_alpha_over_the_rank_or_its_root(settings: dict[str, Any], scale: float) -> None:
    model = base_of("bert")
    adapter = method_of("lora").attach(model, config_of("lora", **settings), plan_of())
    layer: Any = model.get_submodule("encoder.layer.0.output.dense")
    assert layer.scaling["default"] == scale
    assert adapter.config()["use_rslora"] == settings.get("rslora", False)


def test_rslora_is_written_as_a_plain_lora_and_dora_is_none(tmp_path: Path) -> None:
    model, adapter = shaken("llama", "lora", rank=4, rslora=True)
    plain = method_of("lora").plain_lora(adapter.config(), adapter.tensors())
    assert plain is not None and plain[0]["use_rslora"] is False
    save(tmp_path, *plain)
    assert torch.allclose(stock_output("llama", tmp_path), output(model), atol=1e-6)
    _, dora = shaken("llama", "lora", rank=4, dora=True)
    assert method_of("lora").plain_lora(dora.config(), dora.tensors()) is None


def test_starting_from_activations_takes_the_main_directions_of_real_tokens() -> None:
    model = base_of("bert")
    layer: Any = model.get_submodule("encoder.layer.1.output.dense")
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    output(model)
    handle.remove()
    rows = seen[0][INPUTS["attention_mask"].bool()]
    main = torch.linalg.svd(rows, full_matrices=False).Vh[:3]
    adapter = method_of("lora").attach(model, config_of("lora", rank=3, init="activations"), plan_of())
    start = adapter.parameters()["encoder.layer.1.output.dense.lora_A.default.weight"]
    assert torch.allclose((start @ main.T).abs(), torch.eye(3), atol=1e-3)


def test_an_init_that_reads_texts_needs_texts() -> None:
    plan = type(plan_of())(kind="encoder", base="toy")
    with pytest.raises(ModelError, match=r"method.init.*no training texts"):
        method_of("lora").attach(base_of("bert"), config_of("lora", init="activations"), plan)


def test_values_depend_on_the_seed_alone() -> None:
    def tensors(seed: int) -> Attached:
        plan = type(plan_of())(kind="encoder", base="toy", seed=seed)
        adapter: Attached = method_of("lora").attach(base_of("bert"), config_of("lora"), plan)
        return adapter

    key = "base_model.model.encoder.layer.0.output.dense.lora_A.weight"
    assert torch.equal(tensors(1).tensors()[key], tensors(1).tensors()[key])
    assert not torch.equal(tensors(1).tensors()[key], tensors(2).tensors()[key])


def test_inits_that_change_the_base_are_no_settings() -> None:
    for init in ("pissa", "olora", "loftq"):
        with pytest.raises(ValidationError):
            config_of("lora", init=init)


def test_dora_over_int8_on_a_cpu_is_refused_before_a_model_is_loaded() -> None:
    facts = {"method.name": "lora", "method.dora": True, "model.quantization": "int8", "device": "cpu"}
    refusal = refused(method_of("lora").refusals, facts)
    assert refusal is not None and "int8" in refusal.reason and "nf4" in refusal.fix
    assert refused(method_of("lora").refusals, {**facts, "device": "cuda"}) is None
    assert refused(method_of("lora").refusals, {**facts, "method.dora": False}) is None


@pytest.mark.parametrize("name", ["lora", "adalora", "bottleneck", "prefix"])
@pytest.mark.parametrize("architecture", ["albert", "gpt2"])
def test_architectures_without_blocks_of_their_own_are_refused(name: str, architecture: str) -> None:
    assert refused(method_of(name).refusals, {"method.name": name, "architecture": architecture}) is not None
    assert refused(method_of(name).refusals, {"method.name": name, "architecture": "bert"}) is None


def test_over_a_bfloat16_base_it_multiplies_in_bfloat16_and_stays_float32() -> None:
    exact, _ = shaken("bert", "lora")
    model: Any = base_of("bert")
    model.to(torch.bfloat16)
    adapter = method_of("lora").attach(model, config_of("lora"), plan_of())
    shake(adapter)
    assert {parameter.dtype for parameter in adapter.parameters().values()} == {torch.float32}
    inside: list[torch.dtype] = []
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.register_forward_hook(lambda _module, args, out: inside.extend([args[0].dtype, out.dtype]))
    found, expected = output(model).float(), output(exact)
    assert inside == [torch.bfloat16, torch.bfloat16]
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999
    output(model).float().sum().backward()
    gradients = [parameter.grad for parameter in adapter.parameters().values()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients if gradient is not None)
