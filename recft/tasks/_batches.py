"""What batches are made with: each text once, some of a record's pairs; and the softmax of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recft.tasks._base import Text

if TYPE_CHECKING:
    from recft.data.store import Records

__all__ = ["distinct", "drawn", "own_pairs", "softmax"]


def distinct(texts: Sequence[Text]) -> tuple[list[Text], np.ndarray]:
    """The different texts as they first appear, and the place of each text among them, (P,) int64.

    >>> found, places = distinct(["lamp", "desk", "lamp"])
    >>> found, places.tolist()
    (['lamp', 'desk'], [0, 1, 0])
    """
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], dtype=np.int64)


def own_pairs(records: Records, row: int) -> np.ndarray:
    """The places of a record's own pairs."""
    return np.arange(records.offsets[row], records.offsets[row + 1])


def drawn(pairs: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """At most so many of the pairs; all of them without a limit."""
    return pairs if most is None or len(pairs) <= most else rng.choice(pairs, most, replace=False)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis, float64.

    >>> softmax(np.array([[0.0, 1000.0]])).tolist()
    [[0.0, 1.0]]
    """
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=-1, keepdims=True))
    found: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return found
