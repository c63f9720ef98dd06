"""What is served in the parameters' place: their running average, drawn back towards where tuning began."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["Served"]


class Served:
    """The served values of some parameters.

    Attributes:
        average: the running average by name; empty where there is none. A resumed run restores it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, share: float) -> None:
        self._parameters, self._decay, self._share = parameters, decay, share
        copies = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        self.average: dict[str, Tensor] = {name: tensor.clone() for name, tensor in copies.items()} if decay else {}
        self._start = copies if share < 1 else {}

    def update(self, step: int) -> None:
        """Takes the parameters after step number `step` into the average."""
        if not self.average:
            return
        # The bias of the first steps is taken out by a decay that grows to its value.
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self.average[name].lerp_(parameter, 1 - decay)
                # What the method has switched off, an exact zero, must not come back through its past.
                self.average[name].masked_fill_(parameter == 0, 0.0)

    def values(self) -> dict[str, Tensor]:
        """The served values by name."""
        values = {name: self.average.get(name, parameter) for name, parameter in self._parameters.items()}
        if self._start:
            values = {name: torch.lerp(self._start[name], value, self._share) for name, value in values.items()}
        return {name: value.detach().clone() for name, value in values.items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the parameters are those that are served."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.put(self.values())
        try:
            yield
        finally:
            self.put(kept)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Gives the parameters these values."""
        with torch.no_grad():
            for name, value in values.items():
                self._parameters[name].copy_(value)
