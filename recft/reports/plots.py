"""Pictures of a run: curves over steps, and rows side by side. No display is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recft.reports import reading
from recft.run import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["bars", "curves"]

_LOSS, _SCORE, _QUIET = "#4477aa", "#cc6633", "#999999"
_INCHES = (8.0, 4.5)
_DOTS_PER_INCH = 120


def curves(metrics: Path, out: Path) -> None:
    """Training loss and the validation metric over optimizer steps, as a PNG.

    Args:
        metrics: a run's metrics.jsonl: lines with `step` and `loss`, or with `step`, `metric`, `value` and `best`.
        out: the picture; written whole or not at all.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    judged = [line for line in lines if "metric" in line and line.get("value") is not None]
    figure, axes = _canvas()
    if losses:
        steps, values = zip(*losses, strict=True)
        axes.plot(steps, values, color=_LOSS, marker="." if len(losses) < 30 else None, label="training loss")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss", color=_LOSS)
    if judged:
        _draw_scores(axes, judged)
    elif not losses:
        axes.text(0.5, 0.5, "nothing was logged", ha="center", transform=axes.transAxes, color=_QUIET)
    _save(figure, out)


def _draw_scores(axes: Axes, judged: Sequence[Mapping[str, Any]]) -> None:
    """The validation metric on an axis of its own, with the best step marked."""
    right = axes.twinx()
    name = judged[-1]["metric"]
    steps, values = [line["step"] for line in judged], [line["value"] for line in judged]
    right.plot(steps, values, color=_SCORE, marker="o", markersize=4, label=f"validation {name}")
    best = [line for line in judged if line.get("best")]
    if best:
        step, value = best[-1]["step"], best[-1]["value"]
        right.plot(
            [step],
            [value],
            marker="*",
            markersize=14,
            color=_SCORE,
            linestyle="none",
            label=f"best: {value:.4f} at step {step}",
        )
    right.set_ylabel(f"validation {name}", color=_SCORE)
    right.spines["top"].set_visible(False)
    handles = [handle for side in (axes, right) for handle in side.get_legend_handles_labels()[0]]
    labels = [label for side in (axes, right) for label in side.get_legend_handles_labels()[1]]
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=3, frameon=False)


def bars(report: Mapping[str, Any], metric: str, out: Path) -> None:
    """One metric of every row of a report, with 95% intervals, as a PNG; the protocol stands below it."""
    rows = reading.rows(report)
    values = {name: row[metric] for name, row in rows.items() if row.get(metric) is not None}
    names = sorted(values, key=lambda name: values[name])
    figure, axes = _canvas()
    axes.barh(
        [reading.row_name(name) for name in names],
        [values[name] for name in names],
        color=[_SCORE if name == "tuned" else _LOSS for name in names],
        height=0.6,
    )
    right = 0.0
    for place, name in enumerate(names):
        low, high = (report.get("ci", {}).get(name) or {}).get(metric) or (values[name], values[name])
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.annotate(f"{values[name]:.4f}", (high, place), xytext=(6, 0), textcoords="offset points", va="center")
        right = max(right, high)
    axes.set_xlim(0, right * 1.15 or 1)
    facts = report.get("protocol", {})
    axes.set_xlabel(f"{metric}, {facts.get('split', '')} split, n = {facts.get('n', '?')}; lines are 95% intervals")
    _save(figure, out)


def _canvas() -> tuple[Figure, Axes]:
    """An empty picture. The figure is made without pyplot, so that no display and no global state are touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines["top"].set_visible(False)
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, out: Path) -> None:
    with atomic_file(out) as draft:
        figure.savefig(draft, metadata={"Software": None})
