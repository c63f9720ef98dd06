"""Parts of a page beside its scores: examples, explanations, the data's findings, costs, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recft.reports import reading, tables
from recft.reports._html import Html, el, join, table
from recft.reports._words import duration, size
from recft.reports.sheets import Sheet, number, signed

__all__ = ["costs", "examples", "explanations", "legend", "measured", "of_data"]

_MOST_EXAMPLES, _MOST_PLACES, _MOST_PARTS, _STRONGEST = 20, 10, 300, 5
_STRENGTHS = 4
_ORDER_BOUND, _FEWEST_MIXED = 0.1, 30


def legend(metrics: Sequence[str]) -> Html:
    """What each metric means, and which way is up."""
    entries = []
    for metric in metrics:
        words, way = reading.summary_of(metric), "higher" if reading.higher_is_better(metric) else "lower"
        if words:
            entries.append(join([el("dt", metric), el("dd", f"{words}; {way} is better")]))
    return el("dl", *entries, class_="legend") if entries else Html()


def examples(part: Mapping[str, Any], level: int) -> Iterator[Html]:
    """Records with what was wanted and what came first, untuned and tuned side by side."""
    for example in list(part.get("examples") or ())[:_MOST_EXAMPLES]:
        wanted = [str(title) for title in example.get("targets") or ()]
        metric = example.get("metric") or "score"
        scores = f"{metric}: untuned {number(example.get('base_score'))}, tuned {number(example.get('tuned_score'))}"
        context = example.get("context") or example.get("key") or ""
        lists = [
            el("div", el(f"h{level + 1}", heading), _places(example.get(row) or (), wanted))
            for row, heading in (("base", "Untuned"), ("tuned", "Tuned"))
        ]
        yield el(
            "article",
            el(f"h{level}", str(context)),
            el("p", scores, class_="note"),
            el("p", el("strong", "Wanted: "), "; ".join(wanted[:_MOST_PLACES])) if wanted else Html(),
            el("div", *lists, class_="pair"),
        )


def _places(titles: Sequence[str], wanted: Sequence[str]) -> Html:
    if not titles:
        return el("p", "nothing", class_="note")
    lines = []
    for title in list(titles)[:_MOST_PLACES]:
        is_hit = str(title) in wanted
        mark = [el("strong", "✓ wanted: ")] if is_hit else []
        lines.append(el("li", *mark, str(title) or "(no title)", class_="hit" if is_hit else None))
    return el("ol", *lines)


def explanations(part: Mapping[str, Any], level: int) -> Iterator[Html]:
    """Which words or items moved a score: shaded, with their signs, and the strongest in figures."""
    found = list(part.get("explanations") or ())[:_MOST_EXAMPLES]
    if not found:
        return
    methods = ", ".join(dict.fromkeys(str(one["method"]) for one in found if one.get("method")))
    yield el(
        "p",
        "Each word or item is marked by what it does to the score: ",
        _shaded("raises it", 1.0, 1.0),
        " ",
        _shaded("lowers it", -1.0, 1.0),
        " (the stronger, the darker). ",
        f"Measured by {methods}." if methods else "",
    )
    for one in found:
        parts = [entry for entry in one.get("parts") or () if entry.get("effect") is not None][:_MOST_PARTS]
        most = max((abs(entry["effect"]) for entry in parts), default=0.0)
        strongest = sorted(parts, key=lambda entry: -abs(entry["effect"]))[:_STRONGEST]
        title = str(one.get("title") or one.get("item") or "")
        yield el(
            "article",
            el(f"h{level}", f"“{title}” for “{one.get('context') or one.get('key') or ''}”"),
            el("p", f"Score {number(one.get('score'))}", class_="note"),
            el("p", *_spaced([_shaded(str(entry["text"]), entry["effect"], most) for entry in parts]), class_="parts"),
            el("ul", *(el("li", str(entry["text"]), ": ", signed(float(entry["effect"]))) for entry in strongest)),
        )


def _shaded(text: str, effect: float, most: float) -> Html:
    """A word on a ground as strong as its effect, with its sign."""
    strength = round(abs(effect) / most * _STRENGTHS) if most > 0 else 0
    if strength == 0:
        return el("span", text, class_="part")
    way, sign = ("up", "+") if effect > 0 else ("down", "−")
    return el("span", text, el("sup", sign), class_=f"part {way}{strength}")


def _spaced(spans: Sequence[Html]) -> list[str]:
    return [part for span in spans for part in (span, Html(" "))]


def of_data(data: Mapping[str, Any]) -> Iterator[Html]:
    """What the model does not see of the texts, what was left out, and whether an order gives targets away."""
    yield _records(data.get("records") or {})
    yield from _lengths(data.get("lengths") or {})
    yield _order(data.get("order") or {})
    left_out = [(str(name), number(count)) for name, count in (data.get("dropped") or {}).items()]
    quarantined = data.get("quarantined") or {}
    rules = quarantined.get("by_rule") or ({"set aside": quarantined["rows"]} if quarantined.get("rows") else {})
    left_out += [(f"set aside: {name}", number(count)) for name, count in rules.items()]
    if left_out:
        yield table(Sheet(("rows left out", "rows"), left_out), "Rows that were dropped or set aside, and why")
    elif "dropped" in data or "quarantined" in data:
        yield el("p", "No row was dropped or set aside.")


def _records(records: Mapping[str, Any]) -> Html:
    parts = {name: part if isinstance(part, Mapping) else {"records": part} for name, part in records.items()}
    columns = list(dict.fromkeys(key for part in parts.values() for key in part))
    rows = [(name, *(number(part.get(column)) for column in columns)) for name, part in parts.items()]
    return table(Sheet(("split", *(column.replace("_", " ") for column in columns)), rows), "What each split holds")


def _lengths(lengths: Mapping[str, Any]) -> Iterator[Html]:
    """Which texts are longer than the model reads, in words, then in figures."""
    kinds = {name: part for name, part in lengths.items() if isinstance(part, Mapping) and "rows_losing_tokens" in part}
    longest = number(lengths.get("max_tokens"))
    for name, part in kinds.items():
        losing, texts = part["rows_losing_tokens"], part.get("texts") or 0
        share = f" ({losing / texts:.1%})" if texts and losing else ""
        words = f"{number(losing)} of {number(texts)} texts{share}" if losing else f"None of {number(texts)} texts"
        yield el("p", el("strong", f"{name.capitalize()}: "), f"{words} are cut at {longest} tokens.")
    columns = ("texts", "mean", "p50", "p95", "max", "rows_losing_tokens")
    rows = [(name, *(_length(part.get(column)) for column in columns)) for name, part in kinds.items()]
    names = ("", *(column.replace("_", " ").replace("rows losing tokens", "cut") for column in columns))
    yield table(Sheet(names, rows), "Lengths of texts in tokens")
    losers = [
        (str(name), number(part.get("filled")), number(part.get("rows_losing_tokens")))
        for name, part in (lengths.get("columns") or {}).items()
    ]
    yield table(Sheet(("column", "filled", "rows losing tokens"), losers), "Which columns lose the end of their text")


def _length(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}".removesuffix(".0")


def _order(order: Mapping[str, Any]) -> Html:
    """How far the order of candidates and their numbers give the target away."""
    rows, odd = [], []
    for split, part in order.items():
        place, by_number, mixed = (part.get(key) for key in ("place_auc", "item_number_auc", "mixed_records"))
        rows.append((str(split), number(mixed), number(place), number(by_number)))
        off = max((abs(value - 0.5) for value in (place, by_number) if value is not None), default=0.0)
        odd += [str(split)] if (mixed or 0) >= _FEWEST_MIXED and off > _ORDER_BOUND else []
    words = "The leakage audit passed: no target is told by the order of the files or by numbers (0.5 tells nothing)."
    if odd:
        words = (
            f"The leakage audit passed, but in {', '.join(odd)} the order of candidates or their numbers go along with "
            "what is wanted (0.5 tells nothing). The model reads neither."
        )
    headings = ("split", "records counted", "AUC of the place", "AUC of the item's number")
    found = table(Sheet(headings, rows), "Leakage: can the target be told without reading any text?")
    return join([el("p", words), found]) if found else Html()


def costs(report: Mapping[str, Any]) -> Iterator[Html]:
    """Time, memory and parameters, then all else that the run says of itself."""
    run = {key: value for key, value in (report.get("run") or {}).items() if key not in ("versions", "hashes")}
    rows = []
    if run.get("seconds") is not None:
        rows.append(("tuning took", duration(run.pop("seconds"))))
    if report.get("seconds") is not None:
        rows.append(("this scoring took", duration(report["seconds"])))
    if run.get("peak_memory_bytes") is not None:
        rows.append(("memory at its peak", size(run.pop("peak_memory_bytes"))))
    if run.get("trainable_parameters") is not None:
        rows.append(("trained parameters", number(run.pop("trainable_parameters"))))
    rows += [(name.replace("_", " "), value) for name, value in tables.facts("", run).rows]
    yield table(Sheet(("what", ""), rows, left=2), "Costs and settings of the run")


def measured(report: Mapping[str, Any], protocols: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Html]:
    """The protocol, then versions and hashes, so that a figure can be made again."""
    for task, facts in protocols:
        if facts:
            yield el("p", el("strong", f"{task}: ") if task else "", tables.protocol(facts), ".")
    run = report.get("run") or {}
    hashes = {**(run.get("hashes") or {}), **(report.get("hashes") or {})}
    data = {facts["data"] for _, facts in protocols if facts.get("data")}
    hashes |= {"data": next(iter(data))} if len(data) == 1 else {}
    if report.get("predictions"):
        hashes[str(report["predictions"].get("path", "predictions"))] = report["predictions"].get("sha256")
    versions = {**(run.get("versions") or {}), **(report.get("versions") or {})}
    rows = [("version", str(name), str(value)) for name, value in versions.items()]
    rows += [("sha256", str(name), str(value)) for name, value in hashes.items()]
    yield table(Sheet(("what", "of", "value"), rows, left=3), "Versions and hashes")
