"""An attached adapter that has parameters and nothing else to remember: what most methods hand back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recft.errors import ModelError, problem

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Adapter", "copy_in", "match"]


@dataclass(frozen=True)
class Adapter:
    """An adapter without a penalty, a life or a state of its own; meets `_base.Attached`.

    Attributes:
        own: its parameters, by their name in the model.
        saved_as: their name in `adapter_model.safetensors`, by their name in the model.
        settings: what `adapter_config.json` holds.
        off: a context in which it does nothing.
    """

    own: Mapping[str, nn.Parameter]
    saved_as: Mapping[str, str]
    settings: Mapping[str, Any]
    off: Callable[[], contextlib.AbstractContextManager[None]]

    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters, by their name in the model."""
        return dict(self.own)

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def after_backward(self, step: int) -> None:
        """Does nothing."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the parameters, by saved name."""
        return {self.saved_as[name]: parameter.detach().clone() for name, parameter in self.own.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies saved tensors into the parameters."""
        copy_in({self.saved_as[name]: parameter for name, parameter in self.own.items()}, tensors)

    def config(self) -> dict[str, Any]:
        """What `adapter_config.json` holds."""
        return dict(self.settings)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model computes as the base alone."""
        return self.off()


def match(own: Mapping[str, object], saved: Mapping[str, object]) -> None:
    """Nothing, where both have the same names.

    Raises:
        ModelError: names differ.
    """
    missing, unknown = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or unknown:
        raise ModelError(
            problem(
                "adapter",
                f"{len(missing)} tensors missing and {len(unknown)} unknown, the first '{(missing + unknown)[0]}'",
                "an adapter's file holds exactly the tensors of its configuration on this base",
                "load it on the base it was tuned on, with the adapter_config.json beside it",
            )
        )


def copy_in(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into an adapter's own, both by saved name.

    Raises:
        ModelError: names or shapes differ; nothing is copied then.
    """
    import torch

    match(own, saved)
    for name, tensor in own.items():
        if tensor.shape != saved[name].shape:
            raise ModelError(
                problem(
                    "adapter",
                    f"'{name}' has shape {tuple(saved[name].shape)}",
                    f"shape {tuple(tensor.shape)}, by its configuration and this base",
                    "load it on the base it was tuned on, with the same settings",
                )
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
