"""What the methods that train PEFT's own layers share: putting them in, naming them, switching them off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from recft.methods._base import SAVED_PREFIX

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["ADAPTER", "inject", "own_parameters", "saved_config", "saved_name", "switched_off", "task_type"]

ADAPTER = "default"
"""The name PEFT gives an adapter that was given none; it is part of parameter names, never of saved names."""


def inject(model: PreTrainedModel, peft_config: Any, names: list[str], seed: int) -> dict[str, Any]:
    """PEFT's layers, put around the modules `names` in place, by module name; all else is frozen.

    The random values drawn on the way depend on `seed` alone, and the global generator is left as it was.
    """
    import torch
    from peft import inject_adapter_in_model

    _mark_quantized(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)
    # PEFT leaves its configuration on the model and warns when it finds one: ours is in `Attached.config`.
    del model.peft_config
    layers = {name: model.get_submodule(name) for name in names}
    for layer in layers.values():
        layer.train(model.training)  # new modules, dropout among them, are born training
    for parameter in own_parameters(layers).values():
        # PEFT's wrapper would do this: over a bfloat16 base its layers are bfloat16, in which small steps are lost.
        parameter.data = parameter.data.float()
    wanted = {id(parameter) for parameter in own_parameters(layers).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    return layers


def own_parameters(layers: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The trainable parameters of PEFT's layers, by their name in the model."""
    return {
        f"{name}.{inner}": parameter
        for name, layer in layers.items()
        for kind in layer.adapter_layer_names
        for inner, parameter in _of_kind(layer, kind)
    }


def _of_kind(layer: nn.Module, kind: str) -> list[tuple[str, nn.Parameter]]:
    inner = getattr(layer, kind, None)
    return [(f"{kind}.{name}", parameter) for name, parameter in inner.named_parameters()] if inner is not None else []


def saved_name(name: str) -> str:
    """PEFT's saved name of a parameter in the model."""
    plain = name.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")
    # PEFT keeps the name that DoRA's magnitude had before it became a module.
    return SAVED_PREFIX + plain.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


@contextlib.contextmanager
def switched_off(layers: Mapping[str, Any]) -> Iterator[None]:
    """Within it PEFT's layers compute as the modules they stand around."""
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)


def task_type(model: PreTrainedModel) -> str | None:
    """PEFT's name for what the model computes, so that its wrapper passes everything on.

    A classifier has none: PEFT would look for the head's weights in the adapter's file.
    """
    name = type(model).__name__
    if name.endswith("ForCausalLM"):
        return "CAUSAL_LM"
    return None if "For" in name else "FEATURE_EXTRACTION"


def saved_config(peft_config: Any, **changes: Any) -> dict[str, Any]:
    """A PEFT configuration as `adapter_config.json` holds it, sorted so that equal ones give equal files."""
    config = {**peft_config.to_dict(), **changes}
    return {key: _plain(config[key]) for key in sorted(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return cast("Any", getattr(value, "value", value))


def _mark_quantized(model: PreTrainedModel) -> None:
    # PEFT looks at these marks of the model, not at its layers; only a quantizer of transformers sets them.
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            setattr(model, "is_loaded_in_4bit", True)  # noqa: B010 - not an attribute that the class knows
        elif type(module).__name__ == "Linear8bitLt":
            setattr(model, "is_loaded_in_8bit", True)  # noqa: B010
