"""recft adapts pretrained language models to shop search and recommendation on one machine.

    from recft import Recipe, prepare, tune, evaluate, export

Shape letters, in every docstring and comment: B rows of a batch, T tokens of a row, D hidden size, K outputs of
a row (an embedding's size, or the number of labels), V vocabulary, H attention heads, L layers, R records,
P candidate pairs of all records (record r owns `offsets[r]:offsets[r + 1]`), N items of the catalogue, C columns
of a score matrix.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from recft import errors
from recft.errors import *  # noqa: F403

if TYPE_CHECKING:
    from recft.compare import compare
    from recft.evaluate import evaluate
    from recft.export import export
    from recft.prepare import prepare
    from recft.recipe import Recipe
    from recft.recommend import recommend
    from recft.tune import tune
    from recft.verify import verify

__version__ = "0.1.0"

_HOMES = {"Recipe": "recipe"}
_VERBS = ("compare", "evaluate", "export", "prepare", "recommend", "tune", "verify")

__all__ = [
    *errors.__all__,
    "Recipe",
    "compare",
    "evaluate",
    "export",
    "prepare",
    "recommend",
    "tune",
    "verify",
]


class _Package(ModuleType):
    """Lets a verb and its module share a name: `recft.tune` is always the function, whoever imported what first."""

    def __getattr__(self, name: str) -> Any:
        # Verbs load torch: they are imported when they are first used, so that `recft --help` stays quick.
        if name in _VERBS or name in _HOMES:
            from recft.models import machine

            machine.settle()  # what libraries read when they are loaded
            module = import_module(f"recft.{_HOMES.get(name, name)}")
            machine.settle()  # what torch is told once it is there
            return getattr(module, name)
        raise AttributeError(f"module 'recft' has no attribute '{name}'")

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
