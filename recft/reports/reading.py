"""What a report holds, as those read it who show it: its rows in order, its main metric, its parts by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recft import registry
from recft.errors import RecipeError

__all__ = [
    "best_classic",
    "difference_name",
    "higher_is_better",
    "is_clear",
    "main_metric",
    "metrics_of",
    "parts",
    "row_name",
    "rows",
    "summary_of",
]

_FIRST_ROWS = ("base", "tuned", "fused", "fused_without_model")


def parts(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The report of each task with its name; of a run with one task the report itself, with an empty name."""
    tasks = report.get("tasks") or {}
    return list(tasks.items()) if tasks else [("", report)]


def metrics_of(report: Mapping[str, Any]) -> list[str]:
    """The metrics of a report, in the order in which they were asked for."""
    return list(report.get("tuned") or report.get("base") or {})


def main_metric(report: Mapping[str, Any]) -> str | None:
    """The metric that a report is read by: the first that the tuned model has a number for."""
    tuned = report.get("tuned") or {}
    return next((metric for metric, value in tuned.items() if value is not None), None)


def rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of a report as they are shown: base, tuned, fused, fused without the model, then baselines, best first.

    >>> list(rows({"base": {"rmse": 2}, "tuned": {"rmse": 1}, "baselines": {"mean": {"rmse": 1.5}, "mf": {"rmse": 1}}}))
    ['base', 'tuned', 'mf', 'mean']
    """
    metric = main_metric(report)
    up = higher_is_better(metric)

    def place(entry: tuple[str, Mapping[str, Any]]) -> tuple[bool, float]:
        value = (entry[1] or {}).get(str(metric))
        return value is None, 0.0 if value is None else -value if up else value

    first = {name: report[name] or {} for name in _FIRST_ROWS if name in report}
    return first | dict(sorted((report.get("baselines") or {}).items(), key=place))


def best_classic(report: Mapping[str, Any]) -> str | None:
    """The baseline with the best main metric, other runs' models aside; None where none has it."""
    metric = main_metric(report)
    beside = report.get("beside") or ()
    baselines = {name: row for name, row in (report.get("baselines") or {}).items() if name not in beside}
    return next((name for name in rows(report) if name in baselines and baselines[name].get(metric) is not None), None)


def row_name(name: str) -> str:
    """A row's name for people.

    >>> row_name("fused_without_model"), row_name("own_repeats")
    ('fused without the model', 'own_repeats')
    """
    return "fused without the model" if name == "fused_without_model" else name


def difference_name(name: str) -> str:
    """A pair's name for people.

    >>> difference_name("fused - fused_without_model")
    'fused - fused without the model'
    """
    return " - ".join(row_name(part) for part in name.split(" - "))


def higher_is_better(metric: str | None) -> bool:
    """Which way is up; up where the metric is none of ours (an older report's)."""
    member = _member(metric)
    return member is None or bool(member.higher_is_better)


def summary_of(metric: str) -> str:
    """What a metric is, in one line; nothing where it is none of ours."""
    member = _member(metric)
    return "" if member is None else str(member.summary)


def _member(metric: str | None) -> Any:
    """The registered metric that an expression such as `ndcg@10` names."""
    try:
        return registry.load("recft.metrics", metric.partition("@")[0]) if metric else None
    except RecipeError:
        return None


def is_clear(interval: Sequence[float] | None) -> bool:
    """Whether an interval lies wholly on one side of zero."""
    return interval is not None and (interval[0] > 0 or interval[1] < 0)
