"""What every method promises, over tiny bases of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_toys import CASES, IDENTIFIERS, base_of, config_of, method_of, output, plan_of, shake, shaken

from recft import registry
from recft.errors import ExportError, ModelError
from recft.models.base import load_base
from recft.schema import ModelSettings

cases = pytest.mark.parametrize(("name", "settings"), CASES, ids=IDENTIFIERS)
kinds = pytest.mark.parametrize("kind", ["bert", "llama"])


def test_every_method_is_under_this_contract() -> None:
    assert {name for name, _ in CASES} == set(registry.names("recft.methods"))


@kinds
@cases
def test_a_new_adapter_is_the_identity_where_it_says_so_and_never_changes_the_global_generator(
    kind: str, name: str, settings: dict[str, Any]
) -> None:
    model = base_of(kind)
    before = output(model)
    state = torch.get_rng_state()
    method_of(name).attach(model, config_of(name, **settings), plan_of())
    assert torch.equal(state, torch.get_rng_state())
    difference = (output(model) - before).abs().max()
    assert (difference < 1e-6) == method_of(name).starts_as_identity


@cases
def test_dropout_works_while_training_only(name: str, settings: dict[str, Any]) -> None:
    model = base_of("bert")
    adapter = method_of(name).attach(model, config_of(name, **settings), plan_of(dropout=0.5))
    shake(adapter)
    assert torch.equal(output(model), output(model))
    model.train()
    assert not torch.equal(output(model), output(model))


@kinds
@cases
def test_gradients_reach_its_own_parameters_and_no_others(kind: str, name: str, settings: dict[str, Any]) -> None:
    model, adapter = shaken(kind, name, **settings)
    output(model).square().sum().backward()
    own = adapter.parameters()
    named = dict(model.named_parameters())
    assert {key for key, parameter in named.items() if parameter.grad is not None} == set(own)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in own.values())
    assert all(parameter.dtype == torch.float32 and named[key] is parameter for key, parameter in own.items())


@kinds
@cases
def test_the_number_of_parameters_is_the_formula_s(kind: str, name: str, settings: dict[str, Any]) -> None:
    config = config_of(name, layers="last 2", **settings)
    model = base_of(kind)
    expected = method_of(name).expected_parameters(model, config)
    assert len([name for name, _ in model.named_parameters()]) == len([n for n, _ in base_of(kind).named_parameters()])
    adapter = method_of(name).attach(model, config, plan_of())
    assert sum(parameter.numel() for parameter in adapter.parameters().values()) == expected


@kinds
@cases
def test_saved_and_restored_it_gives_the_same_bits(kind: str, name: str, settings: dict[str, Any]) -> None:
    model, adapter = shaken(kind, name, layers=[0, 2], **settings)
    fresh = base_of(kind)
    restored = method_of(name).restore(fresh, adapter.config(), plan_of())
    restored.load(adapter.tensors())
    assert torch.equal(output(fresh), output(model))
    assert restored.config() == adapter.config()
    assert restored.tensors().keys() == adapter.tensors().keys()
    assert all(torch.equal(tensor, restored.tensors()[key]) for key, tensor in adapter.tensors().items())


@cases
def test_tensors_of_another_adapter_are_refused(name: str, settings: dict[str, Any]) -> None:
    _, adapter = shaken("bert", name, **settings)
    tensors = adapter.tensors()
    with pytest.raises(ModelError, match="1 tensors missing"):
        adapter.load(dict(list(tensors.items())[1:]))
    wider = {key: torch.nn.functional.pad(tensor, (0, 1) if tensor.ndim else ()) for key, tensor in tensors.items()}
    with pytest.raises(ModelError, match="has shape"):
        adapter.load(wider)


@kinds
@cases
def test_switched_off_the_base_is_back_to_the_bit(kind: str, name: str, settings: dict[str, Any]) -> None:
    before = output(base_of(kind))
    model, adapter = shaken(kind, name, **settings)
    tuned = output(model)
    assert not torch.allclose(tuned, before, atol=1e-4)
    with adapter.disabled():
        assert torch.equal(output(model), before)
    assert torch.equal(output(model), tuned)
    assert all(parameter.requires_grad for parameter in adapter.parameters().values())


@kinds
@cases
def test_only_the_chosen_layers_are_touched(kind: str, name: str, settings: dict[str, Any]) -> None:
    model, adapter = shaken(kind, name, layers=[1], **settings)
    if name == "prefix":
        touched = [key for key, module in model.named_modules() if hasattr(module, "recft_prefix")]
    else:
        touched = list(adapter.parameters())
    assert touched and all(".1." in f".{key}" and "pooler" not in key for key in touched)


@cases
def test_a_layer_that_is_not_there_is_named(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"'last 9'.*last N.*from 1 to 3"):
        method_of(name).attach(base_of("bert"), config_of(name, layers="last 9", **settings), plan_of())


@kinds
@cases
def test_merged_weights_give_the_unmerged_outputs_or_the_method_says_why_not(
    kind: str, name: str, settings: dict[str, Any]
) -> None:
    method = method_of(name)
    model, adapter = shaken(kind, name, **settings)
    plain = base_of(kind)
    linears = [(key, module) for key, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    if not method.mergeable:
        with pytest.raises(ExportError, match=r"export --to merged.*onnx"):
            method.merge(adapter.config(), adapter.tensors(), *_weight(linears[0]))
        return
    for key, module in linears:
        module.weight.data = method.merge(adapter.config(), adapter.tensors(), *_weight((key, module)))
    assert torch.allclose(output(plain), output(model), atol=1e-5)


def _weight(named: tuple[str, torch.nn.Linear]) -> tuple[str, torch.Tensor]:
    return named[0], named[1].weight.data


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # its new name is not in 5.20
@kinds
@cases
def test_gradient_checkpointing_gives_equal_gradients_where_it_is_allowed(
    kind: str, name: str, settings: dict[str, Any]
) -> None:
    assert method_of(name).allows_gradient_checkpointing
    gradients = []
    for checkpointing in (False, True):
        model, adapter = shaken(kind, name, **settings)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        output(model).square().sum().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters().values()])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("kind", "quantization"), [("bert", "nf4"), ("llama", "nf4"), ("bert", "int8"), ("llama", "fp4")]
)
@pytest.mark.parametrize(
    ("name", "settings"),
    [CASES[0], CASES[1], CASES[4], CASES[6], CASES[8], CASES[9]],
    ids=["lora", "dora", "adalora", "houlsby", "parallel", "prefix"],
)
def test_over_quantized_bases_it_keeps_its_promises(
    kind: str, name: str, settings: dict[str, Any], quantization: str
) -> None:
    if settings.get("dora") and quantization == "int8":
        pytest.skip("refused: see test_lora_method.py")
    model = base_of(kind, quantization)
    before = output(model)
    adapter = method_of(name).attach(model, config_of(name, **settings), plan_of())
    if method_of(name).starts_as_identity:
        assert torch.allclose(output(model), before, atol=1e-6)
    shake(adapter)
    tuned = output(model)
    gradients = []
    for _ in range(2):  # a validation between two steps must not change the second one
        model.train()
        output(model).square().sum().backward()
        gradients.append(
            {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        )
        model.zero_grad()
        model.eval()
        output(model)
    assert set(gradients[0]) == set(adapter.parameters())
    assert all(torch.equal(gradient, gradients[1][key]) for key, gradient in gradients[0].items())
    with adapter.disabled():
        assert torch.equal(output(model), before)
    fresh = base_of(kind, quantization)
    method_of(name).restore(fresh, adapter.config(), plan_of()).load(adapter.tensors())
    assert torch.equal(output(fresh), tuned)


@cases
def test_over_a_bfloat16_base_the_adapter_stays_float32(name: str, settings: dict[str, Any]) -> None:
    model = base_of("llama").bfloat16()
    before = output(model)
    adapter = method_of(name).attach(model, config_of(name, **settings), plan_of())
    assert {parameter.dtype for parameter in adapter.parameters().values()} == {torch.float32}
    assert output(model).dtype == torch.bfloat16
    if method_of(name).starts_as_identity:
        assert torch.allclose(output(model), before, atol=1e-1)
    output(model).float().square().sum().backward()
    shake(adapter)
    assert not torch.equal(output(model), before)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@cases
def test_over_a_quantized_base_that_computes_in_bfloat16_it_trains(
    name: str, settings: dict[str, Any], quantization: str, tiny_bert: Path
) -> None:
    if settings.get("dora") and quantization == "int8":
        pytest.skip("refused: see test_lora_method.py")
    base = ModelSettings.model_validate({"base": str(tiny_bert), "quantization": quantization})
    model = load_base(base, "embedding", torch.device("cpu"), torch.bfloat16).model
    adapter = method_of(name).attach(model, config_of(name, **settings), plan_of())
    model.train()
    assert output(model).dtype == torch.bfloat16
    output(model).float().square().sum().backward()
    shake(adapter)
    assert output(model).dtype == torch.bfloat16
