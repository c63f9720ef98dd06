"""A run, read: its folder, its recipe, its prepared data, and the exam that each task sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from recft import registry
from recft.data.popularity import counts
from recft.data.store import Split, Store
from recft.errors import DataError, ModelError, RecipeError, problem
from recft.metrics import _base as metrics
from recft.models.encoder import encode
from recft.recipe import Recipe
from recft.run import (
    RunFolder,
)
from recft.training.asked import fitting_metrics
from recft.training.assemble import Tuned
from recft.training.exam import Exam

__all__ = ["Opened", "exam_of", "open_run", "refuse_no_effect"]

NO_EFFECT = 1e-7


@dataclass(frozen=True)
class Opened:
    """A run, read.

    Attributes:
        folder: its paths.
        recipe: resolved.
        parts: the recipe for each task alone, and its prepared data.
    """

    folder: RunFolder
    recipe: Recipe
    parts: tuple[tuple[Recipe, Store], ...]

    def part(self, task: str | None) -> tuple[Recipe, Store]:
        """One task's recipe and data; the only one's where none is named.

        Raises:
            RecipeError: there is no such task, or several and none is named.
        """
        found = {recipe.task.name: (recipe, store) for recipe, store in self.parts}
        name = task.replace("_", "-") if task else next(iter(found)) if len(found) == 1 else "none"
        if name not in found:
            raise RecipeError(problem("--task", f"{name}", f"this run has {', '.join(found)}", "name one of its tasks"))
        return found[name]


def open_run(run: Path) -> Opened:
    """A run's folder, its resolved recipe and its prepared data.

    Raises:
        RecipeError, DataError: a part is missing.
    """
    folder = RunFolder(run)
    if not folder.recipe.is_file():
        raise DataError(
            problem(
                str(run), "is no run folder: it has no recipe.yaml", "a folder made by `recft tune`", "check the path"
            )
        )
    recipe = Recipe.load(folder.recipe)
    parts = recipe.parts()
    stores = [Store.open(folder.data_of(part.task.name, len(parts))) for part in parts]
    return Opened(folder, recipe, tuple(zip(parts, stores, strict=True)))


def exam_of(recipe: Recipe, store: Store, split: str, names: tuple[str, ...] | None = None) -> Exam:
    """The exam that a recipe of one task sets on a split."""
    task = registry.load("recft.tasks", recipe.task.name)
    chosen = names or fitting_metrics(recipe)
    # Who reads query and product together is asked about judged products; a catalogue would take hours.
    judged = task.reads(recipe.task) == "pairs" and (store.table != "interactions" or task.labelled)
    lists = task.output == "ranking" and metrics.depth(chosen) > 0
    return Exam(
        task,
        recipe.task,
        store.records(cast("Split", split)),
        store.item_texts,
        chosen,
        recipe.eval,
        recipe.eval.candidates or ("judged" if judged else "all"),
        counts(store.records("train"), len(store.item_ids)) if lists else None,
    )


def refuse_no_effect(tuned: Tuned, exam: Exam) -> None:
    """Nothing, where switching the adapter off (and keeping the head) changes some output.

    Raises:
        ModelError: the adapter changes nothing: the run scores the base under another name.
    """
    rows = np.arange(min(len(exam.records), 16))
    find = exam.task.pairs if exam.task.reads(exam.config) == "pairs" else exam.task.contexts
    texts = find(exam.config, exam.records, rows, exam.items)[:32]
    ours = encode(tuned.model, tuned.tokenizer, texts)
    with tuned.attached.disabled():
        without = encode(tuned.model, tuned.tokenizer, texts)
    change = float(np.abs(ours - without).max(initial=0))
    if not change > NO_EFFECT:
        raise ModelError(
            problem(
                "adapter",
                f"switching it off changes outputs by {change:.1e} at most",
                f"an adapter that was tuned changes them by more than {NO_EFFECT:.0e}",
                "check that tuning ran: learning rate, steps, method.layers",
            )
        )
