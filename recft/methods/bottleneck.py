"""Bottleneck adapters: a small two-layer network inside every chosen block (Houlsby et al. 2019, arXiv 1902.00751).

    h' = h + s·(W_up·σ(W_down·h + b_down) + b_up)        W_down (D / reduction_factor, D)

- `houlsby`: h is the output of the attention's projection, and of the feed-forward part: two a block.
- `pfeiffer`: of the feed-forward part only (Pfeiffer et al. 2021, arXiv 2005.00247).
- `parallel`: y' = FFN(x) + s·(W_up·σ(W_down·x + b_down) + b_up), beside the feed-forward part (He et al. 2022, arXiv
  2110.04366), with s = 4 as there.

W_up starts as zeros, so the model starts as its base. An adapter sits right behind a linear layer, before the residual
sum, on post- and pre-norm blocks alike; Pfeiffer et al. put theirs behind the sum and its norm. The layer keeps its
class and its weights (quantized ones too): the adapter is its submodule `bottleneck`, called by a forward hook. PEFT
has no such method; the folder's layout is PEFT's, with `peft_type` BOTTLENECK.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from recft.errors import ExportError, ModelError, problem
from recft.methods._adapter import Adapter
from recft.methods._base import SAVED_PREFIX, Plan, chosen_layers
from recft.methods._blocks import BLOCK_REFUSALS, blocks, freeze, linear_shape
from recft.schema import MethodSettings, Positive

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from recft.methods._bottleneck import Bottleneck

__all__ = ["MEMBER"]

ATTENTION_OUT = (
    "attention.output.dense",  # BERT, RoBERTa, XLM-R, ELECTRA, DeBERTa
    "attention.out_lin",  # DistilBERT
    "attention.attn.o",  # MPNet
    "attn.Wo",  # ModernBERT
    "self_attn.o_proj",  # Llama, Qwen, Mistral, Gemma
    "self_attn.out_proj",  # OPT
    "self_attn.dense",  # Phi
    "attention.dense",  # GPT-NeoX
    "self_attention.dense",  # Falcon, BLOOM
)
FEED_FORWARD = (
    ("intermediate.dense", "output.dense"),
    ("ffn.lin1", "ffn.lin2"),
    ("mlp.Wi", "mlp.Wo"),
    ("mlp.gate_proj", "mlp.down_proj"),
    ("mlp.gate_up_proj", "mlp.down_proj"),
    ("mlp.up_proj", "mlp.down_proj"),
    ("mlp.fc1", "mlp.fc2"),
    ("fc1", "fc2"),
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)
"""Names inside a block: what ends its attention, and what begins and ends its feed-forward part."""


class BottleneckSettings(MethodSettings):
    """The settings of bottleneck adapters."""

    name: str = "bottleneck"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    reduction_factor: Positive = Field(default=16, description="hidden size over the bottleneck's size")
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    scale: Annotated[float, Field(gt=0)] | Literal["learned"] | None = Field(
        default=None, description="s; absent: 1, parallel 4. learned: a parameter for each adapter that starts there"
    )


class Place(NamedTuple):
    """Where one adapter sits: behind `after`, reading its output or what came into `reads`."""

    after: str
    reads: str | None


@dataclass(frozen=True)
class BottleneckMethod:
    """The method."""

    Config = BottleneckSettings
    summary = "small networks inside the blocks (Houlsby, Pfeiffer, parallel)"
    mergeable = False
    starts_as_identity = True
    allows_gradient_checkpointing = True
    refusals = BLOCK_REFUSALS

    def attach(self, model: PreTrainedModel, config: BottleneckSettings, plan: Plan) -> Adapter:
        """New adapters in `model`."""
        chosen = chosen_layers(config.layers, len(blocks(model)))
        scale = (
            (4.0 if config.placement == "parallel" else 1.0) if isinstance(config.scale, str | None) else config.scale
        )
        settings = {
            "activation": config.activation,
            "base_model_name_or_path": plan.base,
            "inference_mode": True,
            "layers": chosen,
            "learned_scale": config.scale == "learned",
            "peft_type": "BOTTLENECK",
            "placement": config.placement,
            "reduction_factor": config.reduction_factor,
            "scale": scale,
            "task_type": None,
        }
        return self.restore(model, settings, plan)

    def restore(self, model: PreTrainedModel, config: Mapping[str, Any], plan: Plan) -> Adapter:
        """The adapters of a saved configuration."""
        import torch

        from recft.methods._bottleneck import Bottleneck, sit

        places = _places(model, config["layers"], config["placement"])
        freeze(model)
        generator = torch.Generator().manual_seed(plan.seed)
        adapters: dict[str, Bottleneck] = {}
        for place in places:
            size_in, size_out = _sizes(model, place)
            adapter = Bottleneck(
                sizes=(size_in, _middle(size_out, config["reduction_factor"]), size_out),
                activation=config["activation"],
                scale=config["scale"],
                learned=config["learned_scale"],
                dropout=plan.dropout,
                generator=generator,
            )
            sit(model, adapter, place.after, place.reads)
            adapters[f"{place.after}.bottleneck"] = adapter
        own = {
            f"{name}.{inner}": value for name, module in adapters.items() for inner, value in module.named_parameters()
        }
        return Adapter(
            own=own,
            saved_as={name: SAVED_PREFIX + name for name in own},
            settings=dict(config),
            off=partial(_switched_off, list(adapters.values())),
        )

    def expected_parameters(self, model: PreTrainedModel, config: BottleneckSettings) -> int:
        """The sum of m·(in + out) + m + out over the adapters, m = hidden size / reduction_factor, and each s."""
        chosen = chosen_layers(config.layers, len(blocks(model)))
        total = 0
        for place in _places(model, chosen, config.placement):
            size_in, size_out = _sizes(model, place)
            middle = _middle(size_out, config.reduction_factor)
            total += middle * (size_in + size_out) + middle + size_out + (config.scale == "learned")
        return total

    def merge(
        self,
        config: Mapping[str, Any],  # noqa: ARG002
        tensors: Mapping[str, Tensor],  # noqa: ARG002
        name: str,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
        rows: slice | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Never comes back: the activation between the two layers leaves no weight to add to."""
        raise ExportError(
            problem(
                "export --to merged",
                "a bottleneck adapter has an activation between its layers",
                "only updates that are linear in the layer's input can be merged",
                "export to adapter or onnx, which carry it as it is",
            )
        )

    def plain_lora(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """None."""


def _places(model: PreTrainedModel, layers: Sequence[int], placement: str) -> list[Place]:
    """Where the adapters of the chosen layers sit, in the model's order.

    Raises:
        ModelError: a block's parts are not recognised.
    """
    every = blocks(model)
    places = []
    for number in layers:
        name, block = every[number]
        inside = {inner for inner, _ in block.named_modules()}
        attention = next((part for part in ATTENTION_OUT if part in inside), None)
        feed_forward = next((pair for pair in FEED_FORWARD if set(pair) <= inside), None)
        if feed_forward is None or (attention is None and placement == "houlsby"):
            raise ModelError(
                problem(
                    "method.placement",
                    f"the parts of '{name}' in {type(model).__name__} are not recognised",
                    "its attention ends, and its feed-forward part begins and ends, with linear layers of known names",
                    "take lora, or a base of a common architecture, for example BERT, RoBERTa, Llama or Qwen",
                )
            )
        if placement == "houlsby":
            places.append(Place(f"{name}.{attention}", None))
        places.append(
            Place(f"{name}.{feed_forward[1]}", f"{name}.{feed_forward[0]}" if placement == "parallel" else None)
        )
    return places


def _sizes(model: PreTrainedModel, place: Place) -> tuple[int, int]:
    """What an adapter reads and writes."""
    out = linear_shape(model, place.after)[1]
    return (linear_shape(model, place.reads)[0] if place.reads else out), out


def _middle(size: int, reduction_factor: int) -> int:
    return max(1, size // reduction_factor)


@contextlib.contextmanager
def _switched_off(adapters: Sequence[Bottleneck]) -> Iterator[None]:
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True


MEMBER = BottleneckMethod()
