"""What `eval` is asked for: what makes no sense is told before anything is tuned or scored.

Several tasks of one run share `eval`: each is asked for those metrics, classic rows and slices that it has, and what
no task has is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from recft import registry
from recft.data.slices import families, slices
from recft.data.store import Split, Store
from recft.errors import RecftError, RecipeError, problem
from recft.metrics import _base as metrics
from recft.recipe import Recipe
from recft.training import classics

__all__ = ["fitting_metrics", "settled"]

Part = tuple[Recipe, Store]


def settled(parts: Sequence[Part], split: Split) -> tuple[Part, ...]:
    """The parts of a run, each with `eval` as it concerns its task.

    Args:
        parts: the recipe for each task alone, and its prepared data.
        split: whose records have the columns of slices.

    Raises:
        RecipeError: with a line for everything that no task has.
    """
    recipe = parts[0][0]
    wrong: list[str] = []
    for name in dict.fromkeys((*recipe.eval.robustness, *recipe.tune.augment)):
        _tried(partial(registry.load, "recft.perturbations", name), wrong)
    changes: list[dict[str, Any]] = [{} for _ in parts]
    checks: dict[str, Callable[[Part, str], None]] = {
        "metrics": _check_metric,
        "baselines": _check_classic,
        "slices": partial(_check_slice, split),
    }
    for key, check in checks.items():
        for name in getattr(recipe.eval, key) or ():
            said: list[str] = []
            fits = [_tried(partial(check, part, name), said) for part in parts]
            wrong += said[:1] if not any(fits) else []
            for change, fit in zip(changes, fits, strict=True):
                change[key] = (*change.get(key, ()), *([name] if fit else []))
    for part, change in zip(parts, changes, strict=True):
        change["metrics"] = change.get("metrics") or None
        if recipe.eval.candidates == "judged" and not _has_wrong_ones(part):
            change["candidates"] = None
            wrong += [_nothing_to_rank(part)] if len(parts) == 1 else []
    if wrong:
        raise RecipeError("\n".join(wrong))
    return tuple(
        (own.model_copy(update={"eval": own.eval.model_copy(update=change)}), store)
        for (own, store), change in zip(parts, changes, strict=True)
    )


def fitting_metrics(recipe: Recipe) -> tuple[str, ...]:
    """The metrics that a recipe of one task asks for, as far as its output has them; the task's own where it has none.

    Raises:
        RecipeError: there is no such metric.
    """
    task = registry.load("recft.tasks", recipe.task.name)
    wanted = recipe.eval.metrics or ()
    found = tuple(name for name in wanted if _tried(partial(metrics.parse, name, task.output), []))
    return found or task.metrics


def _tried(check: Callable[[], object], wrong: list[str]) -> bool:
    """Whether a check passes; what it says otherwise is added to `wrong`."""
    try:
        check()
    except RecftError as error:
        wrong.append(str(error))
        return False
    return True


def _check_metric(part: Part, name: str) -> None:
    metrics.parse(name, registry.load("recft.tasks", part[0].task.name).output)


def _check_classic(part: Part, name: str) -> None:
    classics.fitting((name,), part[1], registry.load("recft.tasks", part[0].task.name).output)


def _check_slice(split: Split, part: Part, name: str) -> None:
    records = part[1].records(split)
    if name not in families(part[1], records):
        slices(part[1], records, (name,))


def _has_wrong_ones(part: Part) -> bool:
    """Whether a task's own candidates may be wrong ones, so that there is something to rank."""
    recipe, store = part
    task = registry.load("recft.tasks", recipe.task.name)
    if task.output != "ranking" or store.table == "queries":
        return True
    if store.table == "interactions":
        return bool(task.labelled)
    return recipe.data.texts is not None and recipe.data.texts.rejected is not None


def _nothing_to_rank(part: Part) -> str:
    return problem(
        "eval.candidates",
        f"judged, and all candidates of {part[0].task.name} are right ones",
        "a ranking has wrong candidates too, or every model is perfect",
        "set it to all, or to sampled N",
    )
