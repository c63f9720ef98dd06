"""An AdaLoRA in a model, and its life; imports torch, so only `adalora` imports it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recft.errors import ModelError, problem
from recft.methods._adapter import match
from recft.methods._allocation import Importance, Schedule, kept_by_score
from recft.methods._base import SAVED_PREFIX
from recft.methods._peft import ADAPTER, own_parameters, saved_name, switched_off

__all__ = ["AdaLoraAdapter"]


@dataclass
class AdaLoraAdapter:
    """An AdaLoRA in a model; its layers keep their first rank, directions that are off have a zero in E."""

    layers: Mapping[str, Any]
    settings: Mapping[str, Any]
    schedule: Schedule | None
    importance: Importance
    kept: dict[str, Tensor] = field(default_factory=dict)

    def parameters(self) -> dict[str, nn.Parameter]:
        """A, B and E of every touched layer."""
        return own_parameters(self.layers)

    def penalty(self) -> Tensor | None:
        """The weight times the mean of ‖A·Aᵀ - I‖² and ‖Bᵀ·B - I‖² over all layers."""
        weight = self.settings["orth_reg_weight"]
        if not weight:
            return None
        products = [
            product
            for layer in self.layers.values()
            for product in (
                layer.lora_A[ADAPTER] @ layer.lora_A[ADAPTER].T,
                layer.lora_B[ADAPTER].T @ layer.lora_B[ADAPTER],
            )
        ]
        eye = torch.eye(products[0].shape[0], device=products[0].device)
        total: Tensor = weight * torch.stack([(product - eye).square().sum() for product in products]).mean()
        return total

    def after_backward(self, step: int) -> None:
        """Watches gradients, switches directions off when it is time, and keeps them off in the end."""
        if self.schedule is None:
            return
        last = self.schedule.last
        if step > last and not self.importance.mean:
            self._switch_off()
            return
        self.importance.observe(self.parameters())
        # A step that was skipped (an overflow) may have been the last allocation: the next one makes up for it.
        if self.schedule.due(step) or step > last:
            scores = {
                name: self.importance.scores(*(f"{name}.{kind}.{ADAPTER}" for kind in ("lora_E", "lora_A", "lora_B")))
                for name in self.layers
            }
            self.kept = kept_by_score(scores, self.schedule.budget(step))
            self._switch_off()
        if step >= last:
            self.importance.mean.clear()
            self.importance.spread.clear()

    def _switch_off(self) -> None:
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.lora_E[ADAPTER][~self.kept[name].to(layer.lora_E[ADAPTER].device)] = 0.0

    def state(self) -> dict[str, Tensor]:
        """The smoothed importance, and which directions are kept."""
        return {
            **{f"mean.{name}": tensor.clone() for name, tensor in self.importance.mean.items()},
            **{f"spread.{name}": tensor.clone() for name, tensor in self.importance.spread.items()},
            **{f"kept.{name}": tensor.clone() for name, tensor in self.kept.items()},
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes up the importance and the directions of a saved state."""
        parameters = self.parameters()
        self.importance.mean.clear()
        self.importance.spread.clear()
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "kept":
                self.kept[name] = tensor.bool().clone()
            else:
                place = self.importance.mean if kind == "mean" else self.importance.spread
                place[name] = tensor.to(parameters[name].device).clone()

    def tensors(self) -> dict[str, Tensor]:
        """A, B and E of the directions that are on."""
        found = {}
        for name, layer in self.layers.items():
            on = self._on(name)
            for kind in ("lora_A", "lora_B", "lora_E"):
                tensor = getattr(layer, kind)[ADAPTER].detach()
                part = tensor[:, on] if kind == "lora_B" else tensor[on]
                found[saved_name(f"{name}.{kind}.{ADAPTER}")] = part.clone().contiguous()
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies saved directions in, to the places that are kept where their number is the same, else to the first."""
        match({saved_name(name): None for name in self.parameters()}, tensors)
        with torch.no_grad():
            for name, layer in self.layers.items():
                right, left, values = (getattr(layer, kind)[ADAPTER] for kind in ("lora_A", "lora_B", "lora_E"))
                saved = [tensors[f"{SAVED_PREFIX}{name}.{kind}"] for kind in ("lora_A", "lora_B", "lora_E")]
                n_saved, rank = len(saved[2]), len(values)
                if (
                    saved[0].shape != (n_saved, right.shape[1])
                    or saved[1].shape != (left.shape[0], n_saved)
                    or n_saved > rank
                ):
                    raise _unlike(name, tuple(saved[0].shape), tuple(right.shape))
                on = self.kept[name] if int(self.kept[name].sum()) == n_saved else torch.arange(rank) < n_saved
                self.kept[name] = on = on if n_saved < rank else torch.ones(rank, dtype=torch.bool)
                on = on.to(values.device)
                values.zero_()
                right[on], left[:, on], values[on] = (tensor.to(values) for tensor in saved)

    def config(self) -> dict[str, Any]:
        """PEFT's AdaLoraConfig, with the pattern of the directions that are on."""
        pattern = {f"{name}.lora_E": self._on(name).tolist() for name in self.layers}
        whole = all(all(on) for on in pattern.values())
        return {**self.settings, "rank_pattern": None if whole else pattern}

    def disabled(self) -> AbstractContextManager[None]:
        """Switches the layers off."""
        return switched_off(self.layers)

    def _on(self, name: str) -> Tensor:
        # Between two allocations a direction that was switched off may have come back a little: it counts.
        values: Tensor = self.layers[name].lora_E[ADAPTER]
        on: Tensor = self.kept[name].to(values.device) | (values.detach().reshape(-1) != 0)
        return on


def _unlike(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> ModelError:
    return ModelError(
        problem(
            "adapter",
            f"'{name}.lora_A' has shape {shape}",
            f"at most shape {wanted}, by its configuration and this base",
            "load it on the base it was tuned on, with the same settings",
        )
    )
