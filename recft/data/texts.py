"""Texts and what answers them: labels, replies, preferred replies, or the assistant's turns of conversations.

All four come as texts with candidates: a label or a reply is the one candidate of its text, a preference has several.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.columns import HAS_NUL, one_line
from recft.data.items import SEPARATOR
from recft.data.ledger import Ledger, Rule, sift, torn
from recft.data.mapping import target_of
from recft.data.messages import FLAWS, answers
from recft.data.store import Split, kept_in, with_columns
from recft.data.tables import batches
from recft.data.text import normalise
from recft.errors import DataError, RecipeError, problem
from recft.schema import DataSettings, TextsTable

__all__ = ["Texts", "read_texts"]

_NEEDS_TEXT = "every row needs text in one of its text columns"
_NEEDS_REJECTED = "every preference needs a rejected answer"
_NO_MESSAGES = "an answer is a text, not a list of messages"
_MESSAGES = r'^\[\s*\{[^}]*"role"\s*:'
_DIFFERENT = "the chosen answer is none of the rejected ones"


@dataclass(frozen=True)
class Texts:
    """Every text with its candidates, in the order of the files.

    Attributes:
        frame: `file` (train, valid or test: whose file it stood in), `text`, `text_key` (normalised), `key` (the group
            where rows have one, else the text's own key), `field_<n>` for each text column, `column:<name>`.
        offsets: (R + 1,) int64 into items and grades.
        items: (P,) int32, the candidates as numbers of `names`, in an order within a text that tells nothing.
        grades: (P,) float32: 1 right or chosen, 0 rejected.
        names: the different labels, sorted, or replies, as they first appear.
        target: label, reply, chosen or messages.
        key: what keeps rows together: group, conversation or text.
        fields: the file's names of the text columns.
        given: the splits that have a file of their own.
    """

    frame: pl.DataFrame
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    grades: NDArray[np.float32]
    names: list[str]
    target: str
    key: Literal["group", "conversation", "text"]
    fields: tuple[str, ...]
    given: tuple[Split, ...]

    def __len__(self) -> int:
        return self.frame.height


def read_texts(settings: DataSettings, ledger: Ledger) -> Texts:
    """The checked texts of all files; bad rows go to the ledger.

    The order of a text's candidates depends on the split's seed.

    Raises:
        RecipeError: no texts are mapped.
        DataError: a file or a column is missing, no row is left, or all labels are the same.
    """
    table = settings.texts
    if table is None:
        raise RecipeError(problem("data.texts", "missing", "this task reads texts", "map it"))
    skip = settings.on_missing_text == "skip"
    own: dict[Split, str | None] = {"valid": table.valid, "test": table.test}
    files = {"train": table.path} | {split: path for split, path in own.items() if path is not None}
    rows = pl.concat([_read(split, Path(path), table, skip, ledger) for split, path in files.items()])
    if not rows.height:
        ledger.settle()
        raise DataError(problem("data.texts", "no row", "at least one text", "check the files"))
    target = target_of(table)
    offsets = np.zeros(rows.height + 1, np.int64)
    np.cumsum(rows["candidates"].list.len().to_numpy(), out=offsets[1:])
    owner = np.repeat(np.arange(rows.height), np.diff(offsets))
    # The right answer comes first as it is read: numbers by first appearance would tell it, and so would its place.
    order = np.lexsort((np.random.default_rng([settings.split.seed, 3]).random(len(owner)), owner))
    grades = np.zeros(len(owner), np.float32)
    grades[offsets[:-1]] = 1
    answered = rows["candidates"].explode().gather(order)
    names = answered.unique(maintain_order=True).alias("name")
    if target == "label":
        names = names.sort()
    numbers = pl.DataFrame([names, pl.int_range(len(names), dtype=pl.Int32, eager=True).alias("number")])
    items = answered.alias("name").to_frame().join(numbers, on="name", how="left", maintain_order="left")["number"]
    if target == "label" and len(names) == 1 and not (ledger.keeps_bad_rows and ledger.by_rule):
        raise DataError(
            problem("data.texts.label", f"{names[0]!r} is the only label", "at least two labels", "check the column")
        )
    given = tuple(split for split in own if split in files)
    key: Literal["group", "conversation", "text"] = (
        "group" if table.group else "conversation" if table.messages else "text"
    )
    texts = rows.drop("candidates")
    return Texts(texts, offsets, items.to_numpy(), grades[order], names.to_list(), target, key, table.text, given)


def _read(split: str, path: Path, table: TextsTable, skip: bool, ledger: Ledger) -> pl.DataFrame:
    """One file's rows: file, text, text_key, key, candidates, fields and kept columns."""
    answered = [name for name in (table.reply, table.chosen, *_rejected(table)) if name is not None]
    nested = [*answered, *([table.messages] if table.messages is not None else [])]
    target = [name for name in (table.label, table.reply, table.chosen) if name is not None]
    group = [table.group] if table.group is not None else []
    used = list(dict.fromkeys([*table.text, *nested, *target, *group]))
    parts = []
    for batch in batches(path, [*used, *table.columns], "data.texts", table.separator, nested):
        if skip and table.text:
            filled = batch.filter(pl.any_horizontal(pl.col(*table.text).is_not_null()) | pl.col("flaw").is_not_null())
            ledger.dropped["rows without text"] += batch.height - filled.height
            batch = filled
        rules = torn(batch)
        rules += [Rule(name, HAS_NUL, pl.col(name).str.contains("\0", literal=True)) for name in used]
        if table.text:
            empty = pl.all_horizontal(pl.col(name).is_null() for name in table.text)
            rules.append(Rule(SEPARATOR.join(table.text), _NEEDS_TEXT, empty))
        told = {table.label: "a label", table.reply: "a reply", table.chosen: "a chosen answer"}
        rules += [Rule(name, f"every row needs {told[name]}", pl.col(name).is_null()) for name in target]
        rules += [Rule(name, _NO_MESSAGES, pl.col(name).str.contains(_MESSAGES)) for name in answered]
        rules += [Rule(name, "every row needs its group", pl.col(name).is_null()) for name in group]
        sound = sift(batch, rules, ledger, path.name)
        named = (
            _conversations(sound, table, ledger, path.name) if table.messages else _plain(sound, table, ledger, path)
        )
        parts.append(named.with_columns(pl.lit(split).alias("file")))
    rows = pl.concat(parts)
    # A text of invisible characters alone is none.
    rows = sift(
        rows, [Rule(SEPARATOR.join(table.text), _NEEDS_TEXT, pl.col("text_key") == "", "text")], ledger, path.name
    )
    return rows.drop("row")


def _rejected(table: TextsTable) -> Sequence[str]:
    return (table.rejected,) if isinstance(table.rejected, str) else table.rejected or ()


def _plain(sound: pl.DataFrame, table: TextsTable, ledger: Ledger, path: Path) -> pl.DataFrame:
    """Rows with text columns."""
    fields = [one_line(name).alias(f"field_{number}") for number, name in enumerate(table.text)]
    answer = table.label or table.reply or table.chosen
    named = sound.select(
        "row",
        *fields,
        *_group(table),
        pl.col(str(answer)).alias("answer"),
        *[pl.col(name).alias(f"rejected_{number}") for number, name in enumerate(_rejected(table))],
        *with_columns(table.columns),
    )
    columns = [f"field_{number}" for number in range(len(fields))]
    text = pl.concat_str(*columns, separator=SEPARATOR, ignore_nulls=True).alias("text")
    named = _keyed(named.with_columns(text))
    if not table.chosen:
        return named.with_columns(pl.concat_list("answer").alias("candidates")).drop("answer")
    cells = [name for name in named.columns if name.startswith("rejected_")]
    worse = pl.Series("worse", [_listed(row) for row in named.select(cells).iter_rows()], pl.List(pl.String))
    place = SEPARATOR.join(_rejected(table))
    rules = [
        Rule(place, _NEEDS_REJECTED, pl.col("worse").list.len() == 0),
        Rule(str(table.chosen), _DIFFERENT, pl.col("worse").list.contains(pl.col("answer")), "answer"),
    ]
    named = sift(named.with_columns(worse), rules, ledger, path.name)
    return named.with_columns(pl.concat_list("answer", "worse").alias("candidates")).drop("answer", "worse", *cells)


def _listed(cells: Sequence[str | None]) -> list[str]:
    """The different answers in a row's cells; a JSON list of texts in a cell is several."""
    found: dict[str, None] = {}
    for cell in cells:
        if cell is None:
            continue
        parts = [cell]
        if cell.startswith("["):
            try:
                value = json.loads(cell)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, list) and all(isinstance(part, str) and _sound(part) for part in value):
                parts = value
        found.update(dict.fromkeys(part.strip() for part in parts if part.strip()))
    return list(found)


def _sound(text: str) -> bool:
    """Whether a text that JSON's escapes have spelt can be stored."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _conversations(sound: pl.DataFrame, table: TextsTable, ledger: Ledger, file: str) -> pl.DataFrame:
    """A row for each answer that is a record; the answers of one conversation have one key."""
    name = str(table.messages)
    found = [None if value is None else answers(value, table.turns == "all") for value in sound[name].to_list()]
    flaws = [(part if isinstance(part, tuple) else (None, None)) for part in found]
    rules = [Rule(name, "every row needs messages", pl.col(name).is_null())]
    rules += [Rule(name, flaw, pl.col("__flaw") == flaw, "__shown") for flaw in FLAWS]
    shown = [value and value.encode("utf-8", "backslashreplace").decode() for _, value in flaws]
    marked = sound.with_columns(
        pl.Series("__flaw", [flaw for flaw, _ in flaws], pl.String),
        pl.Series("__shown", shown, pl.String),
        pl.Series("__place", range(sound.height), pl.Int64),
    )
    marked = sift(marked, rules, ledger, file)
    records = [(place, *record) for place in marked["__place"].to_list() for record in found[place] or []]
    schema = {"__place": pl.Int64, "text": pl.String, "answer": pl.String}
    turns = pl.DataFrame(records, schema=schema, orient="row")
    kept = marked.select("__place", "row", *_group(table), *with_columns(table.columns))
    rows = turns.join(kept, on="__place", how="left", maintain_order="left")
    if not table.group:
        # The last answer's messages hold those of all earlier ones: they stand for the conversation.
        rows = rows.with_columns(pl.col("text").last().over("__place").alias("group"))
        rows = rows.with_columns(_normalised(rows["group"]).alias("group"))
    return _keyed(rows).with_columns(pl.concat_list("answer").alias("candidates")).drop("answer")


def _group(table: TextsTable) -> list[pl.Expr]:
    return [pl.col(table.group).alias("group")] if table.group else []


def _keyed(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with `text_key` and `key`."""
    rows = rows.with_columns(_normalised(rows["text"]).alias("text_key"))
    key = pl.col("group" if "group" in rows.columns else "text_key").alias("key")
    fields = [name for name in rows.columns if name.startswith(("field_", "rejected_"))]
    return rows.with_columns(key).select("row", "text", "text_key", "key", *fields, "answer", *kept_in(rows))


def _normalised(texts: pl.Series) -> pl.Series:
    """The texts as they are compared; each different one is normalised once."""
    different = texts.unique(maintain_order=True)
    return texts.replace_strict(different, [normalise(text) for text in different], return_dtype=pl.String)
