"""What verbs report, as sheets of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recft.reports import reading
from recft.reports.reading import row_name
from recft.reports.sheets import Sheet, markdown, number, plain, rich_sheet, signed, with_interval

__all__ = [
    "Sheet",
    "calibration",
    "classes",
    "comparison",
    "difference",
    "differences",
    "facts",
    "fusion",
    "gaps",
    "gates",
    "markdown",
    "number",
    "of_report",
    "p_value",
    "plain",
    "protocol",
    "ranking",
    "rich_sheet",
    "robustness",
    "scores",
    "signed",
    "slices",
    "verdicts",
    "with_interval",
]

_FACT_DEPTH = 2


def of_report(report: Mapping[str, Any]) -> list[Sheet]:
    """Every sheet that a report has something for, task by task, in the order in which they are read."""
    sheets: list[Sheet] = []
    for name, part in reading.parts(report):
        whole = {"name": report.get("name", "run"), **part}
        if name:
            whole["name"] = f"{whole['name']}, {name}"
        sheets += [scores(whole)]
        sheets += [differences(part["paired"])] if part.get("paired") else []
        found = (verdicts, fusion, slices, gaps, calibration, classes, robustness)
        sheets += [sheet for make in found if (sheet := make(part)).rows]
    return sheets + ([gates(report["gates"])] if report.get("gates") else [])


def scores(report: Mapping[str, Any]) -> Sheet:
    """The rows of a report, a column a metric, with 95% intervals and the protocol.

    Base and tuned come first, then fusions, then baselines from the best down.
    """
    metrics, intervals = reading.metrics_of(report), report.get("ci") or {}
    best = reading.best_classic(report)
    mark = len(report.get("baselines") or {}) > 1
    facts_ = report.get("protocol") or {}
    return Sheet(
        columns=("", *metrics),
        rows=[
            (
                f"{row_name(name)} (best classic)" if mark and name == best else row_name(name),
                *(with_interval(row.get(metric), (intervals.get(name) or {}).get(metric)) for metric in metrics),
            )
            for name, row in reading.rows(report).items()
        ],
        title=f"{report.get('name', 'run')}: {facts_.get('split', '')} split".strip(),
        notes=[protocol(facts_)] if facts_ else [],
    )


def differences(paired: Mapping[str, Mapping[str, Any]]) -> Sheet:
    """Paired differences with 95% intervals, a row a pair; a star marks an interval clear of zero."""
    metrics = list(dict.fromkeys(metric for row in paired.values() for metric in row))
    entries = [entry for row in paired.values() for entry in row.values() if entry]
    notes = ["* the 95% interval is clear of zero"]
    if any(entry.get("p_holm") is not None for entry in entries):
        notes.append("p: paired test, Holm-corrected")
    return Sheet(
        columns=("paired difference", *metrics),
        rows=[
            (reading.difference_name(name), *(difference(row.get(metric)) for metric in metrics))
            for name, row in paired.items()
        ],
        notes=notes,
    )


def difference(entry: Mapping[str, Any] | None) -> str:
    """A paired difference with its interval, a star where that is clear of zero, and its p where it was tested."""
    if not entry or entry.get("mean") is None:
        return "-"
    interval, p = entry.get("ci"), p_value(entry)
    words = [signed(entry["mean"])]
    words += [f"[{signed(interval[0])}, {signed(interval[1])}]"] if interval else []
    words += ["*"] if reading.is_clear(interval) else []
    return " ".join([*words, p] if p else words)


def p_value(entry: Mapping[str, Any]) -> str:
    """The p of a paired difference, corrected where it was; nothing where there was no test.

    >>> p_value({"p": 0.0121, "p_holm": 0.0242}), p_value({"p": 1e-4}), p_value({"p": None})
    ('p = 0.024', 'p < 0.001', '')
    """
    p = entry.get("p") if entry.get("p_holm") is None else entry["p_holm"]
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdicts(report: Mapping[str, Any]) -> Sheet:
    """What the table comes to, in words."""
    return Sheet(columns=("in words",), rows=[(str(line),) for line in report.get("verdicts") or ()])


def fusion(report: Mapping[str, Any]) -> Sheet:
    """The weight of each system in the fused rows, with the model and without it."""
    found = report.get("fusion") or {}
    weights, without = found.get("weights") or {}, found.get("weights_without_model") or {}
    systems = list(dict.fromkeys([*(found.get("systems") or ()), *weights, *without]))
    notes = [f"fitted on {found['fitted_on']}, n = {number(found.get('n'))}"] if found.get("fitted_on") else []
    return Sheet(
        columns=("weights of the fusion", "fused", row_name("fused_without_model")),
        rows=[(name, number(weights.get(name)), number(without.get(name))) for name in systems],
        notes=notes,
    )


def slices(report: Mapping[str, Any], metric: str | None = None) -> Sheet:
    """One metric over slices of the records: base, tuned, fusions, the best classic row, and tuned against base.

    Args:
        report: of one task.
        metric: the main one where absent.
    """
    metric = metric or reading.main_metric(report)
    found = report.get("slices") or {}
    best = reading.best_classic(report)
    there = {name for part in found.values() for name in part.get("rows") or {}}
    shown = [name for name in (*reading.rows(report),) if name in there]
    shown = [name for name in shown if name not in (report.get("baselines") or {}) or name == best]
    pairs = [name for name in ("tuned - base", "fused - fused_without_model") if _any_pair(found, name, metric)]
    rows = []
    for name, part in found.items():
        values = [((part.get("rows") or {}).get(row) or {}).get(metric) for row in shown]
        apart = [((part.get("paired") or {}).get(pair) or {}).get(metric) for pair in pairs]
        rows.append((name, number(part.get("n")), *map(number, values), *map(difference, apart)))
    names = [f"{row_name(name)} (best classic)" if name == best else row_name(name) for name in shown]
    return Sheet(columns=(f"slice, {metric}", "n", *names, *map(reading.difference_name, pairs)), rows=rows)


def _any_pair(found: Mapping[str, Any], pair: str, metric: str | None) -> bool:
    return any(((part.get("paired") or {}).get(pair) or {}).get(metric) for part in found.values())


def gaps(report: Mapping[str, Any]) -> Sheet:
    """How far groups are apart: for each family of slices, row and metric the widest gap, and its two ends."""
    rows = [
        (family, row_name(row), metric, *(number(entry.get(key)) for key in ("best", "worst", "gap")))
        for family, by_row in (report.get("gaps") or {}).items()
        for row, by_metric in by_row.items()
        for metric, entry in by_metric.items()
        if entry
    ]
    return Sheet(columns=("groups", "row", "metric", "best", "worst", "gap"), rows=rows, left=5)


def calibration(report: Mapping[str, Any]) -> Sheet:
    """How far probabilities are from what happens, before calibration and after."""
    found = report.get("calibration") or {}
    rows = [(row_name(name), number(entry.get("ece"))) for name, entry in (found.get("rows") or {}).items()]
    kind = found.get("kind", "none")
    note = f"calibrated by: {kind}"
    # Whoever reads the base's log loss beside the tuned model's must know.
    note += "" if kind == "none" else ", the tuned model alone: the base's probabilities are as they come"
    return Sheet(columns=("calibration", "ece"), rows=rows, notes=[note])


def classes(report: Mapping[str, Any]) -> Sheet:
    """Precision, recall and F1 of each class; of rows other than the tuned model's F1 alone."""
    found = report.get("classes") or {}
    by_row = {name: entry.get("report") or {} for name, entry in (found.get("rows") or {}).items()}
    others = [name for name in by_row if name != "tuned"]
    tuned = by_row.get("tuned") or {}
    labels = list(dict.fromkeys([*(found.get("labels") or ()), *(label for part in by_row.values() for label in part)]))
    rows = []
    for label in map(str, labels):
        n = next((part[label].get("n") for part in by_row.values() if label in part), None)
        own = [number(tuned.get(label, {}).get(key)) for key in ("precision", "recall", "f1") if tuned]
        rows.append((label, number(n), *(number(by_row[name].get(label, {}).get("f1")) for name in others), *own))
    headings = [f"{row_name(name)} f1" for name in others]
    headings += ["tuned precision", "tuned recall", "tuned f1"] if tuned else []
    return Sheet(columns=("class", "n", *headings), rows=rows if by_row else [])


def robustness(report: Mapping[str, Any], metric: str | None = None) -> Sheet:
    """One metric under perturbed texts, beside the same on clean ones, and what the perturbation costs.

    Args:
        report: of one task.
        metric: the main one where absent.
    """
    metric = metric or reading.main_metric(report)
    found = report.get("robustness") or {}
    names = list(dict.fromkeys(name for part in found.values() for name in part.get("rows") or {}))
    clean = [number((report.get(name) or {}).get(metric)) for name in names]
    rows: list[Sequence[str]] = [("clean", "", *clean, "")]
    for name, part in found.items():
        values = [((part.get("rows") or {}).get(row) or {}).get(metric) for row in names]
        apart = ((part.get("paired") or {}).get(f"tuned: {name} - clean") or {}).get(metric)
        share = part.get("share")
        words = f"{share:.0%}" if isinstance(share, int | float) else "-"
        rows.append((name.replace("_", " "), words, *map(number, values), difference(apart)))
    columns = (f"texts, {metric}", "share changed", *map(row_name, names), "tuned: what it costs")
    return Sheet(columns=columns, rows=rows if found else [])


def comparison(found: Mapping[str, Any]) -> Sheet:
    """The rows of several runs with their intervals."""
    rows = found["rows"]
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    return Sheet(
        columns=("run", "runs", "n", *metrics),
        rows=[
            (
                str(row["run"]),
                number(row.get("runs")),
                number(row.get("n")),
                *(with_interval(row["scores"].get(metric), (row.get("ci") or {}).get(metric)) for metric in metrics),
            )
            for row in rows
        ],
        title=f"{found.get('split', '')} split".strip(),
        notes=["runs that differ in name, seed and fold alone are one row", *_protocols(found.get("protocols") or {})],
    )


def _protocols(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the figures of runs mean, each way once; with the runs' names where there are several."""
    runs: dict[str, list[str]] = {}
    for name, facts_ in found.items():
        runs.setdefault(protocol(facts_), []).append(name)
    return [line if len(runs) == 1 else f"{', '.join(names)}: {line}" for line, names in runs.items()]


def protocol(facts: Mapping[str, Any]) -> str:
    """What a figure means, in one line: the split, how many, among which candidates, what is masked or sampled."""
    pairs = facts.get("counted") == "pairs"
    ranked = not pairs and facts.get("candidates") not in (None, "pairs")
    why = "users with one class, left out of gauc" if pairs else "without a relevant candidate left out"
    left_out = f" ({number(facts['left_out'])} {why})" if facts.get("left_out") else ""
    parts = [
        f"{facts.get('split')} split by {facts.get('split_by')}",
        f"n = {number(facts.get('n'))} {facts.get('counted', 'records')}{left_out}",
    ]
    parts += [f"a subset: {facts['subset']}"] if facts.get("subset") else []
    parts += ["the step and all settings were chosen on this split"] if facts.get("chosen_on_it") else []
    if ranked:
        which, count = facts.get("candidates"), facts.get("n_candidates")
        parts.append(f"candidates: {number(count)} ({which})" if count else f"candidates: {which}")
        parts.append("history masked" if facts.get("history_masked") else "history not masked")
        parts += [f"items written: {facts['decoding']}"] if facts.get("decoding") else []
        parts += [f"{facts['gain']} gain"] if facts.get("gain") else []
        parts += [f"ties: {facts['ties']}"] if facts.get("ties") else []
    parts.append("sampled negatives" if facts.get("sampled") else "nothing sampled")
    parts += [str(facts["interval"])] if facts.get("interval") else []
    return "; ".join(parts)


def gates(checked: Iterable[Mapping[str, Any]]) -> Sheet:
    """One line a gate: PASS or FAIL, and what was compared."""
    return Sheet(
        columns=("gate", ""),
        rows=[("PASS" if gate["passed"] else "FAIL", str(gate["line"])) for gate in checked],
        left=2,
    )


def ranking(places: Sequence[Mapping[str, Any]], title: str = "") -> Sheet:
    """A ranked list: place, item, score, title."""
    return Sheet(
        columns=("rank", "item", "score", "title"),
        rows=[
            (
                str(place.get("rank", number_)),
                str(place["item"]),
                number(float(place["score"])),
                str(place.get("title", "")),
            )
            for number_, place in enumerate(places, start=1)
        ],
        title=title,
        left=4,
    )


def facts(title: str, values: Mapping[str, Any], notes: Sequence[str] = ()) -> Sheet:
    """Names and values, nested ones with dotted names."""
    return Sheet(columns=(title, ""), rows=list(_flat(values, "")), notes=notes, left=2)


def _flat(values: Mapping[str, Any], prefix: str, depth: int = 0) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and depth < _FACT_DEPTH:
            yield from _flat(value, f"{name}.", depth + 1)
        elif isinstance(value, Mapping):
            yield name, ", ".join(f"{inner}: {number(found)}" for inner, found in value.items())
        elif key.endswith("_bytes") and isinstance(value, int):
            yield name, f"{value / 2**20:,.0f} MiB"
        else:
            yield name, number(value)
