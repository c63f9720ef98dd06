"""Families of interchangeable members: a file's name is its key, and nothing is listed twice.

A member is one file in a family's package (`recft/methods/lora.py` is `lora` of `recft.methods`). Names are
listed from the folder, so listing imports nothing; underscores read as hyphens too. A file whose name starts
with an underscore belongs to the family as a whole. A member's object is the module's `MEMBER`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recft.errors import RecipeError, problem

__all__ = ["Refusal", "load", "names", "refused", "suggestion"]


@dataclass(frozen=True)
class Refusal:
    """A combination that a member says cannot work, as data.

    `when` maps a fact's name to the value (or the values) that it must have for the refusal to hold; all must
    match. Facts are the recipe's dotted keys and what the verb knows besides: `kind`, `architecture`, `device`,
    `method.name`, `target`. `unless` maps facts to values that lift the refusal; one that matches is enough.
    """

    when: Mapping[str, object]
    reason: str
    fix: str
    unless: Mapping[str, object] = field(default_factory=dict)

    def holds(self, facts: Mapping[str, object]) -> bool:
        """Whether every condition of this refusal is met by `facts`, and none that lifts it."""
        met = all(_matches(facts, key, value) for key, value in self.when.items())
        return met and not any(_matches(facts, key, value) for key, value in self.unless.items())


def _matches(facts: Mapping[str, object], key: str, value: object) -> bool:
    if key not in facts:
        return False
    return facts[key] in value if isinstance(value, tuple | frozenset) else facts[key] == value


def names(package: str) -> list[str]:
    """The members of a family, hyphenated and sorted, without importing any of them."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return sorted(
        file.stem.replace("_", "-")
        for folder in folders
        for file in Path(folder).glob("*.py")
        if not file.stem.startswith("_")
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no name is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def load(package: str, name: str) -> Any:
    """The member `name` of the family `package`.

    Raises:
        RecipeError: there is no such member; the message names the nearest and lists them all.
    """
    known = names(package)
    key = name.replace("_", "-")
    if key not in known:
        family = package.rsplit(".", 1)[-1]
        raise RecipeError(
            problem(
                family,
                f"there is no '{name}'.{suggestion(key, known)}",
                f"one of {', '.join(known)}",
                "correct the name",
            )
        )
    return importlib.import_module(f"{package}.{key.replace('-', '_')}").MEMBER


def refused(refusals: Iterable[Refusal], facts: Mapping[str, object]) -> Refusal | None:
    """The first refusal that holds for `facts`, or None."""
    return next((refusal for refusal in refusals if refusal.holds(facts)), None)
