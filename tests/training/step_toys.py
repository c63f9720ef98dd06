"""One step on a toy recipe: its batch, its loss, and the gradients that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recft import registry
from recft.data.store import Store
from recft.models.base import tokenizer_of
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.training import assemble
from recft.training.assemble import Tuned
from recft.training.servings import servings_of
from recft.training.step import Gradients, Sums, gradients


@dataclass
class Ranks:
    """One of some processes that compute one after another: what the others would send is added from outside."""

    num_processes: int = 1
    process_index: int = 0
    others: Tensor | None = None
    mine: Tensor | None = None

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        self.mine = tensor.clone()
        return tensor if self.others is None else tensor + self.others


@dataclass(frozen=True)
class Work:
    """A batch and what its gradients are computed with."""

    tuned: Tuned
    texts: Sequence[Any]
    loss: Callable[[Tensor], Tensor]

    def run(self, micro_batch: int = 64, ranks: Ranks | None = None, **options: Any) -> tuple[Sums, dict[str, Tensor]]:
        """The sums and every parameter's gradient."""
        parameters = {**self.tuned.attached.parameters(), **self.tuned.heads}
        for parameter in parameters.values():
            parameter.grad = None
        work = Gradients(
            self.tuned.model.train(), self.tuned.tokenizer, lambda: None, ranks or Ranks(), seed=5, **options
        )
        sums = gradients(work, self.texts, self.loss, micro_batch)
        return sums, {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def work_of(recipe: Recipe, folder: Path) -> Work:
    """Six records of a recipe's training split, and a new adapter that already does something."""
    store: Store = prepare(recipe, folder)
    member = registry.load("recft.tasks", recipe.task.name)
    servings = servings_of([(recipe, store.item_ids)], tokenizer_of(recipe.model))
    tuned = assemble.new(recipe, servings, 4, (), torch.device("cpu"))
    with torch.no_grad():  # away from B = 0, where A has no gradient
        for number, parameter in enumerate(tuned.attached.parameters().values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    rows = np.arange(6)
    batch = member.batch(recipe.task, store.records("train"), rows, store.item_texts, np.random.default_rng(0))
    return Work(tuned, batch.texts, lambda outputs: member.loss(recipe.task, outputs, batch))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    for name, grad in expected.items():
        assert grad.any(), f"{name} has no gradient: nothing is compared"
        difference = (found[name] - grad).norm() / grad.norm()
        assert difference < 1e-5, f"{name}: {difference:.1e}"
