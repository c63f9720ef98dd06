"""LoRA: a low-rank update beside each chosen weight (Hu et al. 2021, arXiv 2106.09685).

    W' = W + s·B·A        A (r, in), B (out, r), s = alpha / r

`rslora` takes s = alpha / √r (Kalajdzievski 2023, arXiv 2312.03732). `dora` gives every output row a learned length
m (Liu et al. 2024, arXiv 2402.09353): W' = m · (W + s·B·A) / ‖W + s·B·A‖, with the norm of each row held constant in
the backward pass. B starts as zeros, so the model starts as its base, whatever A is.

Where we depart from PEFT, whose layers these are: every linear layer of the chosen blocks is touched, not only the
attention's; initial values are drawn in float32 by the recipe's seed whatever the base's dtype; inits which change
the base's weights (PiSSA, OLoRA, CorDA, LoftQ) are left out, because an adapter must mean the same over the base as
it is on disk, quantized or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from recft.methods._adapter import Adapter
from recft.methods._base import SAVED_PREFIX, Plan
from recft.methods._blocks import BLOCK_REFUSALS, linear_names, linear_shape, listed, narrow, shortest_names
from recft.methods._directions import input_directions, orthonormal
from recft.methods._peft import (
    ADAPTER,
    inject,
    own_parameters,
    saved_config,
    saved_name,
    switched_off,
    task_type,
)
from recft.registry import Refusal
from recft.schema import MethodSettings, Positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["MEMBER"]


class LoraSettings(MethodSettings):
    """LoRA's settings."""

    name: str = "lora"
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="numerator of the scale; absent: 2 x rank, with rslora 8, a scale of 2 at rank 16"
    )
    targets: Literal["all", "attention"] | tuple[str, ...] = Field(
        default="all", description="linear layers of the blocks: all, attention, or a list of last parts of names"
    )
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(rank)")
    dora: bool = Field(default=False, description="learn every output row's length too")
    init: Literal["default", "gaussian", "orthogonal", "activations"] = Field(
        default="default",
        description="of A: uniform, normal, orthonormal rows, or the main directions of the layer's own inputs",
    )


@dataclass(frozen=True)
class Lora:
    """The method."""

    Config = LoraSettings
    summary = "low-rank updates of linear layers (with rsLoRA, DoRA)"
    mergeable = True
    starts_as_identity = True
    allows_gradient_checkpointing = True
    refusals = (
        *BLOCK_REFUSALS,
        Refusal(
            when={"method.name": "lora", "method.dora": True, "model.quantization": "int8", "device": "cpu"},
            reason="DoRA needs the norm of the weights, and bitsandbytes cannot read int8 weights back on a CPU",
            fix="take nf4, fp4 or none, or set method.dora: false",
        ),
    )

    def attach(self, model: PreTrainedModel, config: LoraSettings, plan: Plan) -> Adapter:
        """A new LoRA in `model`."""
        names = narrow(linear_names(model, config.layers), config.targets)
        alpha = config.alpha or (8.0 if config.rslora else 2.0 * config.rank)
        options = {
            "r": config.rank,
            "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "use_rslora": config.rslora,
            "use_dora": config.dora,
            "target_modules": shortest_names(model, names),
        }
        adapter = self._put_in(model, options, names, plan)
        _start(model, {name: model.get_submodule(name) for name in names}, config, plan)
        return adapter

    def restore(self, model: PreTrainedModel, config: Mapping[str, Any], plan: Plan) -> Adapter:
        """The LoRA of a saved configuration."""
        options = {key: config[key] for key in ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")}
        names = listed(model, config["target_modules"])
        return replace(self._put_in(model, options, names, plan), settings=dict(config))

    def _put_in(self, model: PreTrainedModel, options: Mapping[str, Any], names: list[str], plan: Plan) -> Adapter:
        from peft import LoraConfig

        def config() -> LoraConfig:
            # PEFT shortens the target modules of the configuration it is given: the saved one is another.
            return LoraConfig(
                task_type=task_type(model), base_model_name_or_path=plan.base, lora_dropout=plan.dropout, **options
            )

        layers = inject(model, config(), names, plan.seed)
        if not options["use_dora"]:
            from recft.methods._lora_product import in_one_product

            compute_in_the_bases_dtype(layers)
            for layer in layers.values():
                in_one_product(layer)
        own = own_parameters(layers)
        return Adapter(
            own=own,
            saved_as={name: saved_name(name) for name in own},
            settings=saved_config(config(), inference_mode=True),
            off=partial(switched_off, layers),
        )

    def expected_parameters(self, model: PreTrainedModel, config: LoraSettings) -> int:
        """The sum of r·(in + out) over the touched layers, and out more with DoRA."""
        names = narrow(linear_names(model, config.layers), config.targets)
        shapes = [linear_shape(model, name) for name in names]
        return sum(config.rank * (n_in + n_out) + (n_out if config.dora else 0) for n_in, n_out in shapes)

    def merge(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        name: str,
        weight: Tensor,
        rows: slice | None = None,
    ) -> Tensor:
        """W + s·B·A, its rows brought to the length m with DoRA.

        With `rows`, `weight` is those of W, in memory that may be used for the result.
        """
        import torch

        key = f"{SAVED_PREFIX}{name}"
        if f"{key}.lora_A.weight" not in tensors:
            return weight
        chosen, place = (slice(None), None) if rows is None else (rows, weight)
        left, right = tensors[f"{key}.lora_B.weight"][chosen].float(), tensors[f"{key}.lora_A.weight"].float()
        merged = torch.addmm(weight, left, right, alpha=scale_of(config), out=place)
        if config["use_dora"]:
            length = tensors[f"{key}.lora_magnitude_vector"][chosen].float()
            merged = (length / torch.linalg.vector_norm(merged, dim=1))[:, None] * merged
        return merged

    def plain_lora(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The same adapter with s = alpha / r, which every engine reads; None with DoRA, which is no plain LoRA."""
        if config["use_dora"]:
            return None
        if not config["use_rslora"]:
            return dict(config), dict(tensors)
        return {**config, "use_rslora": False, "lora_alpha": scale_of(config) * config["r"]}, dict(tensors)


def scale_of(config: Mapping[str, Any]) -> float:
    """The scale s of a saved configuration.

    >>> scale_of({"lora_alpha": 8, "r": 16, "use_rslora": True})
    2.0
    """
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank))


def compute_in_the_bases_dtype(layers: Mapping[str, Any]) -> None:
    """Lets A and B multiply in the dtype of what flows in; they stay float32 themselves.

    PEFT casts every layer's input, rank r or not, to float32 and back, which over a bfloat16 base costs more than the
    base's own products.
    """
    cast = _cast_linear()
    for layer in layers.values():
        layer.cast_input_dtype_enabled = False
        for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            part.__class__ = cast


@cache
def _cast_linear() -> type:
    import torch

    class CastLinear(torch.nn.Linear):
        """A linear layer whose weight follows its input's dtype."""

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
            return torch.nn.functional.linear(input, self.weight.to(input.dtype))

    return CastLinear


def _start(model: PreTrainedModel, layers: Mapping[str, Any], config: LoraSettings, plan: Plan) -> None:
    """Gives every A (and m) its initial value, in float32 whatever the base's dtype."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    generator = torch.Generator().manual_seed(plan.seed)
    found = input_directions(model, layers, plan) if config.init == "activations" else {}
    for name, layer in layers.items():
        right = layer.lora_A[ADAPTER].weight
        start = first_directions(tuple(right.shape), config.init, generator)
        if name in found:
            start[: found[name].shape[0]] = found[name][: config.rank]
        with torch.no_grad():
            right.copy_(start)
            if config.dora:
                weight = dequantize_module_weight(layer.get_base_layer()).float()
                layer.lora_magnitude_vector[ADAPTER].weight.copy_(torch.linalg.vector_norm(weight, dim=1))


def first_directions(shape: tuple[int, int], init: str, generator: torch.Generator) -> Tensor:
    """Initial values of A (rank, in)."""
    import torch

    rank, size = shape
    if init == "default":  # as torch starts a linear layer: variance 1 / (3 in)
        return (torch.rand(rank, size, generator=generator) * 2 - 1) / math.sqrt(size)
    drawn = torch.randn(size, rank, generator=generator)
    return drawn.T / rank if init == "gaussian" else orthonormal(drawn).T


MEMBER = Lora()
