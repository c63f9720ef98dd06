"""An export's certificate as a sheet: what was compared, how far apart it is, and what of it is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recft.reports.sheets import Sheet, number, signed

__all__ = ["certificate"]

TOLD = "told"
"""Beside a figure that decides nothing."""

WIDEST = 40
"""Characters of a cell of the last column: longer ones become notes, so that figures stand in 100 columns."""


def certificate(found: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> Sheet:
    """An export's certificate: what was compared, how far apart, and what is allowed.

    Args:
        found: `certificate` of recft-export.json.
        weights: its `onto`: which base weights the adapter was merged into, and why.
    """
    onto = weights or {}
    artefact = f"{found.get('dtype') or ''} {onto.get('weights') or ''}".strip()
    rows = [
        ("engine", f"{found.get('engine') or ''} {found.get('version') or ''}".strip(), ""),
        ("weights", artefact + (", distilled" if found.get("distilled") else ""), onto.get("reason") or ""),
        ("rows compared", _compared(found), ""),
        *_distances(found),
        *_serving(found),
        *_k_bit(found.get("k_bit") or {}),
        *(("own: " + name.replace("_", " "), number(value), "") for name, value in _flat(found.get("own") or {})),
        ("verdict", str(found.get("verdict", "?")), ""),
    ]
    shown = [row for row in rows if row[1] not in ("", "-")]
    notes = [f"{name}: {allowed}" for name, _, allowed in shown if len(allowed) > WIDEST]
    rows = [(name, value, "" if len(allowed) > WIDEST else allowed) for name, value, allowed in shown]
    return Sheet(("certificate", "", "allowed"), rows, notes=[*notes, *found.get("wrong", ())], left=3)


def _compared(found: Mapping[str, Any]) -> str:
    items = f" x {number(found['items'])} items" if found.get("items") else ""
    split = f" of {found['split']}" if found.get("split") else ""
    return f"{number(found['rows'])}{split}{items}" if found.get("rows") else ""


def _distances(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Scores, their distance, first places, and the metric."""
    metric, both = found.get("metric"), found.get("metrics") or {}
    rows = [
        _row("largest score difference", found, "largest_score_difference"),
        _row("mean score difference", found, "mean_score_difference"),
        _row("scores' distance, KL", found, "kl"),
        ("the adapter's own effect, KL", number(found.get("effect_kl")), TOLD),
        _row("first places that agree", found, "top_k_agreement"),
    ]
    exact = found.get("top_k_agreement_exact")
    if exact is not None and exact != found.get("top_k_agreement"):
        rows.append(("  near-equal scores told apart", number(exact), TOLD))
    if metric and both:
        before, after = (number((both.get(side) or {}).get(metric)) for side in ("reference", "served"))
        interval = found.get("metric_interval")
        shown = f" [{signed(interval[0])}, {signed(interval[1])}]" if interval else ""
        rows.append((f"{metric}, tuned -> served", f"{before} -> {after}", ""))
        if found.get("metric_change") is not None:
            allowed = _row("", found, "metric_change")[2]
            rows.append(("  paired change, 95% interval", signed(found["metric_change"]) + shown, allowed))
    return rows


def _serving(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Tokens, batches, padding and speed."""
    side, longest, speed = (found.get(name) or {} for name in ("padding_side", "max_tokens", "latency"))
    rows = [
        ("texts with other tokens", number(found.get("tokenization_differs")), "0"),
        _row("change with the batch size", found, "batch_change"),
        ("padding side", str(side.get("artefact") or ""), str(side.get("tuned") or "")),
    ]
    if found.get("padding_change") is not None:
        matters = "matters" if found.get("padding_matters") else "does not matter"
        rows.append(("change with the other side", f"{number(found['padding_change'])}, {matters}", TOLD))
    if longest.get("artefact") is not None and longest["artefact"] != longest.get("tuned"):
        words = f"{number(longest['artefact'])}, tuned with {number(longest.get('tuned'))}"
        rows.append(("longest text, in tokens", words, TOLD))
    if speed:
        words = f"{number(speed.get('one_ms'))} ms a text, {speed.get('texts_per_second') or 0:,.0f} texts/s"
        rows.append(("speed, alone and in batches", words, TOLD))
    return rows


def _k_bit(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if not found:
        return []
    bound = found.get("bound")
    return [("from the k-bit model, KL", number(found.get("kl")), "" if bound is None else f"<= {bound:.3g}")]


def _row(name: str, found: Mapping[str, Any], figure: str) -> tuple[str, str, str]:
    """A figure, and its limit where it is judged."""
    judged: Sequence[Mapping[str, Any]] = found.get("judged") or ()
    bound = next((one for one in judged if one["figure"] == figure), None)
    if bound is None:
        return name, number(found.get(figure)), TOLD
    relation = ">=" if bound.get("at_least") else "+-" if figure == "metric_change" else "<="
    either = ", or its interval holds 0" if bound.get("or_interval") else ""
    return name, number(found.get(figure)), f"{relation} {bound['limit']:.3g}{either}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += _flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found
