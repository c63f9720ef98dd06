"""A report as one HTML file that a shop's manager can read: no network, no script, nothing beside it.

What a report has no key for has no section. `page` is for `recft eval`, `comparison_page` for `recft compare`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recft.reports import _sections as sections
from recft.reports import reading, tables
from recft.reports._html import Html, contents, document, el, join, section, table
from recft.reports._svg import Dot, bar, dots, reliability
from recft.reports._words import SLICES, Claim, claims, what_was_tuned
from recft.reports.reading import row_name
from recft.reports.sheets import Sheet

__all__ = ["comparison_page", "page"]

_MOST_SLICES = 80
_MOST_CLASSES, _MOST_CONFUSED = 150, 30
_SIGNS = {"better": "▲", "worse": "▼", "unclear": "●"}


def page(report: Mapping[str, Any]) -> str:
    """The report as a page.

    Args:
        report: what `eval/<split>.json` holds; of several tasks in one run, each gets a section of its own.
    """
    name = str(report.get("name", "run"))
    parts = reading.parts(report)
    several = bool(parts[0][0])
    split = next((facts["split"] for _, part in parts if (facts := part.get("protocol") or {}).get("split")), None)
    data = report.get("data") or {}
    body: list[Html] = []
    for number, (task, part) in enumerate(parts, start=1):
        own = list(_of_task(report, part, 3 if several else 2, f"t{number}-" if several else ""))
        body += [section(2, f"Task: {task}", *own, key=f"t{number}")] if several else own
    protocols = [(task, part.get("protocol") or {}) for task, part in parts]
    body += [
        section(2, "What happened to the data", *sections.of_data(data), key="data"),
        _gates(report),
        section(2, "What it cost", *sections.costs(report), key="costs"),
        section(2, "How it was measured", *sections.measured(report, protocols), key="measured"),
    ]
    head = _head(f"{name}: report", f"{split} split" if split else "")
    return document(f"{name}: recft report", head, contents(join(body)), *body)


def comparison_page(found: Mapping[str, Any]) -> str:
    """Several runs side by side as a page.

    Args:
        found: what `recft compare` gives: `split`, `rows`, `paired`.
    """
    runs = [(str(row["run"]), row.get("scores") or {}, row.get("ci") or {}) for row in found.get("rows") or () if row]
    metrics = list(dict.fromkeys(metric for _, scores, _ in runs for metric in scores))
    sheet = tables.comparison(found)
    split = f"{found['split']} split" if found.get("split") else ""
    body = [
        _head("Runs compared", split),
        _in_words(found),
        section(
            2,
            "Scores",
            table(sheet, _caption("Scores of each run", True)),
            _plots([(metric, _dots(runs, metric, "")) for metric in metrics]),
            sections.legend(metrics),
            key="scores",
        ),
        _differences(found, 2, ""),
    ]
    return document("recft: runs compared", *body)


def _head(title: str, under: str) -> Html:
    return el("header", el("h1", title), el("p", under, class_="under") if under else Html())


def _of_task(report: Mapping[str, Any], part: Mapping[str, Any], level: int, key: str) -> Iterator[Html]:
    """The sections of one task, in the order in which a reader asks for them."""
    lead = el("p", what_was_tuned(report, part), class_="lead")
    found = [lead, *map(_claim, claims(part)), _in_words(part)]
    yield section(level, "In short", *found, key=f"{key}short")
    yield _scores(part, level, key)
    yield _differences(part, level, key)
    yield _slices(part, level, key)
    yield _calibration(part, level, key)
    yield _classes(part, level, key)
    yield section(
        level,
        "Under misspelt and changed texts",
        table(tables.robustness(part), "What perturbed texts cost; * marks an interval clear of zero"),
        key=f"{key}robustness",
    )
    yield section(
        level, "Where tuned and untuned differ most", *sections.examples(part, level + 1), key=f"{key}examples"
    )
    yield section(level, "Why this item", *sections.explanations(part, level + 1), key=f"{key}why")
    if part is not report and part.get("data") and part["data"] != report.get("data"):
        yield section(level, "What happened to the data", *sections.of_data(part["data"]), key=f"{key}data")


def _claim(claim: Claim) -> Html:
    sign = el("span", _SIGNS[claim.kind], aria_hidden="true")
    return el("p", el("strong", sign, f" {claim.verdict}. "), claim.text, class_=f"claim {claim.kind}")


def _in_words(found: Mapping[str, Any]) -> Html:
    lines = [el("li", str(line)) for line in found.get("verdicts") or ()]
    return join([el("p", "What the table says, line by line:", class_="note"), el("ul", *lines)]) if lines else Html()


def _scores(part: Mapping[str, Any], level: int, key: str) -> Html:
    sheet, metrics = tables.scores(part), reading.metrics_of(part)
    rows = [(name, row, (part.get("ci") or {}).get(name) or {}) for name, row in reading.rows(part).items() if row]
    weights = tables.fusion(part)
    # The protocol stands at the page's end, whole.
    return section(
        level,
        "Scores",
        table(Sheet(sheet.columns, sheet.rows), _caption("Scores", part.get("ci")), marked=["tuned"]),
        _plots([(metric, _dots(rows, metric, "tuned")) for metric in metrics]),
        sections.legend(metrics),
        table(weights, "How much each system counts where they are fused; the second column leaves the model out"),
        key=f"{key}scores",
    )


def _caption(words: str, intervals: object) -> str:
    return f"{words}, with 95% intervals in brackets" if intervals else words


def _dots(rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], metric: str, marked: str) -> list[Dot]:
    return [
        Dot(row_name(name), float(scores[metric]), ci.get(metric), name == marked)
        for name, scores, ci in rows
        if scores.get(metric) is not None
    ]


def _plots(plots: Sequence[tuple[str, Sequence[Dot]]]) -> Html:
    """One drawing a metric; lines are intervals."""
    drawn = [
        el(
            "figure",
            dots(rows, f"{metric}: {', '.join(row.name for row in rows)}"),
            el("figcaption", metric + ("; lines are 95% intervals" if any(row.interval for row in rows) else "")),
        )
        for metric, rows in plots
        if rows
    ]
    return el("div", *drawn, class_="plots") if drawn else Html()


def _differences(part: Mapping[str, Any], level: int, key: str) -> Html:
    paired = part.get("paired") or {}
    words = "Each record is scored by both rows, and the differences are averaged: surer than two intervals compared."
    sheet = tables.differences(paired)
    shown = table(sheet, "Paired differences, with 95% intervals in brackets")
    return section(
        level, "Differences, record by record", *([el("p", words), shown] if shown else []), key=f"{key}paired"
    )


def _slices(part: Mapping[str, Any], level: int, key: str) -> Html:
    found, metric = part.get("slices") or {}, reading.main_metric(part)
    few = dict(list(found.items())[:_MOST_SLICES])
    sheet = tables.slices({**part, "slices": few})
    left = len(found) - len(few)
    bars = _bars(few, metric)
    meant = [join([el("dt", name), el("dd", SLICES[name])]) for name in few if name in SLICES]
    return section(
        level,
        "Where it is good, and where not",
        table(sheet, f"{metric} by slice; bar: tuned, mark: untuned", extra=bars),
        el("p", f"{left} more slices are in the JSON report.", class_="note") if left else Html(),
        el("dl", *meant, class_="legend") if meant else Html(),
        table(tables.gaps(part), "Gaps between groups: the widest difference, and the groups at its ends"),
        key=f"{key}slices",
    )


def _bars(found: Mapping[str, Any], metric: str | None) -> list[Html]:
    """One more column: the tuned model's bar, with the untuned base's mark."""
    rows = [part.get("rows") or {} for part in found.values()]
    pairs = [[(row.get(name) or {}).get(metric) for name in ("tuned", "base")] for row in rows]
    highest = max((value for pair in pairs for value in pair if value is not None), default=0.0)
    return [el("th", "tuned, untuned", scope="col"), *(el("td", bar(tuned, base, highest)) for tuned, base in pairs)]


def _calibration(part: Mapping[str, Any], level: int, key: str) -> Html:
    found = part.get("calibration") or {}
    rows = {row_name(name): entry.get("bins") or () for name, entry in (found.get("rows") or {}).items()}
    drawn = reliability(rows, "Predicted probability against what happened")
    words = "On the dashed line, of what is given 30% three in ten come true. Below it the model is too sure."
    return section(
        level,
        "Can its probabilities be trusted?",
        el("figure", drawn, el("figcaption", words)) if drawn else Html(),
        table(tables.calibration(part), "Expected calibration error: 0 is best"),
        key=f"{key}calibration",
    )


def _classes(part: Mapping[str, Any], level: int, key: str) -> Html:
    found, sheet = part.get("classes") or {}, tables.classes(part)
    left = len(sheet.rows) - _MOST_CLASSES
    drawn = [
        _confusion(name, [str(label) for label in found.get("labels") or ()], entry["confusion"])
        for name, entry in (found.get("rows") or {}).items()
        if name != "base" and entry.get("confusion")
    ]
    return section(
        level,
        "Class by class",
        table(Sheet(sheet.columns, sheet.rows[:_MOST_CLASSES]), "Precision, recall and F1 of each class"),
        el("p", f"{left} more classes are in the JSON report.", class_="note") if left > 0 else Html(),
        *drawn,
        key=f"{key}classes",
    )


def _confusion(row: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """Which class was taken for which; the darker a cell, the larger its share of its line."""
    totals = [sum(line) for line in counts]
    # A matrix of hundreds of classes cannot be read: the most frequent ones are shown.
    kept = sorted(sorted(range(len(labels)), key=lambda place: -totals[place])[:_MOST_CONFUSED])
    head = [el("th", "true \\ predicted", scope="col"), *(el("th", labels[place], scope="col") for place in kept)]
    lines = []
    for place in kept:
        shares = [(counts[place][other] / totals[place] if totals[place] else 0.0) for other in kept]
        cells = [
            el("td", f"{counts[place][other]:,}", class_=f"n h{round(share * 8)}" + (" own" if other == place else ""))
            for other, share in zip(kept, shares, strict=True)
        ]
        lines.append(el("tr", el("th", labels[place], scope="row"), *cells))
    caption = f"Confusion of the {row_name(row)} model: lines are the true class, columns the predicted one"
    drawn = el(
        "table", el("caption", el("span", caption)), el("thead", el("tr", *head)), el("tbody", *lines), class_="heat"
    )
    left = len(labels) - len(kept)
    note = el("p", f"{left} rarer classes are left out here.", class_="note") if left > 0 else Html()
    return join([el("div", drawn, class_="wide", tabindex=0, role="region", aria_label=caption), note])


def _gates(report: Mapping[str, Any]) -> Html:
    return section(2, "Gates", table(tables.gates(report.get("gates") or ()), "What was demanded"), key="gates")
