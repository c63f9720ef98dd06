"""A Llama of any shape with random weights, made on its device layer by layer: the host never holds the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from recft.models.base import k_bit_config, set_dropout_off, steady_quantized_layers
from recft.schema import ModelSettings

__all__ = ["LLAMA_8B", "TINY", "base_weights", "random_base"]

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "tie_word_embeddings": False,
}
"""Llama 3.1 8B's."""

TINY: dict[str, Any] = {
    **LLAMA_8B,
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""For trying the script out without a GPU."""

SPREAD = 0.02
"""Of the weights, as Llama's are drawn."""


def random_base(
    shape: Mapping[str, Any], settings: ModelSettings, attention: str, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """The model, frozen; equal seeds of torch give equal weights, quantized or not.

    Args:
        shape: of `LlamaConfig`.
        settings: how it is quantized: `none` or `nf4`.
        attention: the implementation.
        device: where the weights are made.
        dtype: of weights that are not quantized.
    """
    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and settings.quantization == "nf4" and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _four_bit(module, settings, device, dtype))
        elif module._parameters:
            drawn = not type(module).__name__.endswith("Norm")
            for own, parameter in list(module.named_parameters(recurse=False)):
                weight = _drawn(parameter.shape, device, dtype) if drawn else torch.ones(parameter.shape, device=device)
                setattr(module, own, nn.Parameter(weight.to(dtype), requires_grad=False))
    # Its buffers are computed, and kept in no checkpoint.
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    if settings.quantization == "nf4":
        _say_that_it_is_quantized(model, k_bit_config(settings, dtype))
        steady_quantized_layers(model, device)
    model.eval().requires_grad_(False)
    set_dropout_off(model)
    return model


def _drawn(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, device=device, dtype=dtype).normal_(std=SPREAD)


def _four_bit(linear: nn.Linear, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A drawn layer in 4 bits: one layer at a time is in 16."""
    import bitsandbytes as bnb

    double = settings.double_quantization
    made: nn.Module = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=False,
        compute_dtype=dtype,
        compress_statistics=double,
        quant_type="nf4",
        device="meta",
    )
    weight = _drawn(linear.weight.shape, device, dtype)
    four = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=double, module=made)
    made.weight = four.to(device)  # which quantizes it
    return made


def _say_that_it_is_quantized(model: PreTrainedModel, config: Any) -> None:
    """What transformers' loader leaves on a model, and PEFT and the trainers look for."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    for name, value in (
        ("is_loaded_in_4bit", True),
        ("is_quantized", True),
        ("quantization_method", config.quant_method),
        ("hf_quantizer", quantizer),
    ):
        setattr(model, name, value)
    model.config.quantization_config = config


def base_weights(shape: Mapping[str, Any]) -> int:
    """Weights of all blocks' products: what a token is multiplied with, but for the head."""
    hidden, inner = int(shape["hidden_size"]), int(shape["intermediate_size"])
    keys = hidden * int(shape["num_key_value_heads"]) // int(shape["num_attention_heads"])
    return int(shape["num_hidden_layers"]) * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
