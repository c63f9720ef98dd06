"""A report in plain words: what was tuned, whether it is better, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recft.reports import reading
from recft.reports.sheets import number
from recft.reports.tables import p_value

__all__ = ["SLICES", "Claim", "claims", "duration", "size", "what_was_tuned"]

SLICES = {
    "cold_item": "the wanted item was never met in training",
    "warm_item": "the wanted item was met in training",
    "cold_user": "the user was never met in training",
    "warm_user": "the user was met in training",
    "repeat": "the user had the wanted item before",
    "novel": "the user did not have the wanted item before",
    "head_item": "the wanted item is among the most popular",
    "middle_item": "the wanted item is neither popular nor rare",
    "tail_item": "the wanted item is among the rare ones",
    "short_history": "little is known of the user",
    "middle_history": "some is known of the user",
    "long_history": "much is known of the user",
}
"""What the slices that recft makes itself mean; a column's slices speak for themselves."""

_BITS = {"int8": "in 8 bits (int8)", "nf4": "in 4 bits (nf4)", "fp4": "in 4 bits (fp4)"}
_PAIRS = {
    "tuned - base": ("The tuned model", "the untuned base"),
    "fused - fused_without_model": ("The fusion with the model", "the same fusion without it"),
}


@dataclass(frozen=True)
class Claim:
    """One comparison in words.

    Attributes:
        kind: `better`, `worse` or `unclear`.
        verdict: in two or three words.
        text: the sentence, with figures.
    """

    kind: str
    verdict: str
    text: str


def what_was_tuned(report: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """The sentence that says what was done to what, with which data; as much of it as the report knows."""
    run, data = report.get("run") or {}, part.get("data") or report.get("data") or {}
    base, method = run.get("base"), run.get("method")
    words = f"The base model {base}" if base else "A base model"
    quantized = _BITS.get(str(run.get("quantization")))
    words += f", its weights held {quantized}," if quantized else ""
    words += f" was tuned with {method}" if method else " was tuned"
    task = part.get("task") or report.get("task")
    words += f" for the task {task}" if task else ""
    train = _records(data, "train")
    words += f" on {number(train)} training records" if train else ""
    words += f" of a shop with {number(data['items'])} items" if isinstance(data.get("items"), int) else ""
    n, split = part.get("n"), (part.get("protocol") or {}).get("split")
    counted = (part.get("protocol") or {}).get("counted", "records")
    where = f" on {number(n)} {counted}" if n else ""
    where += f" of the {split} split" if split else ""
    seen = "which also chose the step that was kept: new records may score lower"
    seen = seen if split == "valid" else "which training never saw"
    return f"{words}." + (f" It was scored{where}, {seen}." if where else "")


def _records(data: Mapping[str, Any], split: str) -> int | None:
    """How many records a split has, whether the card gives a count or more than that."""
    found = (data.get("records") or {}).get(split)
    found = found.get("records") if isinstance(found, Mapping) else found
    return found if isinstance(found, int) else None


def claims(part: Mapping[str, Any]) -> list[Claim]:
    """What the main metric says of tuned against base, tuned against the best classic row, and what the model adds."""
    metric, best = reading.main_metric(part), reading.best_classic(part)
    if metric is None:
        return []
    pairs = dict(_PAIRS)
    if best is not None:
        pairs[f"tuned - {best}"] = ("The tuned model", f"the best classic row ({best})")
    order = ["tuned - base", f"tuned - {best}", "fused - fused_without_model"]
    found = part.get("paired") or {}
    made = [_claim(part, pair, pairs[pair], metric, found.get(pair)) for pair in order if pair in pairs]
    return [claim for claim in made if claim]


def _claim(
    part: Mapping[str, Any], pair: str, names: tuple[str, str], metric: str, found: Mapping[str, Any] | None
) -> Claim | None:
    entry = (found or {}).get(metric)
    if not entry or entry.get("mean") is None:
        return None
    scores = {name: (row or {}).get(metric) for name, row in reading.rows(part).items()}
    ours, theirs = (scores.get(name) for name in pair.split(" - "))
    gain = entry["mean"] if reading.higher_is_better(metric) else -entry["mean"]
    interval, p = entry.get("ci"), p_value(entry)
    clear = reading.is_clear(interval)
    kind = "unclear" if not clear else "better" if gain > 0 else "worse"
    verdict = {"better": "Better", "worse": "Worse", "unclear": "No certain difference"}[kind]
    way = "the same" if gain == 0 else f"{'better' if gain > 0 else 'worse'} by {number(abs(float(gain)))}"
    text = f"{names[0]} reaches {number(ours)} {metric}, {names[1]} {number(theirs)}: {way}."
    if interval:
        low, high = (f"{end:+.4f}" for end in interval)
        sure = "clear of zero" if clear else "zero lies within it, so this may be chance"
        text += f" The 95% interval of the difference is {low} to {high}: {sure}."
    else:
        text += " There are too few records for an interval."
    # What is tested is not torn apart at a line's end.
    unbroken = p.replace(" ", "\u00a0")
    return Claim(kind, verdict, text + (f" Paired test: {unbroken}." if p else ""))


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(8.24), duration(362.8), duration(7322)
    ('8.2 s', '6 min 3 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(n_bytes: float) -> str:
    """An amount of memory.

    >>> size(2447990784), size(3 * 2**20)
    ('2.28 GiB', '3 MiB')
    """
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.0f} MiB"
