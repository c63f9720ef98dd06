"""`compare`: runs side by side; runs that differ only in seed and fold are pooled into one row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft.errors import DataError, problem
from recft.metrics import _base as metrics
from recft.recipe import Recipe
from recft.reports.findings import MODELS
from recft.reports.judge import SAME
from recft.reports.pooled import Row, Rules, difference, entry
from recft.run import read_json
from recft.training.opened import open_run

__all__ = ["compare"]

LISTS = ("top", "top_scores")
"""Columns of predictions that are no scores."""

SLICE = "slice"
"""What columns of slices begin with."""


@dataclass(frozen=True)
class _Run:
    """One run's scores on a split, of one task: its report, and what it predicted.

    Attributes:
        path: the run's folder.
        recipe: the whole run's.
        report: the task's.
        frame: its predictions.
        several: whether the run has other tasks too.
    """

    path: Path
    recipe: Recipe
    report: Mapping[str, Any]
    frame: pl.DataFrame
    several: bool

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{self.recipe.name}: {self.report['task']}" if self.several else self.recipe.name

    @property
    def rows(self) -> list[str]:
        """The rows of its table."""
        columns = (column.partition(":") for column in self.frame.columns if ":" in column)
        return list(dict.fromkeys(row for row, _, kind in columns if row != SLICE and kind not in LISTS))


def compare(runs: Sequence[Path | str], split: str = "test") -> dict[str, Any]:
    """The table of several evaluated runs.

    Runs whose recipes differ only in name, seed and fold are one row: every record's score is the mean over seeds,
    and folds are laid side by side, so that an interval is over all records. A metric of all pairs together (AUC) is
    the mean over seeds, its interval by resampling users. Each tuned row comes with its base's, its sums' and the
    classic rows', and with paired differences. A run of several tasks has rows of each, named `<run>: <task>`, which
    are compared with those of the same task alone.

    Args:
        runs: run folders that `evaluate` has scored.
        split: which report.

    Raises:
        DataError: a run has no scores for this split, or two are the same seed and fold of one row.
    """
    groups: dict[tuple[str, str], list[_Run]] = {}
    for run in map(Path, runs):
        for one in _read(run, split):
            groups.setdefault((_identity(one.recipe), one.report["task"]), []).append(one)
    rows: dict[str, Row] = {}
    pairs: list[tuple[str, str]] = []
    firsts: dict[str, str] = {}
    protocols: dict[str, Any] = {}
    for (_, task), members in groups.items():
        _refuse_twice(members)
        name = members[0].name
        # Other settings under the same name are another row all the same.
        name = f"{name} ({members[0].path})" if name in rows else name
        protocols[name] = members[0].report["protocol"]
        rules = _rules(members)
        own = {row: _named(name, row) for row in members[0].rows}
        # Of other data or candidates a classic row is another row.
        own |= {row: f"{row} ({name})" for row, known in own.items() if known in rows and rows[known].rules != rules}
        rows |= {own[row]: _pooled(own[row], members, row) for row in own if own[row] not in rows}
        pairs.append((own["tuned"], own["base"]))
        pairs += [(own["tuned"], firsts[task])] if task in firsts else []
        if "fused" in own:
            pairs += [(own["fused"], own[row]) for row in own if row not in ("fused", "base")]
        firsts.setdefault(task, own["tuned"])
    paired = {f"{ours} - {theirs}": difference(rows[ours], rows[theirs]) for ours, theirs in pairs}
    return {
        "split": split,
        "rows": [entry(row) for row in rows.values()],
        "protocols": protocols,
        "paired": {name: found for name, found in paired.items() if found},
    }


def _read(run: Path, split: str) -> list[_Run]:
    """What a run has scored, task by task."""
    opened = open_run(run)
    path = opened.folder.report(split)
    if not path.is_file():
        raise DataError(
            problem(
                str(run),
                f"has no scores on {split}",
                "compare reads what eval has written",
                f"recft eval {run} --split {split}",
            )
        )
    report = read_json(path)
    tasks = list((report.get("tasks") or {}).values())
    frames = [pl.read_parquet(path.with_name(part["predictions"]["path"])) for part in tasks or [report]]
    return [
        _Run(run, opened.recipe, part, frame, bool(tasks))
        for part, frame in zip(tasks or [report], frames, strict=True)
    ]


def _refuse_twice(members: Sequence[_Run]) -> None:
    """Nothing, where each seed and fold of a row stands once: twice it would count double.

    Raises:
        DataError: one does not.
    """
    seen: dict[tuple[int, int], _Run] = {}
    for one in members:
        seed, split = one.recipe.seed, one.recipe.data.split
        other = seen.setdefault((seed, split.fold), one)
        if other is not one:
            place = f"seed {seed}, fold {split.fold}" if split.folds else f"seed {seed}"
            raise DataError(
                problem(
                    "compare",
                    f"{other.path} and {one.path} are both {members[0].name} with {place}",
                    "runs that differ in name alone are one row, and a row has each seed and fold once",
                    "leave one of them out, or tune it again with another seed",
                )
            )


def _rules(members: Sequence[_Run]) -> Rules:
    """What the figures of some runs mean; of folds one for each."""
    rest = [key for key in SAME if key != "data"]
    found = []
    for one in members:
        protocol = one.report["protocol"]
        facts = {"task": one.report["task"]} | {key: protocol.get(key) for key in rest}
        found.append((protocol["data"], json.dumps(facts)))
    return frozenset(found)


def _named(run: str, row: str) -> str:
    """A row's name: the run's own for its tuned model, a classic row's is the same for every run."""
    if row == "tuned":
        return run
    return f"{run} ({row.replace('_', ' ')})" if row in MODELS else row


def _identity(recipe: Recipe) -> str:
    """What two runs must share to be pooled."""
    settings = recipe.model_dump(mode="json")
    for key in ("name", "seed"):
        settings.pop(key)
    # Runs beside it are other seeds' or folds' too.
    settings["eval"]["beside"] = len(settings["eval"]["beside"])
    settings["data"]["split"].pop("fold")
    return json.dumps(settings, sort_keys=True)


def _pooled(name: str, members: Sequence[_Run], row: str) -> Row:
    """The row of several runs as one."""
    frames = [
        one.frame.with_columns(pl.lit(one.recipe.data.split.fold).alias("fold"), pl.lit(one.recipe.seed).alias("seed"))
        for one in members
        if row in one.rows
    ]
    if f"{row}:score" in frames[0].columns:
        return _pooled_pairs(name, frames, f"{row}:score", _measured(members, row), _rules(members))
    scores = [column for column in frames[0].columns if column.startswith(f"{row}:") and _kind(column) not in LISTS]
    whole = pl.concat([frame.select("fold", "record", "key", *scores) for frame in frames])
    mean = whole.group_by("fold", "record", "key").mean().sort("fold", "record")
    per_record = {_kind(column): mean[column].fill_null(np.nan).to_numpy() for column in scores}
    return Row(name, per_record, (), (), mean["key"].to_numpy().astype(str), len(frames), _rules(members))


def _measured(members: Sequence[_Run], row: str) -> list[str]:
    """The metrics that some run has a score of this row for."""
    scores = [one.report["baselines"].get(row) or one.report.get(row) or {} for one in members]
    return list(dict.fromkeys(name for one in scores for name, value in one.items() if value is not None))


def _kind(column: str) -> str:
    return column.partition(":")[2]


def _pooled_pairs(name: str, frames: Sequence[pl.DataFrame], column: str, names: Sequence[str], rules: Rules) -> Row:
    """Scored pairs of each seed in one order; seeds whose pairs differ cannot be pooled.

    Raises:
        DataError: they differ.
    """
    whole = pl.concat([frame.select("fold", "seed", "record", "key", "item", "label", column) for frame in frames])
    parts = whole.sort("fold", "record", "item").partition_by("seed", maintain_order=True)
    for part in parts[1:]:
        if not part.select("fold", "record", "item").equals(parts[0].select("fold", "record", "item")):
            raise DataError(
                problem(
                    "compare", f"{name}: seeds were scored on other pairs", "seeds share folds", "score the same folds"
                )
            )
    clusters = parts[0]["key"].to_numpy().astype(str)
    groups = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
    labels = [
        metrics.Labels(np.array(part[column].to_list(), np.float64), part["label"].to_numpy(), groups) for part in parts
    ]
    return Row(name, {}, labels, names, clusters, len(frames), rules)
