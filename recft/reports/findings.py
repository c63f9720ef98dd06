"""From scored rows to what a report holds: intervals, differences, slices, gaps, calibration, classes, words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recft import registry
from recft.data.slices import Slice
from recft.metrics import _base as metrics
from recft.metrics import _calibration, _classes
from recft.metrics import _intervals as intervals
from recft.metrics._ranks import restrict
from recft.reports.reading import best_classic, higher_is_better, main_metric
from recft.training.exam import Exam
from recft.training.scoring import Scored, label_values, pointwise, ranking_values

__all__ = ["calibration", "classes", "differences", "examples", "gaps", "intervals_of", "sliced", "verdicts"]

MODELS = ("base", "tuned", "fused", "fused_without_model")
"""Rows that are no classic ones."""

MOST_EXAMPLES = 10


def _clusters(exam: Exam) -> np.ndarray:
    return np.asarray(exam.records.keys, dtype=object).astype(str)


def intervals_of(row: Scored, exam: Exam, seed: int) -> dict[str, list[float] | None]:
    """The 95% interval of each metric of a row; none for a score of all lists together."""
    n, found = exam.settings.bootstrap, {}
    for name, value in row.values.items():
        if np.isnan(value):
            continue
        if row.labels is not None:
            metric = pointwise(name, exam.task.output)
            found[name] = intervals.pointwise_interval(metric.pointwise, row.labels, n, seed)
        elif name in row.per_record:
            found[name] = intervals.interval(row.per_record[name], _clusters(exam), n, seed)
    return {name: list(interval) if interval else None for name, interval in found.items()}


def differences(ours: Scored, theirs: Scored, exam: Exam, seed: int) -> dict[str, dict[str, Any]]:
    """How far one row is above another, metric by metric: mean, interval, p, and p after Holm over the metrics."""
    n, found, ps = exam.settings.bootstrap, {}, {}
    for name in ours.values:
        if np.isnan(ours.values[name]) or np.isnan(theirs.values.get(name, np.nan)):
            continue
        if ours.labels is not None and theirs.labels is not None:
            score = pointwise(name, exam.task.output).pointwise
            difference = intervals.pointwise_paired(score, ours.labels, theirs.labels, n, seed)
            p = intervals.pointwise_p_value(score, ours.labels, theirs.labels, n, seed)
        elif name in ours.per_record:
            pair = ours.per_record[name], theirs.per_record[name], _clusters(exam)
            difference, p = intervals.paired(*pair, n, seed), intervals.p_value(*pair, n, seed)
        else:
            continue
        ci = list(difference.interval) if difference.interval else None
        found[name] = {"mean": difference.mean, "ci": ci, "n": difference.n, "p": p, "p_holm": None}
        if p is not None:
            ps[name] = p
    for name, p in intervals.holm(ps).items():
        found[name]["p_holm"] = p
    return found


def part_of(row: Scored, exam: Exam, mask: np.ndarray) -> Scored:
    """What a row scored on the pairs that a mask (P,) selects; other targets leave the candidates too."""
    if row.labels is not None and row.pairs is not None:
        labels = row.labels.where(mask[row.pairs])
        if not len(labels):
            return Scored(dict.fromkeys(row.values, np.nan), n=0)
        return Scored(label_values(exam, labels, row.probabilities), labels=labels, n=len(labels))
    assert row.ranks is not None  # noqa: S101  # a row has one of the two
    ranks = restrict(row.ranks, mask)
    values, per_record = ranking_values(exam, ranks, None, None)
    return Scored(values, per_record, ranks=ranks, n=int((ranks.n_relevant > 0).sum()))


def sliced(rows: Mapping[str, Scored], exam: Exam, found: Mapping[str, Slice], seed: int) -> dict[str, Any]:
    """The rows on each slice, with intervals of the models and paired differences."""
    report: dict[str, Any] = {}
    for name, one in found.items():
        parts = {row: part_of(scored, exam, one.mask) for row, scored in rows.items()}
        if not parts["tuned"].n:
            continue
        pairs = [("tuned", "base"), ("fused", "fused_without_model")]
        report[name] = {
            "of": one.of,
            "n": parts["tuned"].n,
            "rows": {row: part.values for row, part in parts.items()},
            "ci": {row: intervals_of(part, exam, seed) for row, part in parts.items() if row in MODELS},
            "paired": {
                f"{ours} - {theirs}": differences(parts[ours], parts[theirs], exam, seed)
                for ours, theirs in pairs
                if ours in parts and theirs in parts
            },
        }
    return report


def gaps(slices: Mapping[str, Any]) -> dict[str, Any]:
    """How far apart the slices of a family are, for each model row and metric."""
    found: dict[str, Any] = {}
    for family in dict.fromkeys(one["of"] for one in slices.values()):
        members = {name: one for name, one in slices.items() if one["of"] == family}
        if len(members) < 2:
            continue
        found[family] = {
            row: _gaps_of(row, members) for row in MODELS if all(row in one["rows"] for one in members.values())
        }
    return found


def _gaps_of(row: str, members: Mapping[str, Any]) -> dict[str, Any]:
    names = next(iter(members.values()))["rows"][row]
    found = {}
    for metric in names:
        values = {name: one["rows"][row].get(metric) for name, one in members.items()}
        known = {name: value for name, value in values.items() if value is not None and value == value}
        if len(known) > 1:
            sign = 1 if higher_is_better(metric) else -1
            ranked = sorted(known, key=lambda name: sign * known[name])
            found[metric] = {"gap": abs(known[ranked[-1]] - known[ranked[0]]), "best": ranked[-1], "worst": ranked[0]}
    return found


def calibration(rows: Mapping[str, Scored], kind: str) -> dict[str, Any]:
    """How well probabilities mean what they say, with the bins of a reliability diagram."""
    found: dict[str, Any] = {"kind": kind, "rows": {}}
    for name, row in rows.items():
        if row.labels is None:
            continue
        ece = registry.load(metrics.PACKAGE, "ece").pointwise(row.labels, np.ones(len(row.labels)))
        found["rows"][name] = {"ece": ece, "bins": [dict(one) for one in _calibration.bins(row.labels)]}
    return found


def classes(rows: Mapping[str, Scored], labels: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix and the report by class of each row."""
    return {
        "labels": list(labels),
        "rows": {
            name: {
                "confusion": _classes.confusion(row.labels).astype(int).tolist(),
                "report": _classes.report(row.labels, labels),
            }
            for name, row in rows.items()
            if row.labels is not None
        },
    }


def examples(
    rows: Mapping[str, Scored], exam: Exam, contexts: Sequence[str], titles: Sequence[str], metric: str
) -> list[dict[str, Any]]:
    """The records on which tuned and base differ most, with the titles of their first places."""
    base, tuned = rows["base"], rows["tuned"]
    if metric not in tuned.per_record or tuned.top is None or base.top is None:
        return []
    change = np.nan_to_num(tuned.per_record[metric] - base.per_record[metric])
    order = np.argsort(-np.abs(change), kind="stable")
    # The best and the worst: a report that showed only what went well would be an advertisement.
    better, worse = ([row for row in order if change[row] * sign > 0][: MOST_EXAMPLES // 2] for sign in (1, -1))
    found = []
    for row in (*better, *worse):
        pairs = slice(int(exam.records.offsets[row]), int(exam.records.offsets[row + 1]))
        targets = exam.records.items[pairs][exam.records.grades[pairs] > 0]
        found.append(
            {
                "record": int(row),
                "key": exam.records.keys[row],
                "context": contexts[row][:500],
                "targets": [titles[item] for item in targets[:10]],
                "base": [titles[item] for item in base.top[row][:5] if item >= 0],
                "tuned": [titles[item] for item in tuned.top[row][:5] if item >= 0],
                "metric": metric,
                "base_score": float(base.per_record[metric][row]),
                "tuned_score": float(tuned.per_record[metric][row]),
            }
        )
    return found


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """What the table says, in words: of the base, of the best classic row, and of the model's part in the sum."""
    metric = main_metric(report)
    if metric is None:
        return []
    sign = 1 if higher_is_better(metric) else -1
    found = [
        _verdict("The tuned model", "the untuned base", report["paired"].get("tuned - base", {}).get(metric), sign)
    ]
    best = best_classic(report)
    if best is not None:
        entry = report["paired"].get(f"tuned - {best}", {}).get(metric)
        found.append(_verdict("The tuned model", f"the best classic row ({best})", entry, sign))
    if "fused" in report:
        entry = report["paired"].get("fused - fused_without_model", {}).get(metric)
        worth = _verdict("The sum with the model", "the same sum refitted without it", entry, sign)
        nothing = entry is not None and not _is_above(entry, sign)
        found.append(worth + (" Beside the classic rows the model adds nothing that is shown." if nothing else ""))
    return [f"{sentence[:-1]} ({metric})." if sentence.endswith(".") else sentence for sentence in found if sentence]


def _is_above(entry: Mapping[str, Any], sign: int) -> bool:
    interval = entry.get("ci")
    return interval is not None and bool(interval[0] > 0 if sign > 0 else interval[1] < 0)


def _verdict(ours: str, theirs: str, entry: Mapping[str, Any] | None, sign: int) -> str:
    if entry is None:
        return ""
    interval = entry.get("ci")
    shown = f"{entry['mean']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else "")
    if _is_above(entry, sign):
        return f"{ours} beats {theirs}: {shown}."
    if interval and (interval[1] < 0 if sign > 0 else interval[0] > 0):
        return f"{ours} is worse than {theirs}: {shown}."
    return f"{ours} is not shown to beat {theirs}: {shown}."
