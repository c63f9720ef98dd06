"""Held-out inputs and what the tuned model makes of them: they travel with an export, and certify it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft.errors import ExportError, problem
from recft.models.tokens import Text
from recft.run import atomic_file

__all__ = ["Rows"]

_SCHEMA: dict[str, Any] = {
    "part": pl.String,
    "text": pl.String,
    "tail": pl.String,
    "outputs": pl.List(pl.Float32),
    "tokens": pl.List(pl.Int32),
    "number": pl.Int32,
    "place": pl.Int32,
    "cluster": pl.Int32,
    "pairs": pl.List(pl.Int32),
    "grades": pl.List(pl.Float32),
    "stars": pl.List(pl.Float32),
    "judged": pl.Boolean,
}
"""One row a context, an item or a record (`part`); what does not concern a part is null."""


def _numbers() -> np.ndarray:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Rows:
    """All that a certificate needs: texts, the tuned model's outputs and tokens for them, and what is asked of them.

    Texts are as the task writes them, before any cut or chat template. Q records ask about them; nothing names whose
    they are.

    Attributes:
        contexts: R different texts (of towers: queries or histories; of tasks that read pairs: whole pairs).
        items: C texts of the catalogue; none where the task has no towers.
        context_outputs: the tuned model's, (R, K) float32.
        item_outputs: the tuned model's, (C, K) float32.
        context_tokens: the ids of each context by the run's tokenizer, as `Serving.tokens` gives them.
        item_tokens: the ids of each item.
        item_numbers: of each item in the catalogue, (C,) int32.
        offsets: record q owns the pairs `offsets[q]:offsets[q + 1]`, (Q + 1,) int64.
        pairs: (P,) int32: the item of a pair, its place in `items`; of classes the number of the class; of tasks that
            read pairs the place of the pair's text in `contexts`.
        grades: (P,) float32.
        places: the place of each record's own text in `contexts`, (Q,) int32; empty where pairs have the texts.
        clusters: records of the same number are one user's or one query's, (Q,) int32.
        stars: what each record's user has given before, oldest first, Q arrays; none where the task reads none.
        judged: whether a ranking is of the record's own pairs alone.
    """

    contexts: Sequence[Text]
    items: Sequence[Text]
    context_outputs: np.ndarray
    item_outputs: np.ndarray
    context_tokens: Sequence[Sequence[int]] = field(default_factory=list)
    item_tokens: Sequence[Sequence[int]] = field(default_factory=list)
    item_numbers: np.ndarray = field(default_factory=_numbers)
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    pairs: np.ndarray = field(default_factory=_numbers)
    grades: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    places: np.ndarray = field(default_factory=_numbers)
    clusters: np.ndarray = field(default_factory=_numbers)
    stars: Sequence[np.ndarray] = field(default_factory=list)
    judged: bool = False

    @property
    def n_records(self) -> int:
        """Q."""
        return len(self.offsets) - 1

    def write(self, path: Path) -> None:
        """Writes one Parquet file; `read` gives the same rows."""
        frames = [
            _texts("context", self.contexts, self.context_outputs, self.context_tokens),
            _texts("item", self.items, self.item_outputs, self.item_tokens, self.item_numbers),
            self._records(),
        ]
        with atomic_file(path) as draft:
            pl.concat(frames).write_parquet(draft)

    def _records(self) -> pl.DataFrame:
        owned = [slice(*self.offsets[record : record + 2]) for record in range(self.n_records)]
        return _frame(
            self.n_records,
            part="record",
            place=self.places.tolist(),
            cluster=self.clusters.tolist(),
            pairs=[self.pairs[own].tolist() for own in owned],
            grades=[self.grades[own].tolist() for own in owned],
            stars=[stars.tolist() for stars in self.stars],
            judged=[self.judged] * self.n_records,
        )

    @classmethod
    def read(cls, path: Path) -> Rows:
        """The reverse of `write`.

        Raises:
            ExportError: the file is no such table.
        """
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise _unreadable(path, str(error).splitlines()[0]) from error
        if missing := [name for name in _SCHEMA if name not in frame.columns]:
            raise _unreadable(path, f"has no column {missing[0]}")
        context, item, record = (frame.filter(pl.col("part") == part) for part in ("context", "item", "record"))
        sizes = record["pairs"].list.len().to_numpy()
        stars = record["stars"].to_list()
        return cls(
            contexts=_read_texts(context),
            items=_read_texts(item),
            context_outputs=_read_outputs(context),
            item_outputs=_read_outputs(item),
            context_tokens=_lists(context["tokens"]),
            item_tokens=_lists(item["tokens"]),
            item_numbers=item["number"].drop_nulls().to_numpy().astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            pairs=_flat(record["pairs"], np.int32),
            grades=_flat(record["grades"], np.float32),
            places=record["place"].drop_nulls().to_numpy().astype(np.int32),
            clusters=record["cluster"].drop_nulls().to_numpy().astype(np.int32),
            stars=[np.array(given, np.float32) for given in stars if given is not None],
            judged=bool(record["judged"].any()),
        )


def _texts(
    part: str,
    texts: Sequence[Text],
    outputs: np.ndarray,
    tokens: Sequence[Sequence[int]],
    numbers: np.ndarray | None = None,
) -> pl.DataFrame:
    return _frame(
        len(texts),
        part=part,
        text=[text if isinstance(text, str) else text[0] for text in texts],
        tail=[None if isinstance(text, str) else text[1] for text in texts],
        outputs=outputs.tolist(),
        tokens=[list(ids) for ids in tokens],
        number=[] if numbers is None else numbers.tolist(),
    )


def _frame(rows: int, part: str, **columns: list[Any]) -> pl.DataFrame:
    """So many rows of a part; a column that is not given, or empty, is null."""
    found = {name: columns.get(name) or [None] * rows for name in _SCHEMA}
    return pl.DataFrame(found | {"part": [part] * rows}, schema=_SCHEMA)


def _read_texts(frame: pl.DataFrame) -> list[Text]:
    both = zip(frame["text"].to_list(), frame["tail"].to_list(), strict=True)
    return [text if tail is None else (text, tail) for text, tail in both]


def _read_outputs(frame: pl.DataFrame) -> np.ndarray:
    outputs = frame["outputs"].to_list()
    return np.array(outputs, np.float32).reshape(len(outputs), len(outputs[0]) if outputs else 0)


def _lists(column: pl.Series) -> list[list[int]]:
    return [list(ids) for ids in column.to_list() if ids is not None]


def _flat(column: pl.Series, dtype: type) -> np.ndarray:
    values = [value for own in column.to_list() for value in own or ()]
    return np.array(values, dtype)


def _unreadable(path: Path, why: str) -> ExportError:
    return ExportError(
        problem(str(path), f"cannot be read ({why})", "rows as `recft export` writes them", "export again")
    )
