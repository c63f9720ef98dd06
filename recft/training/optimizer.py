"""The optimizers, and their state as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recft.errors import TuneError, problem
from recft.schema import TuneSettings

__all__ = ["gradient_norm", "load_state", "make", "state_of"]


def make(parameters: Mapping[str, nn.Parameter], settings: TuneSettings, device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the parameters in order of name; matrices decay, vectors do not.

    Raises:
        TuneError: an 8-bit or paged optimizer on a machine without an NVIDIA GPU.
    """
    decayed = [parameters[name] for name in sorted(parameters) if parameters[name].ndim >= 2]
    others = [parameters[name] for name in sorted(parameters) if parameters[name].ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": settings.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    if settings.optimizer == "adamw":
        # One kernel for all tensors, on CPUs too: an adapter has hundreds of small ones.
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    if device.type != "cuda":
        raise TuneError(
            problem(
                "tune.optimizer",
                f"'{settings.optimizer}' on {device.type}",
                "8-bit and paged optimizers need an NVIDIA GPU",
                "set tune.optimizer: adamw",
            )
        )
    import bitsandbytes as bnb

    kind = bnb.optim.AdamW8bit if settings.optimizer == "adamw8bit" else bnb.optim.PagedAdamW8bit
    optimizer: torch.optim.Optimizer = kind(groups, lr=settings.learning_rate, betas=settings.betas)
    return optimizer


def gradient_norm(gradients: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """The norm over all gradients together, and whether all of them are finite; the device is waited for once."""
    norm = torch.nn.utils.get_total_norm(gradients)
    # Squares may overflow where the values do not.
    return norm, bool(norm.isfinite()) or all(bool(gradient.isfinite().all()) for gradient in gradients)


def state_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors, `<parameter>/<key>`, and what is no tensor, as plain values."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                plain[f"{name}/{key}"] = value
    return tensors, plain


def load_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    plain: Mapping[str, Any],
) -> None:
    """The reverse of `state_of`."""
    for key, value in {**tensors, **plain}.items():
        name, _, inner = key.rpartition("/")
        parameter = parameters[name]
        if isinstance(value, Tensor):
            value = value.to(parameter.device)
        optimizer.state[parameter][inner] = value
