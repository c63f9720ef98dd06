"""A base's weights in float32, exactly as the adapter saw them or as they were published."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recft.models.base import Base, load_base
from recft.schema import ModelSettings

__all__ = ["float32_base", "weight_of"]


def float32_base(
    settings: ModelSettings, head: str, dtype: torch.dtype, onto: str, seed: int = 0, n_labels: int = 1
) -> Base:
    """A fresh base in float32 without k-bit layers.

    Always read again from disk: the layers of a model that has run may have been repacked in place.

    Args:
        settings: the base and its quantization.
        head: as in `load_base`.
        dtype: the compute dtype of the run: it rounds the weights that the adapter saw.
        onto: `original`, the published weights, or `dequantized`, what the adapter was trained on.
        seed: of a new head's initial values.
        n_labels: outputs of a new head.
    """
    cpu = torch.device("cpu")
    if onto == "original":
        return load_base(settings.model_copy(update={"quantization": "none"}), head, cpu, torch.float32, seed, n_labels)
    loaded = load_base(settings, head, cpu, dtype, seed, n_labels)
    if settings.quantization == "none":
        return Base(model=loaded.model.float(), new_parameters=loaded.new_parameters)
    return Base(model=_plain(loaded.model), new_parameters=loaded.new_parameters)


def _plain(model: Any) -> Any:
    """The model with every k-bit layer replaced by a float32 linear layer of the same values."""
    for name, module in list(model.named_modules()):
        if not _is_quantized(module):
            continue
        weight = weight_of(module)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if module.bias is not None:
            linear.bias = nn.Parameter(module.bias.detach().float(), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, linear)
    # Nothing k-bit is left: without these marks transformers lets the model be cast and saved as any other.
    model.hf_quantizer = None
    model.is_quantized = False
    for mark in ("is_loaded_in_8bit", "is_loaded_in_4bit", "quantization_method"):
        if getattr(model, mark, None):
            setattr(model, mark, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = torch.float32
    return model.float().eval()


def _is_quantized(module: nn.Module) -> bool:
    import bitsandbytes as bnb

    return isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def weight_of(module: Any) -> Tensor:
    """The weight of a linear layer, k-bit or not, as float32, (out, in)."""
    import bitsandbytes as bnb

    weight = module.weight
    if isinstance(module, bnb.nn.Linear4bit):
        four_bit: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return four_bit.float()
    if isinstance(module, bnb.nn.Linear8bitLt):
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        codes = weight.data if weight.data.dtype == torch.int8 else module.state.CB
        eight_bit: Tensor = bnb.functional.int8_vectorwise_dequant(codes, scale)
        return eight_bit.float()
    plain: Tensor = weight.detach()
    return plain.float()
