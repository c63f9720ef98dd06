"""How the texts of each task of a run become numbers, before a model is loaded and after it was tuned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recft import registry
from recft.errors import ModelError, RecipeError, problem
from recft.models.base import config_of, kind_of
from recft.models.text_model import Serving, label_tokens
from recft.recipe import Recipe
from recft.run import RunFolder, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["carrier_of", "read_servings", "servings_of", "write_servings"]


def carrier_of(heads: Sequence[str], kind: str) -> str:
    """The head whose transformers class holds the weights of all of these.

    Raises:
        RecipeError: there is no such class.
    """
    wanted = {"answers" if head == "likelihood" else head for head in heads} - {"embedding"}
    if len(wanted) > 1:
        raise RecipeError(
            problem(
                "tasks",
                f"{' and '.join(sorted(set(heads)))} on one {kind} base",
                "one model has a new head or its vocabulary, not both",
                "tune these tasks in runs of their own",
            )
        )
    return next((head for head in heads if head != "embedding"), "embedding")


def servings_of(
    parts: Sequence[tuple[Recipe, Sequence[str]]], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Serving]:
    """How the model of a run turns each task's texts into numbers, by task.

    Args:
        parts: each task's recipe, and the ids of its catalogue (of a classification, the classes).
        tokenizer: the base's.
    """
    kind = kind_of(config_of(parts[0][0].model))
    heads, widths, labels = [], [], []
    for recipe, catalogue in parts:
        task = registry.load("recft.tasks", recipe.task.name)
        heads.append(str(task.head(recipe.task, kind)))
        labels.append(tuple(task.labels(recipe.task, heads[-1], catalogue)))
        widths.append(len(labels[-1]) if heads[-1] == "classifier" else 0)
    starts = np.cumsum([0, *widths])
    found = {}
    for place, (recipe, _) in enumerate(parts):
        own = range(int(starts[place]), int(starts[place + 1]))
        found[recipe.task.name] = dataclasses.replace(
            _serving(recipe, kind, heads[place], labels[place], tokenizer),
            carrier=carrier_of(heads, kind),
            n_outputs=max(1, int(starts[-1])),
            columns=tuple(own) if len(own) < int(starts[-1]) else (),
        )
    return found


def _serving(
    recipe: Recipe, kind: str, head: str, labels: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> Serving:
    wanted = getattr(recipe.task, "pooling", "auto")
    pooling = wanted if wanted != "auto" else ("mean" if kind == "encoder" else "last")
    answers = getattr(recipe.task, "answers", ()) if head == "answers" else ()
    chat = bool(getattr(recipe.task, "chat", False))
    if head == "likelihood":
        _check_tokenizer(recipe, tokenizer, chat)
    return Serving(
        task=recipe.task.name,
        kind=kind,
        head=head,
        pooling=pooling if head == "embedding" else "none",
        normalize=head == "embedding",
        max_tokens=recipe.tune.max_tokens,
        labels=labels,
        label_ids=label_tokens(tokenizer, answers) if answers else (),
        temperature=getattr(recipe.task, "temperature", 1.0) if head == "embedding" else 1.0,
        chat=chat,
    )


def _check_tokenizer(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, chat: bool) -> None:
    """Nothing, where the tokenizer can close a reply and, where asked, write a chat.

    Raises:
        ModelError: it cannot.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            problem(
                "model.base", f"'{recipe.model.base}' has no end token", "a reply has an end", "choose another base"
            )
        )
    if chat and not tokenizer.chat_template:
        raise ModelError(
            problem(
                "task.chat",
                f"'{recipe.model.base}' has no chat template",
                "a chat is written as the base knows it",
                "choose a chat model, or set task.chat: false",
            )
        )


def write_servings(path: Path, servings: Mapping[str, Serving]) -> None:
    """Writes how texts become numbers, by task; `read_servings` reads it back."""
    write_json(path, {name: serving.to_json() for name, serving in servings.items()})


def read_servings(folder: Path) -> dict[str, Serving]:
    """How the texts of a run's tasks become numbers, by task.

    Raises:
        ModelError: the run has not been tuned.
    """
    path = RunFolder(folder).serving
    if not path.is_file():
        raise ModelError(
            problem(str(path), "is missing", "a tuned run says how it is served", "run `recft tune` first")
        )
    return {name: Serving.from_json(value) for name, value in read_json(path).items()}
