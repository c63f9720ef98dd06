"""Which base weights an adapter is served over: measured on the validation task, not assumed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recft import registry
from recft.data.store import Store
from recft.exports._base import Export, Opening
from recft.exports._certificate import served
from recft.metrics import _base as metrics
from recft.models.encoder import Encoder
from recft.recipe import Recipe
from recft.run import Listener, RunFolder
from recft.schema import K_BIT
from recft.training.exam import Exam
from recft.training.opened import exam_of
from recft.training.reference import merge_of, reference
from recft.training.scoring import score_model
from recft.training.servings import read_servings

__all__ = ["Choice", "choose"]


@dataclass(frozen=True)
class Choice:
    """The weights under the adapter.

    Attributes:
        weights: `original` or `dequantized`.
        reason: why, in words.
        scores: on validation, by weights; those quantized again in place are `requantized (nf4)`.
    """

    weights: str
    reason: str
    scores: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For recft-export.json."""
        return {"weights": self.weights, "reason": self.reason, "scores": self.scores}


def choose(
    recipe: Recipe, folder: RunFolder, store: Store, target: Export, dtype: str, onto: str, listen: Listener
) -> Choice:
    """The weights asked for, or of `auto` those that score best on validation in the wanted dtype."""
    if onto != "auto":
        return Choice(onto, "as asked", {})
    if recipe.model.quantization == "none":
        return Choice("original", "an unquantized base has its original weights only", {})
    if not target.carries_base:
        return Choice("dequantized", "an adapter is served over the base it was tuned on", {})
    task = registry.load("recft.tasks", recipe.task.name)
    exam = exam_of(recipe, store, "valid", (task.monitor,))
    if not len(exam.records):
        return Choice("dequantized", "no validation records to choose by: the weights that the adapter saw", {})

    def score(name: str, make: Callable[[], float]) -> float:
        listen("stage", {"name": f"scoring the adapter over the {name} weights on validation"})
        return make()

    plain = {
        name: score(name, partial(_plain, recipe, folder, exam, task.monitor, name))
        for name in ("dequantized", "original")
    }
    again = {}
    wanted = dtype if dtype in K_BIT else recipe.model.quantization
    if wanted in target.dtypes and merge_of(recipe, folder, "original") is not None:
        # In place: the weights are quantized once more after merging. Over the original weights only where asked for.
        for name in plain if dtype in K_BIT else ("dequantized",):
            label = f"{name}, requantized ({wanted})"
            again[name] = score(label, partial(_again, recipe, folder, exam, task.monitor, (target, wanted, name)))
    sign = 1 if _higher_is_better(task) else -1
    deciding = again if dtype in K_BIT and again else plain
    best = max(deciding, key=lambda name: sign * deciding[name])  # dequantized stands first: it wins a tie
    scores = plain | {f"{name}, requantized ({wanted})": value for name, value in again.items()}
    shown = "; ".join(f"{name} {value:.4f}" for name, value in scores.items())
    return Choice(best, f"validation {task.monitor}: {shown}", scores)


def _higher_is_better(task: Any) -> bool:
    metric = registry.load(metrics.PACKAGE, metrics.parse(task.monitor, task.output)[0])
    return bool(metric.higher_is_better)


def _plain(recipe: Recipe, folder: RunFolder, exam: Exam, metric: str, onto: str) -> float:
    tuned = reference(recipe, folder, onto)
    return score_model(exam, Encoder(tuned.model, tuned.tokenizer)).values[metric]


def _again(recipe: Recipe, folder: RunFolder, exam: Exam, metric: str, how: tuple[Export, str, str]) -> float:
    from recft.exports._engine import save_tokenizer
    from recft.models.base import tokenizer_of

    target, dtype, onto = how
    serving = read_servings(folder.root)[recipe.task.name]
    merge = merge_of(recipe, folder, onto)
    assert merge is not None  # noqa: S101  # the caller has looked
    with tempfile.TemporaryDirectory(dir=folder.root) as draft:
        merge.write(Path(draft), dtype)
        save_tokenizer(tokenizer_of(recipe.model), serving, Path(draft))
        engine = target.open(Path(draft), Opening(serving))
        return score_model(exam, partial(served, engine, serving)).values[metric]
