"""An encoder of a finished model that reads an item only once: its vectors are kept in the cache."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from recft.models.base import base_hash, resolve
from recft.models.encoder import Encoder
from recft.models.tokens import Text
from recft.models.vector_cache import known_vectors
from recft.recipe import Recipe
from recft.run import hash_bytes, hash_folder
from recft.schema import ModelSettings

__all__ = ["ItemEncoder", "finished", "model_hash"]

CODE = ("recft.models", "recft.methods")
"""Packages whose code a vector depends on."""

LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class ItemEncoder(Encoder):
    """An encoder whose model does not change any more.

    Attributes:
        identity: the hash of all that decides its vectors; asked for when items are read.
    """

    identity: Callable[[], str] = str

    def items(self, texts: Sequence[Text]) -> np.ndarray:
        """The vector of each item, (N, D) float32: from the cache where its text is known."""
        return known_vectors(self.identity(), texts, self)


def finished(encoder: Encoder, recipe: Recipe, adapter: Path | None) -> Encoder:
    """The encoder with a cache of items' vectors, where its outputs are vectors.

    Args:
        encoder: of a model that is not tuned any more.
        recipe: the run's.
        adapter: the folder of the adapter that is in the model; None of the untuned base.
    """
    if encoder.model.serving.head != "embedding":
        return encoder
    return ItemEncoder(
        encoder.model, encoder.tokenizer, encoder.chunk_tokens, lambda: model_hash(encoder, recipe, adapter)
    )


def model_hash(encoder: Encoder, recipe: Recipe, adapter: Path | None) -> str:
    """A hash of all that decides the model's vectors besides the text: base, adapter, serving, numbers and code.

    Where texts are cut into batches it decides the last bits, so the size of a batch counts too.
    """
    model = encoder.model
    facts = {
        "base": _base_hash(recipe.model.model_dump_json(), _stamps(recipe.model.base)),
        "settings": recipe.model.model_dump(mode="json"),
        "adapter": hash_folder(adapter) if adapter else "none",
        "serving": {key: value for key, value in model.serving.to_json().items() if key != "calibration"},
        "numbers": [str(model.base.dtype), model.device.type, encoder.chunk_tokens],
        "code": [hash_folder(Path(str(importlib.import_module(name).__file__)).parent, "*.py") for name in CODE],
        "libraries": [version(name) for name in LIBRARIES],
    }
    return hash_bytes(json.dumps(facts, sort_keys=True).encode())


@functools.lru_cache(maxsize=8)
def _base_hash(settings: str, stamps: tuple[tuple[str, int, int], ...]) -> str:  # noqa: ARG001 (tells files apart)
    """The hash of a base, computed once for a report that reads items several times."""
    return base_hash(ModelSettings.model_validate_json(settings))


def _stamps(base: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of a base's files, where it is a folder."""
    folder = Path(resolve(base))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in found)
