"""AdaLoRA's rank allocation: which directions of which layers are worth their place; imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from recft.errors import TuneError, problem

__all__ = ["Importance", "Schedule", "kept_by_score"]

SMOOTHING = 0.85
"""β1 and β2 of the paper: how long importance and its spread are remembered."""


@dataclass(frozen=True)
class Schedule:
    """How many directions the whole model may have at each step (equation 19 of the paper).

    Attributes:
        first: the last step with the whole budget.
        last: the step from which the budget is the target.
        every: steps between allocations.
        start: the whole budget.
        target: the budget that is reached.
    """

    first: int
    last: int
    every: int
    start: int
    target: int

    @classmethod
    def of_run(
        cls, total_steps: int, shares: tuple[float, float], every: int | None, budgets: tuple[int, int]
    ) -> Schedule:
        """The schedule of a run: shares of it before the first and after the last allocation, and both budgets."""
        last = min(total_steps - 1, round(total_steps * (1 - shares[1])))
        first = min(last - 1, round(total_steps * shares[0]))
        return cls(first, last, every or max(1, (last - first) // 100), *budgets)

    def budget(self, step: int) -> int:
        """The budget at a step: whole, then falling as a cube, then the target.

        >>> [Schedule(2, 6, 1, 80, 40).budget(step) for step in (2, 3, 4, 5, 6)]
        [80, 57, 45, 41, 40]
        """
        if step <= self.first:
            return self.start
        left = max(0.0, 1 - (step - self.first) / (self.last - self.first))
        return round(self.target + (self.start - self.target) * left**3)

    def due(self, step: int) -> bool:
        """Whether directions are chosen anew at a step."""
        return step == self.last or (self.first < step < self.last and (step - self.first) % self.every == 0)


@dataclass
class Importance:
    """Smoothed importance |w·g| of every entry and its smoothed spread (equations 8 to 10), by parameter name."""

    mean: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)

    def observe(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes in one step's gradients.

        Raises:
            TuneError: a parameter has none.
        """
        for name, parameter in parameters.items():
            if parameter.grad is None:
                raise TuneError(
                    problem(
                        "method.name",
                        f"'{name}' has no gradient when ranks are allocated",
                        "AdaLoRA reads gradients after backward and before they are cleared",
                        "call after_backward before zero_grad, and let every chosen layer take part in the loss",
                    )
                )
            now = (parameter.detach() * parameter.grad).abs().float()
            mean = self.mean.setdefault(name, torch.zeros_like(now))
            mean.mul_(SMOOTHING).add_(now, alpha=1 - SMOOTHING)
            spread = self.spread.setdefault(name, torch.zeros_like(now))
            spread.mul_(SMOOTHING).add_((now - mean).abs(), alpha=1 - SMOOTHING)

    def scores(self, values: str, right: str, left: str) -> Tensor:
        """The score (r,) of each direction: its value's importance and the mean of its two vectors' (equation 7)."""
        return (
            self._of(values).reshape(-1) + self._of(right).mean(dim=1) + self._of(left).mean(dim=0)
        )  # (r, 1), (r, in), (out, r)

    def _of(self, name: str) -> Tensor:
        return self.mean[name] * self.spread[name]


def kept_by_score(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Masks (r,) of the `budget` best directions of all layers; of equal ones the first, so that a rerun agrees."""
    every = torch.cat([score.cpu() for score in scores.values()])
    best = torch.sort(every, descending=True, stable=True).indices[:budget]
    mask = torch.zeros(len(every), dtype=torch.bool)
    mask[best] = True
    sizes = [len(score) for score in scores.values()]
    return dict(zip(scores, _split(mask, sizes), strict=True))


def _split(mask: Tensor, sizes: Iterable[int]) -> list[Tensor]:
    return [part.clone() for part in torch.split(mask, list(sizes))]
