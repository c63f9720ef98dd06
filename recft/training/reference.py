"""The tuned model as exports are held to it, in float32, and what merging makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from recft import registry
from recft.exports import _certificate as certificate
from recft.exports._rows import Rows
from recft.methods._base import SAVED_PREFIX
from recft.models.base import base_hash
from recft.models.encoder import Encoder, remembering
from recft.models.merging import Merge
from recft.models.text_model import Serving
from recft.models.weights import float32_base
from recft.recipe import Recipe
from recft.run import RunFolder, hash_folder, read_json
from recft.schema import ModelSettings
from recft.training.assemble import Tuned, load_adapter, open_adapter
from recft.training.exam import Exam
from recft.training.held_out import rows_of
from recft.training.servings import read_servings

__all__ = ["k_bit_noise", "merge_of", "model_of", "plain_lora_of", "reference", "tuned_rows"]

NOISE_CONTEXTS, NOISE_ITEMS = 64, 400
"""How many of the rows the k-bit noise is measured on: one of its passes takes each text alone."""


def model_of(recipe: Recipe, folder: RunFolder) -> ModelSettings:
    """The run's base with the compute dtype that tuning resolved: k-bit weights are made from weights rounded to it."""
    return recipe.model.model_copy(update={"compute_dtype": read_json(folder.manifest)["compute_dtype"]})


def _serving(recipe: Recipe, folder: RunFolder) -> Serving:
    return read_servings(folder.root)[recipe.task.name]


def reference(recipe: Recipe, folder: RunFolder, onto: str) -> Tuned:
    """The tuned model over float32 weights, on the CPU: `dequantized`, as the adapter saw them, or `original`."""
    serving, model = _serving(recipe, folder), model_of(recipe, folder)
    dtype = getattr(torch, model.compute_dtype)
    base = float32_base(model, serving.carrier, dtype, onto, recipe.seed, serving.n_outputs)
    return open_adapter(recipe, folder.adapter, torch.device("cpu"), base)


def tuned_rows(recipe: Recipe, folder: RunFolder, onto: str, exam: Exam) -> Rows:
    """The exam's texts and what the tuned model over these weights makes of them: what a certificate compares with."""
    tuned = reference(recipe, folder, onto)
    encode = remembering(Encoder(tuned.model, tuned.tokenizer))
    return rows_of(exam, encode, tuned.model.serving, tuned.tokenizer)


def merge_of(recipe: Recipe, folder: RunFolder, onto: str) -> Merge | None:
    """What merges the run's adapter; None where its method has no weights to merge into."""
    method = registry.load("recft.methods", recipe.method.name)
    if not method.mergeable:
        return None
    serving = _serving(recipe, folder)
    config, tensors = load_adapter(folder.adapter)
    return Merge(
        model=model_of(recipe, folder),
        head=serving.carrier,
        n_outputs=serving.n_outputs,
        onto=onto,
        change=partial(method.merge, config, tensors),
        heads=_heads(config, tensors),
        seed=recipe.seed,
        identity=f"{base_hash(recipe.model)} {hash_folder(folder.adapter)}",
    )


def _heads(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trained heads of a saved adapter, by their name in the model."""
    modules = tuple(config.get("modules_to_save") or ())
    named = {key.removeprefix(SAVED_PREFIX): tensor for key, tensor in tensors.items()}
    # A head inside the body (a pooler) shares its first name with the layers that the adapter touches.
    own = {name: tensor for name, tensor in named.items() if modules and "lora_" not in name}
    return {name: tensor.float() for name, tensor in own.items() if name.startswith(modules)}


def plain_lora_of(
    recipe: Recipe, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """(config, tensors) of the exact plain LoRA; None where the method is none."""
    method = registry.load("recft.methods", recipe.method.name)
    found: tuple[dict[str, Any], dict[str, torch.Tensor]] | None = (
        method.plain_lora(config, tensors) if hasattr(method, "plain_lora") else None
    )
    return found


def k_bit_noise(recipe: Recipe, folder: RunFolder, rows: Rows) -> dict[str, Any]:
    """How far the model as it was evaluated is from its float32 weights, beside the adapter's own effect.

    The bound is the larger of 1% of that effect and three times what the batch size alone changes.
    """
    serving = _serving(recipe, folder)
    few = replace(rows, contexts=rows.contexts[:NOISE_CONTEXTS], items=rows.items[:NOISE_ITEMS])

    def scores(model: Tuned, chunk_tokens: int = 16384) -> np.ndarray:
        encoder = Encoder(model.model, model.tokenizer, chunk_tokens)
        return certificate.scores_by(few, encoder, serving.head)

    expected = scores(reference(recipe, folder, "dequantized"))
    tuned = open_adapter(recipe, folder.adapter)
    evaluated, one_by_one = scores(tuned), scores(tuned, chunk_tokens=1)
    with tuned.attached.disabled():
        base = scores(tuned)
    kl = partial(certificate.kl_divergence, temperature=serving.temperature)
    effect, batch = kl(evaluated, base), kl(evaluated, one_by_one)
    return {
        "kl": kl(expected, evaluated),
        "largest_score_difference": float(np.abs(expected - evaluated).max()),
        "effect_kl": effect,
        "effect_largest_score_difference": float(np.abs(evaluated - base).max()),
        "batch_kl": batch,
        "bound": max(0.01 * effect, 3 * batch, 1e-9),
    }
