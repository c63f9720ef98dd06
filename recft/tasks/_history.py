"""A user's history as text: newest first, so that a cut loses the oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["history_text"]


def history_text(
    records: Records, record: int, items: Sequence[str], last: int, liked_from: float | None = None
) -> str:
    """The texts of a record's `last` items, newest first, each once; with `liked_from`, liked and disliked apart."""
    history = records.history(record)[::-1]
    ratings = None
    if liked_from is not None and records.log_ratings is not None:
        ratings = records.log_ratings[records.starts[record] : records.cuts[record]][::-1]  # type: ignore[index]
    chosen: dict[str, bool] = {}
    for place, item in enumerate(history):
        if len(chosen) == last:
            break
        chosen.setdefault(items[item], ratings is None or bool(ratings[place] >= liked_from))
    if ratings is None:
        return "; ".join(chosen)
    liked = "; ".join(text for text, yes in chosen.items() if yes) or "-"
    disliked = "; ".join(text for text, yes in chosen.items() if not yes) or "-"
    return f"liked: {liked} | disliked: {disliked}"
