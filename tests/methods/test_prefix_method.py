"""Prefix-tuning: equal to PEFT's where PEFT has it, right where PEFT has none, refused where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from method_toys import (
    IDS,
    INPUTS,
    MASK,
    SHAPE,
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
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from recft.errors import ModelError
from recft.methods._base import Plan
from recft.registry import refused

pytestmark = stock_warnings


def model_of(architecture: str, **settings: Any) -> PreTrainedModel:
    """A tiny model with random weights, always the same."""
    torch.manual_seed(0)
    shape = {**SHAPE, "pad_token_id": 0, **settings}
    config = getattr(transformers, f"{architecture}Config")(**shape)
    model: PreTrainedModel = getattr(transformers, f"{architecture}Model")(config)
    model.eval()
    return model


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_stock_peft_loads_it_to_equal_outputs(kind: str, quantization: str, tmp_path: Path) -> None:
    model, adapter = shaken(kind, "prefix", quantization, virtual_tokens=5)
    save(tmp_path, adapter.config(), adapter.tensors())
    assert torch.allclose(stock_output(kind, tmp_path, quantization), output(model), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("Roberta", {"pad_token_id": 3}),
        ("XLMRoberta", {"pad_token_id": 3}),
        ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    ],
)
def test_other_architectures_equal_peft_too(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(architecture, **settings)
    adapter = method_of("prefix").attach(model, config_of("prefix", virtual_tokens=5), plan_of())
    save(tmp_path, adapter.config(), adapter.tensors())
    stock = PeftModel.from_pretrained(model_of(architecture, **settings), tmp_path).eval()
    assert torch.allclose(output(stock), output(model), atol=1e-6)


def test_gradients_equal_those_of_pefts_own_prefix() -> None:
    model, adapter = shaken("llama", "prefix", virtual_tokens=5)
    output(model).square().sum().backward()
    (ours,) = (parameter.grad for parameter in adapter.parameters().values())
    config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5)
    peft: Any = get_peft_model(base_of("llama"), config)
    peft.prompt_encoder["default"].embedding.weight.data.copy_(adapter.tensors()["prompt_embeddings"])
    output(peft).square().sum().backward()
    assert ours is not None
    assert torch.allclose(ours, peft.prompt_encoder["default"].embedding.weight.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("DistilBert", {}),
        ("ModernBert", {"global_attn_every_n_layers": 2, "local_attention": 4, "initializer_range": 0.5}),
        ("Electra", {"embedding_size": 32}),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 4}),
    ],
)
def test_padding_and_neighbours_do_not_matter(architecture: str, settings: dict[str, Any]) -> None:
    model = model_of(architecture, **settings)
    before = output(model)
    adapter = method_of("prefix").attach(model, config_of("prefix", virtual_tokens=5), plan_of())
    together = output(model)
    alone = torch.cat(
        [model(input_ids=ids[mask.bool()][None]).last_hidden_state[0] for ids, mask in zip(IDS, MASK, strict=True)]
    )
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, before, atol=1e-4)
    together.square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapter.parameters().values()
    )


def test_padding_on_the_left_with_position_ids_of_the_text_gives_the_same() -> None:
    model, _ = shaken("llama", "prefix", virtual_tokens=5)
    n_real = int(MASK[1].sum())
    shift = MASK.shape[1] - n_real
    inputs = {"input_ids": IDS[1:2].roll(shift, 1), "attention_mask": MASK[1:2].roll(shift, 1)}
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    left = model(**inputs, position_ids=positions).last_hidden_state[0, shift:]
    right = model(input_ids=IDS[1:2, :n_real]).last_hidden_state[0]
    assert torch.allclose(left, right, atol=1e-5)


def test_a_four_dimensional_mask_is_widened_as_it_is() -> None:
    model, _ = shaken("bert", "prefix", virtual_tokens=5)
    allowed = MASK.bool()[:, None, None, :].expand(-1, 1, MASK.shape[1], -1)
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (allowed, added):
        hidden = model(input_ids=IDS, attention_mask=mask).last_hidden_state[MASK.bool()]
        assert torch.allclose(hidden, output(model), atol=1e-5)


def test_a_prefix_on_the_last_layer_leaves_those_before_as_they_are() -> None:
    base = base_of("llama")(**INPUTS, output_hidden_states=True).hidden_states
    model, adapter = shaken("llama", "prefix", layers="last 1", virtual_tokens=5)
    tuned = model(**INPUTS, output_hidden_states=True).hidden_states
    real = MASK.bool()
    assert torch.allclose(tuned[2][real], base[2][real], atol=1e-5)
    assert not torch.allclose(tuned[3][real], base[3][real], atol=1e-3)
    assert adapter.config()["peft_type"] == "PREFIX_TUNING_ON_LAYERS" and adapter.config()["layers"] == [2]


def test_starting_from_words_is_as_if_they_stood_before_the_text() -> None:
    words = torch.tensor([[21, 34, 8, 40, 17]])

    def tokenize(texts: Any) -> dict[str, Tensor]:
        assert list(texts) == ["red leather chair"]
        return {"input_ids": words, "attention_mask": torch.ones_like(words)}

    model = base_of("llama")
    alone = model(input_ids=torch.cat([words, IDS[:1]], dim=1)).last_hidden_state[0, 5:]
    plan = Plan(kind="causal", base="toy", tokenize=tokenize)
    config = config_of("prefix", virtual_tokens=5, init="text", init_text="red leather chair")
    method_of("prefix").attach(model, config, plan)
    assert torch.allclose(model(input_ids=IDS[:1]).last_hidden_state[0], alone, atol=1e-5)


def test_starting_from_texts_takes_real_tokens_and_repeats_them_where_they_are_few() -> None:
    model = base_of("llama")
    n_real = int(MASK.sum())
    adapter = method_of("prefix").attach(model, config_of("prefix", init="data", virtual_tokens=n_real + 2), plan_of())
    (start,) = adapter.tensors().values()
    real = IDS[MASK.bool()]
    plain: Any = base_of("llama")
    hidden, layer = plain.embed_tokens(torch.cat([real, real[:2]])), plain.layers[0]
    values = layer.self_attn.v_proj(layer.input_layernorm(hidden))
    assert torch.allclose(start.view(n_real + 2, 6, -1)[:, 1], values, atol=1e-5)


@pytest.mark.parametrize(("kind", "model_kind"), [("bert", "encoder"), ("llama", "causal")])
def test_starting_from_the_sink_takes_the_resting_token_of_each_text(kind: str, model_kind: str) -> None:
    plan = Plan(kind=model_kind, base="toy", samples=[INPUTS])
    adapter = method_of("prefix").attach(base_of(kind), config_of("prefix", virtual_tokens=len(IDS)), plan)
    (start,) = adapter.tensors().values()
    plain: Any = base_of(kind)
    last = MASK.sum(dim=1) - 1 if model_kind == "encoder" else torch.zeros(len(IDS), dtype=torch.long)
    if kind == "bert":
        layer = plain.encoder.layer[0].attention.self
        values = layer.value(plain.embeddings(IDS))
    else:
        layer = plain.layers[0]
        values = layer.self_attn.v_proj(layer.input_layernorm(plain.embed_tokens(IDS)))
    expected = values[torch.arange(len(IDS)), last]
    found = start.view(len(IDS), 6, -1)[:, 1]
    assert torch.allclose(found, expected, atol=0.1 * float(start.std())), "up to the noise that sets rows apart"
    assert not torch.equal(found[0], found[1]), "equal virtual tokens would stay equal"


def test_an_init_without_its_texts_is_refused() -> None:
    with pytest.raises(ValidationError, match="init: text needs init_text"):
        config_of("prefix", init="text")
    with pytest.raises(ValidationError, match="init: text needs init_text"):
        config_of("prefix", init_text="words")
    with pytest.raises(ModelError, match=r"method.init.*no texts.*init: random"):
        method_of("prefix").attach(base_of("bert"), config_of("prefix"), Plan(kind="encoder", base="toy"))


def test_a_prefix_and_a_text_beyond_the_positions_are_refused() -> None:
    model, _ = shaken("bert", "prefix", virtual_tokens=36)
    with pytest.raises(ModelError, match=r"tune.max_tokens.*at most 40"):
        output(model)


@pytest.mark.parametrize("architecture", ["DebertaV2", "MPNet", "RemBert", "Gemma2"])
def test_architectures_that_it_cannot_reach_are_refused_before_and_after_loading(architecture: str) -> None:
    model = model_of(architecture)
    facts = {"method.name": "prefix", "architecture": model.config.model_type}
    assert refused(method_of("prefix").refusals, facts) is not None
    with pytest.raises(ModelError, match="cannot reach every layer"):
        method_of("prefix").attach(model, config_of("prefix"), plan_of())


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("bert", "prefix", {"virtual_tokens": 5}),
        ("llama", "prefix", {"virtual_tokens": 5}),
        ("bert", "bottleneck", {"placement": "parallel"}),
    ],
    ids=["bert-prefix", "llama-prefix", "bert-parallel"],
)
def test_it_goes_to_onnx_with_any_batch_and_length(
    kind: str, name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    import onnxruntime

    class Whole(torch.nn.Module):
        def __init__(self, base: PreTrainedModel) -> None:
            super().__init__()
            self.base = base

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden: Tensor = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    model, adapter = shaken(kind, name, **settings)
    model.config.use_cache = False
    shake(adapter)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=30)}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Whole(model),
        (IDS, MASK),
        path,
        dynamo=True,
        dynamic_shapes=(axes, axes),
        input_names=["input_ids", "attention_mask"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path)
    ids, mask = IDS[:2, :5], MASK[:2, :5]
    (served,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state.detach().numpy()
    assert np.abs(served - wanted)[mask.numpy().astype(bool)].max() < 1e-5
