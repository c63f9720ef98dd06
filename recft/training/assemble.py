"""A base with its head and its adapter, ready to train or to score, and the adapter's folder."""

from __future__ import annotations

import contextlib
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
from recft.models.text_model import Serving, TextModel, label_tokens
from recft.recipe import Recipe
from recft.run import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Tuned", "check", "facts_of", "load_adapter", "new", "open_adapter", "save_adapter", "save_tensors"]

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
    """

    model: TextModel
    tokenizer: PreTrainedTokenizerBase
    attached: Attached
    heads: Mapping[str, nn.Parameter]
    base_heads: dict[str, Tensor]

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
        "head": task.heads.get(kind),
    }


def check(recipe: Recipe) -> dict[str, object]:
    """The facts of a recipe whose parts can work together; nothing is loaded.

    Raises:
        RecipeError: a member refuses the combination, with its reason.
    """
    facts = facts_of(recipe)
    method = registry.load("recft.methods", recipe.method.name)
    task = registry.load("recft.tasks", recipe.task.name)
    refusal = registry.refused((*method.refusals, *task.refusals), facts)
    place, reason, fix = "recipe", "", ""
    if refusal is not None:
        place, reason, fix = ", ".join(f"{key}: {facts[key]}" for key in refusal.when), refusal.reason, refusal.fix
    elif recipe.tune.gradient_checkpointing and not method.allows_gradient_checkpointing:
        place = "tune.gradient_checkpointing: true"
        reason, fix = f"{recipe.method.name} cannot run with it", "leave it out"
    elif facts["head"] is None:
        place, fix = f"task.name: {recipe.task.name}", "choose another base or task"
        reason = f"the task has no head for {facts['kind']} bases"
    if reason:
        raise RecipeError(problem(place, "this combination cannot work", reason, fix))
    return facts


def serving_of(recipe: Recipe, kind: str, tokenizer: PreTrainedTokenizerBase) -> Serving:
    """How this recipe's model turns text into numbers."""
    task = registry.load("recft.tasks", recipe.task.name)
    head = task.heads[kind]
    wanted = getattr(recipe.task, "pooling", "auto")
    pooling = wanted if wanted != "auto" else ("mean" if kind == "encoder" else "last")
    answers = getattr(recipe.task, "answers", ()) if head == "answers" else ()
    return Serving(
        task=recipe.task.name,
        kind=kind,
        head=head,
        pooling=pooling if head == "embedding" else "none",
        normalize=head == "embedding",
        max_tokens=recipe.tune.max_tokens,
        labels=task.labels,
        label_ids=label_tokens(tokenizer, answers) if answers else (),
        temperature=getattr(recipe.task, "temperature", 1.0),
    )


def new(recipe: Recipe, total_steps: int, texts: Sequence[Any], device: torch.device) -> Tuned:
    """A fresh base with a new adapter.

    Args:
        recipe: checked already.
        total_steps: optimizer steps to come.
        texts: some training texts, for initialisation from data.
        device: where the model goes.
    """
    from recft.models.text_model import chunks_by_length, padded, tokenize

    facts = facts_of(recipe)
    tokenizer = tokenizer_of(recipe.model)
    serving = serving_of(recipe, str(facts["kind"]), tokenizer)
    dtype = compute_dtype(recipe.model.compute_dtype, device)
    base = load_base(recipe.model, serving.head, device, dtype, recipe.seed)
    tokens = tokenize(tokenizer, texts, serving.max_tokens)
    pad_id = int(tokenizer.pad_token_id or 0)

    def together(some: Sequence[str]) -> dict[str, Tensor]:
        found = tokenize(tokenizer, some, serving.max_tokens)
        return padded(found, np.arange(len(found)), pad_id, device, serving.max_tokens)

    plan = Plan(
        kind=serving.kind,
        base=recipe.model.base,
        total_steps=total_steps,
        dropout=recipe.tune.dropout,
        seed=recipe.seed,
        samples=[
            padded(tokens, rows, pad_id, device, serving.max_tokens) for rows in chunks_by_length(tokens, 4096, 64)
        ],
        tokenize=together,
    )
    attached = registry.load("recft.methods", recipe.method.name).attach(base.model, recipe.method, plan)
    if recipe.tune.gradient_checkpointing:
        # The other, reentrant kind wants inputs with gradients, which a frozen base has not.
        base.model.activation_checkpointing_enable({"use_reentrant": False})
    return _tuned(base, serving, tokenizer, attached)


def _tuned(base: Base, serving: Serving, tokenizer: PreTrainedTokenizerBase, attached: Attached) -> Tuned:
    heads = {}
    parameters = dict(base.model.named_parameters())
    for name in base.new_parameters:
        # A head trains in float32 whatever the base computes in.
        parameters[name].data = parameters[name].data.float()
        parameters[name].requires_grad_(True)
        heads[name] = parameters[name]
    _float_inputs(base, heads)
    return Tuned(TextModel(base.model, serving), tokenizer, attached, heads, {})


def _float_inputs(base: Base, heads: Mapping[str, nn.Parameter]) -> None:
    """Lets a float32 head take the activations of a base in a smaller dtype."""
    for name in {name.rpartition(".")[0] for name in heads}:
        base.model.get_submodule(name).register_forward_pre_hook(lambda _module, args: (args[0].float(), *args[1:]))


def open_adapter(
    recipe: Recipe, folder: Path, device: torch.device | None = None, base: Base | None = None, total_steps: int = 0
) -> Tuned:
    """The saved adapter over its base; `base` where another than the recipe's own is wanted (float32, say).

    Raises:
        ModelError: the folder is not whole, or does not fit the base.
    """
    device = device or device_of()
    config, _ = load_adapter(folder)
    facts = facts_of(recipe)
    tokenizer = tokenizer_of(recipe.model)
    serving = serving_of(recipe, str(facts["kind"]), tokenizer)
    if base is None:
        dtype = compute_dtype(recipe.model.compute_dtype, device)
        base = load_base(recipe.model, serving.head, device, dtype, recipe.seed)
    plan = Plan(
        kind=serving.kind,
        base=recipe.model.base,
        total_steps=total_steps,
        dropout=recipe.tune.dropout,
        seed=recipe.seed,
    )
    attached = registry.load("recft.methods", recipe.method.name).restore(base.model, config, plan)
    tuned = _tuned(base, serving, tokenizer, attached)
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
