"""A base with its head and its adapter, ready to train or to score, and the adapter's folder."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recft import registry
from recft.errors import ModelError, RecipeError, problem
from recft.methods._base import SAVED_PREFIX, Attached, Plan
from recft.models.base import Base, compute_dtype, config_of, device_of, kind_of, load_base, tokenizer_of
from recft.models.blocks import checkpoint_blocks
from recft.models.text_model import Serving, TextModel, chunks_by_length, padded
from recft.models.tokens import Tokens, tokenize
from recft.recipe import Recipe
from recft.run import atomic_folder, read_json, write_json
from recft.training.servings import carrier_of, read_servings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Tuned",
    "check",
    "facts_of",
    "load_adapter",
    "new",
    "open_adapter",
    "save_adapter",
    "save_tensors",
]

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Tuned:
    """A base with its adapter.

    Attributes:
        model: texts' tokens in, K numbers out.
        tokenizer: the base's.
        attached: the adapter.
        heads: parameters of a new head, by name in the base; empty where the task needs none.
        base_heads: the same head as it was tuned on the frozen base alone: what the `base` row scores with.
        views: the same model as each task of the run sees it, by task.
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    attached: Attached
    heads: Mapping[str, nn.Parameter]
    base_heads: dict[str, Tensor]
    views: Mapping[str, TextModel]

    def of(self, task: str) -> Tuned:
        """The same, with the model as that task sees it."""
        return dataclasses.replace(self, model=self.views[task])

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """Within it the model is the untuned base, with the head that was tuned on it where there is one."""
        tuned = {name: parameter.detach().clone() for name, parameter in self.heads.items()}
        with self.attached.disabled():
            _copy(self.heads, self.base_heads)
            try:
                yield
            finally:
                _copy(self.heads, tuned)


def _copy(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def facts_of(recipe: Recipe) -> dict[str, object]:
    """What refusals are matched against: the recipe's dotted keys, and what the base and this machine are."""
    config = config_of(recipe.model)
    kind = kind_of(config)
    task = registry.load("recft.tasks", recipe.task.name)
    return recipe.facts() | {
        "kind": kind,
        "architecture": config.model_type,
        "device": device_of().type,
        "head": task.head(recipe.task, kind),
        "reads": task.reads(recipe.task),
        "mergeable": registry.load("recft.methods", recipe.method.name).mergeable,
    }


def check(recipe: Recipe) -> dict[str, object]:
    """The facts of a recipe whose parts can work together (of several tasks: the first's); nothing is loaded.

    Raises:
        RecipeError: a member refuses the combination, with its reason.
    """
    every = [_checked(part) for part in recipe.parts()]
    carrier_of([str(facts["head"]) for facts in every], str(every[0]["kind"]))
    return every[0]


def _checked(recipe: Recipe) -> dict[str, object]:
    facts = facts_of(recipe)
    method = registry.load("recft.methods", recipe.method.name)
    task = registry.load("recft.tasks", recipe.task.name)
    refusal = registry.refused((*method.refusals, *task.refusals), facts)
    place, reason, fix = "recipe", "", ""
    if refusal is not None:
        place, reason, fix = ", ".join(f"{key}: {facts[key]}" for key in refusal.when), refusal.reason, refusal.fix
    elif recipe.tune.gradient_checkpointing is True and not method.allows_gradient_checkpointing:
        place = "tune.gradient_checkpointing: true"
        reason, fix = f"{recipe.method.name} cannot run with it", "leave it out"
    elif facts["head"] is None:
        place, fix = f"task.name: {recipe.task.name}", "choose another base or task"
        reason = f"the task has no head for {facts['kind']} bases"
    if reason:
        raise RecipeError(problem(place, "this combination cannot work", reason, fix))
    return facts


def new(
    recipe: Recipe, servings: Mapping[str, Serving], total_steps: int, texts: Sequence[Any], device: torch.device
) -> Tuned:
    """A fresh base with a new adapter.

    Args:
        recipe: checked already.
        servings: from `servings_of`.
        total_steps: optimizer steps to come.
        texts: some training texts of the first task, for initialisation from data.
        device: where the model goes.
    """
    tokenizer = tokenizer_of(recipe.model)
    serving = servings[recipe.task.name]
    dtype = compute_dtype(recipe.model.compute_dtype, device)
    base = load_base(recipe.model, serving.carrier, device, dtype, recipe.seed, serving.n_outputs)
    tokens = serving.tokens(tokenizer, texts)
    pad_id = int(tokenizer.pad_token_id or 0)

    def ready(some: Sequence[Tokens], rows: np.ndarray) -> dict[str, Tensor]:
        batch = padded(some, rows, pad_id, device, serving.max_tokens)
        batch.pop("tail_mask", None)  # the base itself knows nothing of it
        return batch

    def together(some: Sequence[str]) -> dict[str, Tensor]:
        found = tokenize(tokenizer, some, serving.max_tokens)
        return ready(found, np.arange(len(found)))

    plan = _plan(recipe, serving, total_steps)
    plan = dataclasses.replace(
        plan, samples=[ready(tokens, rows) for rows in chunks_by_length(tokens, 4096, 64)], tokenize=together
    )
    attached = registry.load("recft.methods", recipe.method.name).attach(base.model, recipe.method, plan)
    if recipe.tune.gradient_checkpointing is True:
        checkpoint_blocks(base.model)
    return _tuned(base, servings, recipe.task.name, tokenizer, attached)


def _plan(recipe: Recipe, serving: Serving, total_steps: int) -> Plan:
    return Plan(
        kind=serving.kind,
        base=recipe.model.base,
        total_steps=total_steps,
        dropout=recipe.tune.dropout,
        seed=recipe.seed,
    )


def _tuned(
    base: Base, servings: Mapping[str, Serving], task: str, tokenizer: PreTrainedTokenizerBase, attached: Attached
) -> Tuned:
    heads = {}
    parameters = dict(base.model.named_parameters())
    for name in base.new_parameters:
        # A head trains in float32 whatever the base computes in.
        parameters[name].data = parameters[name].data.float()
        parameters[name].requires_grad_(True)
        heads[name] = parameters[name]
    _float_inputs(base, heads)
    views = {name: TextModel(base.model, serving) for name, serving in servings.items()}
    return Tuned(views[task], tokenizer, attached, heads, {}, views)


def _float_inputs(base: Base, heads: Mapping[str, nn.Parameter]) -> None:
    """Lets a float32 head take the activations of a base in a smaller dtype."""
    for name in {name.rpartition(".")[0] for name in heads}:
        base.model.get_submodule(name).register_forward_pre_hook(lambda _module, args: (args[0].float(), *args[1:]))


def open_adapter(
    recipe: Recipe, folder: Path, device: torch.device | None = None, base: Base | None = None, total_steps: int = 0
) -> Tuned:
    """The saved adapter over its base, as the model of the recipe's (first) task.

    Args:
        recipe: the run's.
        folder: the run's adapter.
        device: where the model goes; this machine's where absent.
        base: where another than the recipe's own is wanted (float32, say).
        total_steps: optimizer steps of the run.

    Raises:
        ModelError: the folder is not whole, or does not fit the base.
    """
    device = device or device_of()
    config, _ = load_adapter(folder)
    tokenizer = tokenizer_of(recipe.model)
    servings = read_servings(folder.parent)
    serving = servings[recipe.task.name]
    if base is None:
        dtype = compute_dtype(recipe.model.compute_dtype, device)
        base = load_base(recipe.model, serving.carrier, device, dtype, recipe.seed, serving.n_outputs)
    plan = _plan(recipe, serving, total_steps)
    attached = registry.load("recft.methods", recipe.method.name).restore(base.model, config, plan)
    tuned = _tuned(base, servings, recipe.task.name, tokenizer, attached)
    read_adapter_into(tuned, folder)
    return tuned


def read_adapter_into(tuned: Tuned, folder: Path) -> None:
    """Loads a saved adapter and head into one that is attached already.

    Raises:
        ModelError: names or shapes differ.
    """
    _, tensors = load_adapter(folder)
    names = {SAVED_PREFIX + name: name for name in tuned.heads}
    missing = [name for key, name in names.items() if key not in tensors]
    if missing:
        raise ModelError(
            problem(
                str(folder), f"the head {missing[0]} is missing", "a task with a new head saves it", "tune it again"
            )
        )
    _copy(tuned.heads, {name: tensors[key] for key, name in names.items()})
    tuned.attached.load({key: tensor for key, tensor in tensors.items() if key not in names})
    beside = folder.parent / BASE_HEAD
    if tuned.heads and beside.is_file():
        tuned.base_heads.update(load_file(beside))


BASE_HEAD = "base_head.safetensors"


def save_adapter(tuned: Tuned, folder: Path) -> None:
    """Writes the adapter and a trained head in PEFT's layout, whole or not at all; equal adapters give equal bytes."""
    config = tuned.attached.config()
    tensors = tuned.attached.tensors()
    if tuned.heads:
        config["modules_to_save"] = sorted({name.split(".")[0] for name in tuned.heads})
        tensors |= {SAVED_PREFIX + name: parameter.detach() for name, parameter in tuned.heads.items()}
    with atomic_folder(folder) as draft:
        write_json(draft / CONFIG, config)
        save_tensors(draft / TENSORS, tensors)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as safetensors, in order of name."""
    save_file(
        {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}, path, metadata={"format": "pt"}
    )


def load_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and tensors of a saved adapter.

    Raises:
        ModelError: the folder is missing or not whole.
    """
    if not (folder / TENSORS).is_file():
        raise ModelError(
            problem(
                str(folder),
                f"holds no {TENSORS}",
                "a tuned run has an adapter",
                "run `recft tune` first, or to its end with --resume",
            )
        )
    try:
        return read_json(folder / CONFIG), load_file(folder / TENSORS)
    except SafetensorError as error:
        raise ModelError(
            problem(
                str(folder / TENSORS),
                f"is damaged ({error})",
                "a whole safetensors file",
                "restore it from a copy, or tune again",
            )
        ) from error
