"""A user's history as text: newest first, so that a cut loses the oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["history_text"]


def history_text(
    records: Records,
    record: int,
    items: Sequence[str],
    last: int,
    liked_from: float | None = None,
    newest_first: bool = True,
) -> str:
    """The profile of a record's user, and the texts of the `last` items, each once; with `liked_from`, each marked."""
    history = records.history(record)[::-1]
    ratings = None
    if liked_from is not None and records.log_ratings is not None:
        ratings = records.log_ratings[records.starts[record] : records.cuts[record]][::-1]  # type: ignore[index]
    chosen: dict[str, bool] = {}
    for place, item in enumerate(history):
        if len(chosen) == last:
            break
        chosen.setdefault(items[item], ratings is None or bool(ratings[place] >= liked_from))
    # Each item carries its own mark: two lists one after the other would lose the second to a cut.
    marks = {True: " (liked)", False: " (disliked)"} if ratings is not None else {True: "", False: ""}
    texts = [text + marks[yes] for text, yes in chosen.items()]
    profile = records.profile(record)
    return (f"{profile}. " if profile else "") + "; ".join(texts if newest_first else reversed(texts))
