"""The evidence for `not worse than`: two rows' predictions on the same records, and what they say.

A report's predictions lie beside it, by name and SHA-256; those of a reference are read before anything is scored,
since scoring may replace them. Columns: `record`, `key` (whose it is) and either `<row>:<metric>` (rankings: the score
of each record; of a slice `slice:<slice>:<row>:<metric>`) or `item`, `label`, `<row>:score` (pairs; a slice's are
those where `slice:<slice>` is true). What they give must be what the report says.

The test is a one-sided paired randomisation by cluster: how often would the tuned model stand as far below as it does,
or further, if each user's (or query's) two scores were handed to the two rows by a coin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recft import registry
from recft.errors import DataError, problem
from recft.metrics import _base as metrics
from recft.metrics import _intervals as intervals
from recft.reports.findings import MODELS, part_of
from recft.reports.gates import Gate
from recft.reports.sides import Side, respelled, score_of, slice_name, spelling, task_part
from recft.run import hash_file

if TYPE_CHECKING:
    from recft.data.slices import Slice
    from recft.training.exam import Exam
    from recft.training.scoring import Scored

__all__ = ["DRAWS", "FEWEST_CLUSTERS", "Comparison", "Evidence", "compare", "gather", "slice_columns"]

DRAWS = 2000
"""Of the randomisation and of the interval: p is told apart to 0.0005."""

FEWEST_CLUSTERS = 5
"""Of fewer, all pointing one way, no randomisation reaches p < 0.05: the gate could not fail."""

_KEYS = ("record", "key", "item", "label")


@dataclass(frozen=True)
class Evidence:
    """A report and the predictions that gates need of it.

    Attributes:
        path: where the report lies, or will lie.
        report: what it holds.
        frames: predictions by task prefix, "" without one.
    """

    path: Path
    report: Mapping[str, Any]
    frames: Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Comparison:
    """What two rows' predictions say.

    Attributes:
        mean: the tuned model's score less the other's.
        interval: 95%, of the difference.
        n: records, or pairs, compared.
        p: how likely a difference as bad is where there is none but the margin.
    """

    mean: float
    interval: intervals.Interval | None
    n: int
    p: float


@dataclass(frozen=True)
class _Row:
    """One row's part in a comparison: a score of each record, or scored pairs; and clusters."""

    scores: np.ndarray | metrics.Labels
    clusters: np.ndarray


def slice_columns(rows: Mapping[str, Scored], exam: Exam, found: Mapping[str, Slice]) -> dict[str, np.ndarray]:
    """The columns of a predictions file by which gates on slices are tested, of the models' rows.

    Args:
        rows: the table's rows.
        exam: what was asked.
        found: the slices, over the exam's pairs.
    """
    pairs = rows["tuned"].pairs
    if rows["tuned"].labels is not None and pairs is not None:
        return {f"slice:{name}": one.mask[pairs] for name, one in found.items()}
    return {
        f"slice:{name}:{row}:{metric}": scores
        for name, one in found.items()
        for row in MODELS
        if row in rows
        for metric, scores in part_of(rows[row], exam, one.mask).per_record.items()
    }


def gather(path: Path, report: Mapping[str, Any], gates: Sequence[Gate], name: str) -> Evidence:
    """The report with the predictions that these gates need, checked by hash.

    Args:
        path: of the report: its predictions lie beside it.
        report: what it holds.
        gates: those that are tests on it.
        name: what a message calls it.

    Raises:
        DataError: the predictions are missing or are others.
        RecipeError: a gate names a task that the report lacks.
    """
    frames: dict[str, pl.DataFrame] = {}
    for gate in gates:
        task = respelled(gate.task)
        if task not in frames:
            part = task_part(gate, Side(report, "tuned", name))
            frames[task] = _predictions(path, part.get("predictions") or report.get("predictions"), gate)
    return Evidence(path, report, frames)


def _predictions(path: Path, entry: Any, gate: Gate) -> pl.DataFrame:
    """The predictions that a report names."""
    rule = f"'{gate.operator}' compares predictions, which lie beside their report, by name and hash"
    again = "copy both files of one `recft eval`, or write the gate with >= and a margin"
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
        raise DataError(problem(gate.place, f"{path} names no predictions", rule, f"score that run again; {again}"))
    file = path.parent / Path(entry["path"]).name
    if not file.is_file():
        raise DataError(problem(gate.place, f"{file} is missing", rule, again))
    if hash_file(file) != entry.get("sha256"):
        raise DataError(problem(gate.place, f"{file} is not the file that {path} was written with", rule, again))
    try:
        columns = [name for name in pl.read_parquet_schema(file) if not name.endswith((":top", ":top_scores"))]
        return pl.read_parquet(file, columns=columns)
    except pl.exceptions.PolarsError as error:
        raise DataError(problem(gate.place, f"{file} cannot be read ({error})", rule, again)) from error


def compare(gate: Gate, ours: Evidence, theirs: Evidence, right: Side) -> Comparison:
    """What the predictions say about a gate's two sides.

    Raises:
        DataError: the predictions are not of the same records, lack what the gate names, or are not the report's.
    """
    left = Side(ours.report, "tuned", "tuned")
    task = respelled(gate.task)
    our_frame, their_frame = ours.frames[task], theirs.frames[task]
    if theirs is not ours:
        our_frame, their_frame = _matched(gate, our_frame, their_frame)
    one, other = _row(gate, our_frame, left), _row(gate, their_frame, right)
    metric: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(gate.metric)[0])
    if isinstance(one.scores, metrics.Labels) and isinstance(other.scores, metrics.Labels):
        return _of_pairs(gate, metric, one.scores, other.scores)
    if isinstance(one.scores, np.ndarray) and isinstance(other.scores, np.ndarray):
        return _of_records(gate, metric, one.scores, other.scores, one.clusters)
    raise _others(gate, "one side has a score a record, the other a score a pair")


def _matched(gate: Gate, ours: pl.DataFrame, theirs: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames in one order of records.

    Raises:
        DataError: they are not of the same records.
    """
    keys = [name for name in _KEYS if name in ours.columns]
    missing = [name for name in keys if name not in theirs.columns]
    if missing:
        raise _others(gate, f"the reference's have no column {', '.join(missing)}")
    ours, theirs = ours.sort(keys, maintain_order=True), theirs.sort(keys, maintain_order=True)
    if not ours.select(keys).equals(theirs.select(keys)):
        alone = ours.select(keys).join(theirs.select(keys).unique(), on=keys, how="anti").height
        raise _others(gate, f"{alone:,} of {ours.height:,} rows here, {theirs.height:,} there, have no partner")
    return ours, theirs


def _others(gate: Gate, value: str) -> DataError:
    return DataError(
        problem(
            gate.place,
            f"the predictions are not of the same records: {value}",
            "a paired test compares two rows record by record",
            "score the reference run again on this data, split and metric, or write the gate with a number",
        )
    )


def _row(gate: Gate, frame: pl.DataFrame, side: Side) -> _Row:
    """One side's scores, which give the report's figure.

    Raises:
        DataError: they are not there, or give another.
    """
    part = task_part(gate, side)
    name = spelling(gate, part.get("tuned") or {}, side.name)
    part_name = slice_name(gate, side)
    column = f"slice:{part_name}:{side.row}:{name}" if part_name else f"{side.row}:{name}"
    pairs = f"{side.row}:score"
    metric: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(gate.metric)[0])
    if column in frame.columns:
        scores: np.ndarray | metrics.Labels = frame[column].fill_null(np.nan).to_numpy().astype(np.float64)
        whole = metrics.mean(frame[column].fill_null(np.nan).to_numpy())[0]
        clusters = frame["key"]
    elif pairs in frame.columns and metric.pointwise is not None:
        frame = _of_slice(gate, frame, part_name)
        clusters = frame["key"]
        scores = metrics.Labels(
            np.array(frame[pairs].to_list(), np.float64), frame["label"].to_numpy(), _codes(clusters)
        )
        whole = metric.pointwise(scores, np.ones(frame.height))
    else:
        raise _untestable(gate, side)
    said = float(score_of(gate, side))
    if not abs(whole - said) <= 1e-6 * max(1.0, abs(said)):
        raise _others(gate, f"those of {side.name} give {whole:.6f}, its report says {said:.6f}")
    return _Row(scores, _codes(clusters))


def _of_slice(gate: Gate, frame: pl.DataFrame, name: str) -> pl.DataFrame:
    if not name:
        return frame
    if f"slice:{name}" not in frame.columns:
        raise _untestable(gate, Side({}, "tuned", name))
    return frame.filter(pl.col(f"slice:{name}"))


def _untestable(gate: Gate, side: Side) -> DataError:
    return DataError(
        problem(
            gate.place,
            f"the predictions hold no {gate.score} of {side.name} record by record",
            "a paired test needs a score of each record; a figure of all lists together (gini) has none, and of slices"
            f" those of {', '.join(MODELS)} are kept",
            f"write {gate.score} >= {gate.row} - a margin",
        )
    )


def _codes(clusters: pl.Series) -> np.ndarray:
    codes: np.ndarray = np.unique(clusters.cast(pl.String).fill_null("").to_numpy(), return_inverse=True)[1]
    return codes.astype(np.int64)


def _of_records(
    gate: Gate, metric: metrics.Metric, ours: np.ndarray, theirs: np.ndarray, clusters: np.ndarray
) -> Comparison:
    """The comparison of a score of each record."""
    _refuse_few(gate, clusters[~np.isnan(ours - theirs)])
    up = metric.higher_is_better
    found = intervals.paired(ours, theirs, clusters, DRAWS)
    # A margin is granted to every record, so that what is left has a mean of zero where the gate is only just met.
    granted = ours + float(gate.shift) if up else ours - float(gate.shift)
    p = intervals.p_worse(granted, theirs, clusters, DRAWS, higher_is_better=up)
    return _comparison(gate, found, p)


def _of_pairs(gate: Gate, metric: metrics.Metric, ours: metrics.Labels, theirs: metrics.Labels) -> Comparison:
    """The comparison of a score of all pairs."""
    _refuse_few(gate, ours.groups)
    assert metric.pointwise is not None  # noqa: S101  # _row has seen to it
    found = intervals.pointwise_paired(metric.pointwise, ours, theirs, DRAWS)
    p = intervals.pointwise_p_worse(
        metric.pointwise, ours, theirs, DRAWS, higher_is_better=metric.higher_is_better, margin=float(gate.shift)
    )
    return _comparison(gate, found, p)


def _comparison(gate: Gate, found: intervals.Difference, p: float | None) -> Comparison:
    if p is None:
        raise DataError(
            problem(gate.place, "no score to compare", "both rows have one", "check that the split has both labels")
        )
    return Comparison(found.mean, found.interval, found.n, p)


def _refuse_few(gate: Gate, clusters: np.ndarray) -> None:
    n_clusters = len(np.unique(clusters))
    if n_clusters < FEWEST_CLUSTERS:
        raise DataError(
            problem(
                gate.place,
                f"{n_clusters} users or queries to compare",
                f"of fewer than {FEWEST_CLUSTERS} no paired test finds p < 0.05: the gate could not fail",
                "score more records, or write the gate with a number",
            )
        )
