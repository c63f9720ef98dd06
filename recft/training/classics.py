"""Classic rows as systems: chosen on validation with a small fixed budget, refitted for the split, cached.

A fit is cached under the hash of the data, of the code that made it and of what it was chosen for, so that every run
over the same data shares it. The cache holds plain arrays (`.npz` without objects) and may be deleted at any time.
"""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from recft import registry
from recft.baselines._base import Baseline, Known, known
from recft.data.store import Split, Store
from recft.errors import RecipeError, problem
from recft.metrics import _base as metrics
from recft.run import Listener, atomic_file, cache_folder, hash_bytes, hash_folder
from recft.training.exam import Exam, System, classic_system, few_records
from recft.training.scoring import score

__all__ = ["Classic", "chosen", "fitting"]

FAMILY = "recft.baselines"
CODE = (FAMILY, "recft.data", metrics.PACKAGE)
"""Packages whose code a cached fit or choice depends on."""

MOST_CHOOSING_RECORDS = 2000
MOST_CACHED_BYTES = 1 << 29


@dataclass(frozen=True)
class Classic:
    """A classic row that is ready to be fitted: its settings are chosen."""

    name: str
    member: Baseline
    settings: Mapping[str, Any]
    store: Store

    def system(self, exam: Exam, split: Split) -> System:
        """The row as a system on the exam of a split, fitted on all that was known before it."""
        key = [self.name, split, dict(self.settings)]
        arrays = _cached(self.name, self.store, key, lambda: self.member.fit(known(self.store, split), self.settings))
        return classic_system(exam, partial(self.member.scores, arrays, self.store), self.member.probabilities)


def fitting(wanted: tuple[str, ...] | None, store: Store, output: str) -> list[str]:
    """The classic rows of a table: those named, or where nothing is said all that make sense and are quick.

    Raises:
        RecipeError: one that is named makes no sense here.
    """
    able = {
        name: member
        for name in registry.names(FAMILY)
        if store.table in (member := registry.load(FAMILY, name)).tables and output in member.outputs
    }
    if wanted is None:
        most = {name: member.most_items or len(store.item_ids) for name, member in able.items()}
        return [name for name in able if able[name].by_default and len(store.item_ids) <= most[name]]
    for name in wanted:
        member = registry.load(FAMILY, name)
        if name.replace("_", "-") not in able:
            raise RecipeError(
                problem(
                    "eval.baselines",
                    f"{name} on {store.table} for {output}",
                    f"it is for {', '.join(member.outputs)} of {', '.join(member.tables)}",
                    f"leave it out; here make sense: {', '.join(able) or 'none'}",
                )
            )
    return [name.replace("_", "-") for name in wanted]


def chosen(name: str, store: Store, valid: Exam, monitor: str, listen: Listener) -> Classic:
    """The row with the settings that score best on validation; the first ones where there is none."""
    member: Baseline = registry.load(FAMILY, name)
    if len(member.grid) == 1 or not len(valid.records):
        return Classic(name, member, member.grid[0], store)
    exam = replace(few_records(valid, MOST_CHOOSING_RECORDS), names=(monitor,))
    rules = [exam.candidates, exam.settings.mask_history, exam.settings.gain, monitor, len(exam.records)]
    metric = registry.load(metrics.PACKAGE, metrics.parse(monitor, exam.task.output)[0])

    def choose() -> dict[str, np.ndarray]:
        before = known(store, "valid")
        found = [_valid_score(member, before, store, exam, monitor, settings) for settings in member.grid]
        listen("note", {"text": f"{name}: {len(found)} settings tried on validation"})
        signed = np.array([value if metric.higher_is_better else -value for value in found])
        return {"best": np.array(int(np.nanargmax(signed)) if not np.isnan(signed).all() else 0)}

    best = int(_cached(name, store, [name, "choice", rules, list(map(dict, member.grid))], choose)["best"])
    return Classic(name, member, member.grid[best], store)


def _valid_score(
    member: Baseline, before: Known, store: Store, exam: Exam, monitor: str, settings: Mapping[str, Any]
) -> float:
    arrays = member.fit(before, settings)
    system = classic_system(exam, partial(member.scores, arrays, store), member.probabilities)
    return score(exam, system).values[monitor]


def _cached(name: str, store: Store, key: list[Any], compute: Any) -> dict[str, np.ndarray]:
    """What `compute` gives, from the cache where it is there and whole."""
    # The whole packages' code: members share files whose names begin with an underscore, and read texts and records
    # as the data's code does; what is chosen is chosen by metrics.
    code = [hash_folder(Path(str(importlib.import_module(name).__file__)).parent, "*.py") for name in CODE]
    text = json.dumps([store.card["data_sha256"], code, key], sort_keys=True)
    path = cache_folder("baselines") / f"{name}-{hash_bytes(text.encode())[:32]}.npz"
    if path.is_file():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
                return {part: held[part] for part in held.files}
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            pass  # half-written by another program, or damaged: computed again
    found = cast("dict[str, np.ndarray]", compute())
    plain = all(array.dtype != object for array in found.values())  # nothing is ever pickled
    if plain and sum(array.nbytes for array in found.values()) <= MOST_CACHED_BYTES:
        try:
            with atomic_file(path) as draft:
                np.savez(draft, **cast("dict[str, Any]", found))
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return found
