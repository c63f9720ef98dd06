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
    """The texts of a record's `last` items, newest first, each once; with `liked_from`, each marked."""
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
    # Each item carries its own mark: two lists one after the other would lose the second to a cut.
    return "; ".join(f"{text} ({'liked' if yes else 'disliked'})" for text, yes in chosen.items())
