"""`compare`: runs side by side; runs that differ only in seed and fold are pooled into one row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft import registry
from recft.errors import DataError, problem
from recft.metrics import _base as metrics
from recft.metrics import _intervals as intervals
from recft.recipe import Recipe
from recft.reports.findings import MODELS
from recft.reports.judge import SAME
from recft.run import read_json
from recft.training.opened import open_run

__all__ = ["compare"]

LISTS = ("top", "top_scores")
"""Columns of predictions that are no scores."""

_Rules = frozenset[tuple[str, str]]
"""Hash of the data and all else of the protocol, as text."""


@dataclass(frozen=True)
class _Run:
    """One run's scores on a split: its report, and what it predicted."""

    recipe: Recipe
    report: Mapping[str, Any]
    frame: pl.DataFrame

    @property
    def rows(self) -> list[str]:
        """The rows of its table."""
        columns = (column.partition(":") for column in self.frame.columns if ":" in column)
        return list(dict.fromkeys(row for row, _, kind in columns if kind not in LISTS))


@dataclass(frozen=True)
class _Row:
    """One row of the comparison, pooled over seeds and folds.

    Attributes:
        name: for people.
        per_record: metric -> mean over seeds of each (fold, record), (R,); rankings.
        labels: the scored pairs of each seed, folds laid side by side; all but rankings.
        names: the metrics of the labels that the row has a score of: a popularity count has no log loss.
        clusters: whose record or pair it is, (R,) or (P,).
        n_runs: how many runs are in it.
        rules: the data and the protocols that it was scored under.
    """

    name: str
    per_record: Mapping[str, np.ndarray]
    labels: Sequence[metrics.Labels]
    names: Sequence[str]
    clusters: np.ndarray
    n_runs: int
    rules: _Rules

    def scorer(self, metric: str) -> Any:
        """The mean over seeds of a pointwise metric, as a function of pair weights; None where it has none."""
        member: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(metric)[0])
        score = member.pointwise
        if score is None:
            return None
        return lambda _labels, weights: float(np.mean([score(labels, weights) for labels in self.labels]))


def compare(runs: Sequence[Path | str], split: str = "test") -> dict[str, Any]:
    """The table of several evaluated runs.

    Runs whose recipes differ only in name, seed and fold are one row: every record's score is the mean over seeds,
    and folds are laid side by side, so that an interval is over all records. A metric of all pairs together (AUC) is
    the mean over seeds, its interval by resampling users. Each tuned row comes with its base's, its sums' and the
    classic rows', and with paired differences.

    Args:
        runs: run folders that `evaluate` has scored.
        split: which report.

    Raises:
        DataError: a run has no scores for this split.
    """
    groups: dict[str, list[_Run]] = {}
    for run in map(Path, runs):
        one = _read(run, split)
        groups.setdefault(_identity(one.recipe), []).append(one)
    rows: dict[str, _Row] = {}
    pairs: list[tuple[str, str]] = []
    first = ""
    for members in groups.values():
        name = members[0].recipe.name
        rules = _rules(members)
        own = {row: _named(name, row) for row in members[0].rows}
        # Of other data or candidates a classic row is another row.
        own |= {row: f"{row} ({name})" for row, known in own.items() if known in rows and rows[known].rules != rules}
        rows |= {own[row]: _pooled(own[row], members, row) for row in own if own[row] not in rows}
        pairs.append((own["tuned"], own["base"]))
        pairs += [(own["tuned"], first)] if first else []
        if "fused" in own:
            pairs += [(own["fused"], own[row]) for row in own if row not in ("fused", "base")]
        first = first or own["tuned"]
    paired = {f"{ours} - {theirs}": _difference(rows[ours], rows[theirs]) for ours, theirs in pairs}
    return {
        "split": split,
        "rows": [_entry(row) for row in rows.values()],
        "protocols": {members[0].recipe.name: members[0].report["protocol"] for members in groups.values()},
        "paired": {name: found for name, found in paired.items() if found},
    }


def _read(run: Path, split: str) -> _Run:
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
    # Of several tasks the first one's.
    frame = pl.read_parquet(path.with_name(report["predictions"]["path"]))
    return _Run(opened.recipe, report, frame)


def _rules(members: Sequence[_Run]) -> _Rules:
    """What the figures of some runs mean; of folds one for each."""
    protocols = [one.report["protocol"] for one in members]
    rest = [key for key in SAME if key != "data"]
    return frozenset((one["data"], json.dumps({key: one.get(key) for key in rest})) for one in protocols)


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


def _pooled(name: str, members: Sequence[_Run], row: str) -> _Row:
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
    return _Row(name, per_record, (), (), mean["key"].to_numpy().astype(str), len(frames), _rules(members))


def _measured(members: Sequence[_Run], row: str) -> list[str]:
    """The metrics that some run has a score of this row for."""
    scores = [one.report["baselines"].get(row) or one.report.get(row) or {} for one in members]
    return list(dict.fromkeys(name for one in scores for name, value in one.items() if value is not None))


def _kind(column: str) -> str:
    return column.partition(":")[2]


def _pooled_pairs(name: str, frames: Sequence[pl.DataFrame], column: str, names: Sequence[str], rules: _Rules) -> _Row:
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
    return _Row(name, {}, labels, names, clusters, len(frames), rules)


def _entry(row: _Row) -> dict[str, Any]:
    scores: dict[str, float | None] = {}
    ci: dict[str, list[float] | None] = {}
    for metric, values in row.per_record.items():
        defined = values[~np.isnan(values)]
        scores[metric] = float(defined.mean()) if len(defined) else None
        interval = intervals.interval(values, row.clusters)
        ci[metric] = list(interval) if interval else None
    for metric in row.names:
        if (score := row.scorer(metric)) is not None:
            value = score(row.labels[0], np.ones(len(row.clusters)))
            interval = intervals.pointwise_interval(score, row.labels[0])
            scores[metric] = value if value == value else None
            ci[metric] = list(interval) if interval else None
    counted = [int((~np.isnan(values)).sum()) for values in row.per_record.values()]
    return {
        "run": row.name,
        "runs": row.n_runs,
        "n": max(counted, default=len(row.clusters)),
        "scores": scores,
        "ci": ci,
    }


def _difference(ours: _Row, theirs: _Row) -> dict[str, Any]:
    """How far one row is above another on the same records, with p and Holm's p; nothing where they share none."""
    # Other texts of the same items are what is compared; other candidates or masks are another question.
    if {rest for _, rest in ours.rules} != {rest for _, rest in theirs.rules}:
        return {}
    if len(ours.clusters) != len(theirs.clusters) or not (ours.clusters == theirs.clusters).all():
        return {}
    found: dict[str, Any] = {}
    for metric in [name for name in ours.per_record if name in theirs.per_record]:
        pair = ours.per_record[metric], theirs.per_record[metric], ours.clusters
        found[metric] = _as_json(intervals.paired(*pair), intervals.p_value(*pair))
    for metric in [name for name in ours.names if name in theirs.names]:
        mine, other = ours.scorer(metric), theirs.scorer(metric)
        if mine is None or other is None:
            continue
        everything = np.ones(len(ours.clusters))

        def above(_labels: metrics.Labels, weights: np.ndarray, mine: Any = mine, other: Any = other) -> float:
            return float(mine(ours.labels[0], weights) - other(theirs.labels[0], weights))

        interval = intervals.pointwise_interval(above, ours.labels[0])
        mean = above(ours.labels[0], everything)
        found[metric] = _as_json(intervals.Difference(mean, interval, len(everything)), None)
    ps = {metric: entry["p"] for metric, entry in found.items() if entry["p"] is not None}
    for metric, p in intervals.holm(ps).items():
        found[metric]["p_holm"] = p
    return found


def _as_json(found: intervals.Difference, p: float | None) -> dict[str, Any]:
    ci = list(found.interval) if found.interval else None
    return {"mean": found.mean, "ci": ci, "n": found.n, "p": p, "p_holm": None}
