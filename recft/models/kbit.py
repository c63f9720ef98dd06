"""One weight in bitsandbytes' 8 or 4 bits: what a loader makes of it, and how a stock checkpoint keeps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recft.models.tensor_files import Planned

__all__ = ["planned", "serialized", "through_bits"]


_BLOCK, _BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale, and scales that share one where they are quantized too: bitsandbytes' own."""


def through_bits(weight: Tensor, kind: str, double: bool) -> Tensor:
    """The weight as the adapter saw it: quantized and back, in float32.

    Args:
        weight: (out, in), in the compute dtype.
        kind: `int8`, `nf4` or `fp4`.
        double: whether the scales are quantized too (4 bits).
    """
    import bitsandbytes as bnb

    if kind == "int8":
        codes, scales = _eight_bits(weight)
        eight: Tensor = bnb.functional.int8_vectorwise_dequant(codes, scales)
        return eight.float()
    quantized = _four_bits(weight, kind, double)
    four: Tensor = bnb.functional.dequantize_4bit(quantized.data, quantized.quant_state)
    return four.float()


def serialized(name: str, weight: Tensor, kind: str, double: bool) -> dict[str, Tensor]:
    """What a stock checkpoint holds for the weight `name`.

    Args:
        name: the parameter's.
        weight: (out, in), in the compute dtype.
        kind: `int8`, `nf4` or `fp4`.
        double: whether the scales are quantized too (4 bits).
    """
    if kind == "int8":
        codes, scales = _eight_bits(weight)
        module = name.removesuffix(".weight")
        # The last says that codes lie row by row.
        return {name: codes, f"{module}.SCB": scales, f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    quantized = _four_bits(weight, kind, double)
    state = quantized.quant_state.as_dict(packed=True)
    return {name: quantized.data, **{f"{name}.{key}": value for key, value in state.items()}}


def planned(name: str, shape: tuple[int, ...], kind: str, double: bool) -> list[Planned]:
    """The dtypes and shapes of what `serialized` gives, before there is a weight."""
    if kind == "int8":
        module = name.removesuffix(".weight")
        return [
            Planned(name, torch.int8, shape),
            Planned(f"{module}.SCB", torch.float32, shape[:1]),
            Planned(f"{module}.weight_format", torch.uint8, ()),
        ]
    size = torch.Size(shape).numel()
    blocks = -(-size // _BLOCK)
    parts = [
        Planned(name, torch.uint8, (-(-size // 2), 1)),
        Planned(f"{name}.absmax", torch.uint8 if double else torch.float32, (blocks,)),
        Planned(f"{name}.quant_map", torch.float32, (16,)),
    ]
    if double:
        parts += [
            Planned(f"{name}.nested_absmax", torch.float32, (-(-blocks // _BLOCK_OF_SCALES),)),
            Planned(f"{name}.nested_quant_map", torch.float32, (256,)),
        ]
    return [*parts, Planned(f"{name}.quant_state.bitsandbytes__{kind}", torch.uint8, None)]


def _eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    import bitsandbytes as bnb

    made = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    return made.data, made.SCB


def _four_bits(weight: Tensor, kind: str, double: bool) -> Any:
    import bitsandbytes as bnb

    return bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type=kind).to("cpu")
