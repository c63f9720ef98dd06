"""A user's history as text: newest first in a sentence, so that a cut loses the oldest, or as a list that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["history_lines", "history_text"]


def history_text(
    records: Records,
    record: int,
    items: Sequence[str],
    last: int,
    liked_from: float | None = None,
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
    return (f"{profile}. " if profile else "") + "; ".join(texts)


def history_lines(records: Records, record: int, items: Sequence[str], last: int, stepped: bool = False) -> str:
    """The profile of a record's user, and the texts of the `last` events, one a line, oldest first.

    A user's later list begins with the earlier one, event by event, so that a model reads both at once. That ends
    where the oldest event falls out of the window: `stepped` moves the window by `last` events at a time, and a list
    then has from `last` to twice as many.
    """
    history = records.history(record)
    start = max(len(history) - last, 0)
    if stepped:
        start = start // last * last
    profile = records.profile(record)
    return (f"{profile}. " if profile else "") + "\n".join(items[item] for item in history[start:])
