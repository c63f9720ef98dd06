"""Tiny bases of both kinds, plain and quantized, for the tests of the methods."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertModel, BitsAndBytesConfig, LlamaConfig, LlamaModel, PreTrainedModel

from recft import registry
from recft.methods._base import Attached, Method, Plan

IDS = torch.tensor([[7, 9, 11, 13, 15, 17, 19], [8, 21, 6, 30, 3, 3, 3], [33, 5, 41, 12, 44, 9, 3]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK}
SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"rank": 4}),
    ("lora", {"rank": 4, "dora": True}),
    ("lora", {"rank": 4, "rslora": True, "init": "orthogonal", "alpha": 3}),
    ("lora", {"rank": 4, "init": "activations", "targets": "attention"}),
    ("adalora", {"rank": 4}),
    ("adalora", {"rank": 3, "initial_rank": 3, "init": "activations"}),
    ("bottleneck", {"placement": "houlsby", "reduction_factor": 8}),
    ("bottleneck", {"placement": "pfeiffer", "activation": "tanh", "scale": "learned"}),
    ("bottleneck", {"placement": "parallel", "activation": "relu"}),
    ("prefix", {"virtual_tokens": 5}),
    ("prefix", {"virtual_tokens": 5, "init": "random"}),
]
IDENTIFIERS = ["-".join([name, *map(str, settings.values())]) for name, settings in CASES]


def method_of(name: str) -> Method:
    """The member."""
    member: Method = registry.load("recft.methods", name)
    return member


def config_of(name: str, **settings: Any) -> Any:
    """The member's settings."""
    return method_of(name).Config(name=name, **settings)


def plan_of(total_steps: int = 0, dropout: float = 0.0) -> Plan:
    """A plan with the toy inputs as samples."""
    return Plan(kind="encoder", base="toy", total_steps=total_steps, dropout=dropout, samples=[INPUTS])


@cache
def _folder(kind: str) -> str:
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "bert":
        model = BertModel(BertConfig(**SHAPE, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    else:
        model = LlamaModel(LlamaConfig(**SHAPE, num_key_value_heads=2, eos_token_id=2))
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return folder


def base_of(kind: str, quantization: str = "none") -> PreTrainedModel:
    """A fresh copy of the tiny base, in evaluation mode."""
    options: dict[str, Any] = {}
    if quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["pooler"])
    elif quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["pooler"],
        )
    loaded: PreTrainedModel = (BertModel if kind == "bert" else LlamaModel).from_pretrained(_folder(kind), **options)
    for module in loaded.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    loaded.eval()
    return loaded


def output(model: torch.nn.Module, inputs: Mapping[str, Tensor] = INPUTS) -> Tensor:
    """The last hidden states at real tokens, (n, D)."""
    hidden: Tensor = model(**inputs).last_hidden_state
    return hidden[inputs["attention_mask"].bool()]


def shake(adapter: Attached) -> None:
    """Moves every parameter to some other place, always the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def shaken(kind: str, name: str, quantization: str = "none", **settings: Any) -> tuple[PreTrainedModel, Attached]:
    """A toy with an adapter that does something."""
    model = base_of(kind, quantization)
    adapter = method_of(name).attach(model, config_of(name, **settings), plan_of())
    shake(adapter)
    return model, adapter


stock_warnings = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),  # AdaLoRA's are not LoRA's
]


def save(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """An adapter's folder as PEFT lays it out."""
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors")


def stock_output(kind: str, folder: Path, quantization: str = "none") -> torch.Tensor:
    """What PEFT's own loader makes of a folder."""
    return output(PeftModel.from_pretrained(base_of(kind, quantization), folder).eval())
