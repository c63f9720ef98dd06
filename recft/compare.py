"""`compare`: runs side by side; runs that differ only in seed and fold are pooled into one row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft.errors import DataError, problem
from recft.evaluate import open_run
from recft.metrics import _intervals as intervals
from recft.recipe import Recipe
from recft.run import read_json

__all__ = ["compare"]


@dataclass(frozen=True)
class _Row:
    """The scores of one row over pooled runs: metric -> mean over seeds of each (fold, record), (R,)."""

    name: str
    per_record: dict[str, np.ndarray]
    keys: np.ndarray


def compare(runs: Sequence[Path | str], split: str = "test") -> dict[str, Any]:
    """The table of several evaluated runs.

    Runs whose recipes differ only in name, seed and fold are one row: every record's score is the mean over seeds,
    and folds are laid side by side, so that an interval is over all records. Each row comes with its base's, and
    with paired differences from its base and from the first row.

    Args:
        runs: run folders that `evaluate` has scored.
        split: which report.

    Raises:
        DataError: a run has no scores for this split.
    """
    groups: dict[str, list[tuple[Recipe, pl.DataFrame, dict[str, Any]]]] = {}
    names: dict[str, str] = {}
    for run in map(Path, runs):
        opened = open_run(run)
        folder, recipe = opened.folder, opened.recipe
        if not folder.report(split).is_file():
            raise DataError(
                problem(
                    str(run),
                    f"has no scores on {split}",
                    "compare reads what eval has written",
                    f"recft eval {run} --split {split}",
                )
            )
        report = read_json(folder.report(split))
        # Of several tasks the first one's.
        frame = pl.read_parquet(folder.report(split).with_name(report["predictions"]["path"]))
        key = _identity(recipe)
        names.setdefault(key, recipe.name)
        groups.setdefault(key, []).append((recipe, frame, report))
    pooled = [(names[key], members) for key, members in groups.items()]
    rows: list[dict[str, Any]] = []
    tables: list[_Row] = []
    paired: dict[str, Any] = {}
    for name, members in pooled:
        ours, base = _pooled(name, members, "tuned"), _pooled(f"{name} (base)", members, "base")
        rows += [_entry(base, len(members)), _entry(ours, len(members))]
        paired[f"{name} - its base"] = _difference(ours, base)
        if tables and len(tables[0].keys) == len(ours.keys) and (tables[0].keys == ours.keys).all():
            paired[f"{name} - {tables[0].name}"] = _difference(ours, tables[0])
        tables.append(ours)
    return {"split": split, "rows": rows, "paired": paired}


def _identity(recipe: Recipe) -> str:
    """What two runs must share to be pooled."""
    settings = recipe.model_dump(mode="json")
    settings.pop("name")
    settings.pop("seed")
    settings["data"]["split"].pop("fold")
    return json.dumps(settings, sort_keys=True)


def _pooled(name: str, members: Sequence[tuple[Recipe, pl.DataFrame, dict[str, Any]]], row: str) -> _Row:
    """The mean over seeds of every record's score, folds side by side."""
    frames = [
        frame.select("key", "record", *(column for column in frame.columns if _is_score(column, row))).with_columns(
            pl.lit(recipe.data.split.fold).alias("fold")
        )
        for recipe, frame, _ in members
    ]
    mean = pl.concat(frames).group_by("fold", "record", "key").mean().sort("fold", "record")
    metrics = [column for column in mean.columns if column.startswith(f"{row}:")]
    if not metrics:
        return _Row(name, _whole(members, row), np.array([str(number) for number in range(len(members))]))
    scores = {column.removeprefix(f"{row}:"): mean[column].fill_null(np.nan).to_numpy() for column in metrics}
    return _Row(name, scores, mean["key"].to_numpy().astype(str))


def _is_score(column: str, row: str) -> bool:
    return column.startswith(f"{row}:") and column.split(":", 1)[1] not in ("top", "top_scores", "score")


def _whole(members: Sequence[tuple[Recipe, pl.DataFrame, dict[str, Any]]], row: str) -> dict[str, np.ndarray]:
    """Scores that are defined over all pairs only (AUC), one value a run."""
    names = members[0][2][row].keys()
    return {
        name: np.array([np.nan if report[row][name] is None else report[row][name] for _, _, report in members])
        for name in names
    }


def _entry(row: _Row, n_runs: int) -> dict[str, Any]:
    scores, ci = {}, {}
    for metric, values in row.per_record.items():
        defined = values[~np.isnan(values)]
        scores[metric] = float(defined.mean()) if len(defined) else None
        found = intervals.interval(values, row.keys)
        ci[metric] = list(found) if found else None
    n = max((int((~np.isnan(values)).sum()) for values in row.per_record.values()), default=0)
    return {"run": row.name, "runs": n_runs, "n": n, "scores": scores, "ci": ci}


def _difference(ours: _Row, theirs: _Row) -> dict[str, Any]:
    found = {}
    for metric in ours.per_record.keys() & theirs.per_record.keys():
        difference = intervals.paired(ours.per_record[metric], theirs.per_record[metric], ours.keys)
        ci = list(difference.interval) if difference.interval else None
        found[metric] = {"mean": difference.mean, "ci": ci, "n": difference.n}
    return found
