"""Bad rows: found by rules, counted, and either reported all together or set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Self

import polars as pl

from recft.errors import DataError, problem

__all__ = ["Ledger", "Rule", "short", "sift", "torn"]

SHOWN_ROWS = 20
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Rule:
    """One thing that must not hold of a row.

    Attributes:
        column: the file's own name of the column.
        text: the rule, as it is told.
        broken: true where a row breaks it; null counts as false.
        shown: the column of the frame whose value is told; `column` itself where absent.
    """

    column: str
    text: str
    broken: pl.Expr
    shown: str | None = None


def short(value: object) -> str:
    """A value as it is told: on one line, at most 80 characters, nothing as `(empty)`."""
    if value is None or value == "":
        return "(empty)"
    text = str(value)[: 4 * _SHOWN_CHARACTERS]
    shown = repr(" ".join(text.split()) if text.isprintable() else text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[: _SHOWN_CHARACTERS - 2]}…'"


class Ledger:
    """All bad rows of one run. `stop` collects and raises once; `quarantine` writes each to a file.

    Args:
        on_error: what `settle` does with bad rows.
        path: where rows that are set aside go; made at the first one.
    """

    def __init__(self, on_error: Literal["stop", "quarantine"], path: Path) -> None:
        self.on_error = on_error
        self.by_rule: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._path = path
        self._first: list[dict[str, object]] = []
        self._handle: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    @property
    def keeps_bad_rows(self) -> bool:
        """Whether bad rows still count as known ids: the run will stop, and one mistake should be told once."""
        return self.on_error == "stop"

    def note(self, file: str, rows: Iterable[tuple[int, str, object, str]]) -> None:
        """Takes bad rows of a file as (row, column, value, rule)."""
        for row, column, value, rule in rows:
            entry: dict[str, object] = {"file": file, "row": row, "column": column, "value": short(value), "rule": rule}
            self.by_rule[f"{file}: {column}: {rule}"] += 1
            if len(self._first) < SHOWN_ROWS:
                self._first.append(entry)
            if self.on_error == "quarantine":
                if self._handle is None:
                    self._handle = self._path.open("w", encoding="utf-8")
                self._handle.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def settle(self) -> None:
        """Raises where the run stops at bad rows and there were any.

        Raises:
            DataError: the first 20 rows and the counts by rule.
        """
        if self.on_error != "stop" or not self.by_rule:
            return
        lines = [
            problem(
                "data",
                f"{self.by_rule.total():,} bad row{'s' if self.by_rule.total() > 1 else ''}",
                "every row keeps its rules",
                "mend the rows, or set data.on_error: quarantine",
            )
        ]
        lines += [
            f"  {entry['file']} row {entry['row']}, {entry['column']}: {entry['value']} (rule: {entry['rule']})"
            for entry in self._first
        ]
        if self.by_rule.total() > len(self._first):
            lines.append(f"  … {self.by_rule.total() - len(self._first):,} more")
        lines.append("counts by rule:")
        lines += [f"  {count:,} × {rule}" for rule, count in self.by_rule.most_common()]
        raise DataError("\n".join(lines))


def torn(batch: pl.DataFrame) -> list[Rule]:
    """A rule for every way in which rows of a batch are broken as such."""
    if batch["flaw"].null_count() == batch.height:
        return []
    flaws = batch["flaw"].drop_nulls().unique(maintain_order=True).to_list()
    return [Rule("(row)", flaw, pl.col("flaw") == flaw, "flaw_value") for flaw in flaws]


def sift(frame: pl.DataFrame, rules: Sequence[Rule], ledger: Ledger, file: str) -> pl.DataFrame:
    """The rows that break no rule; of each other row the first rule broken goes to the ledger.

    frame: has a column `row`, the row's number in its file as a reader counts.
    """
    # Most batches break no rule: that is found out sooner than which row breaks which.
    broken_at_all = frame.select(rule.broken.any().alias(str(number)) for number, rule in enumerate(rules))
    if not rules or not any(broken_at_all.row(0)):
        return frame
    broken = pl.lit(None, dtype=pl.Int32)
    for number in reversed(range(len(rules))):
        broken = pl.when(rules[number].broken).then(pl.lit(number, dtype=pl.Int32)).otherwise(broken)
    frame = frame.with_columns(broken.alias("__rule"))
    bad = frame.filter(pl.col("__rule").is_not_null())
    if bad.height:
        names = sorted({rule.shown or rule.column for rule in rules} & set(bad.columns))
        noted = []
        for entry in bad.select("row", "__rule", *[pl.col(name).alias(f"value_{name}") for name in names]).to_dicts():
            rule = rules[entry["__rule"]]
            noted.append((entry["row"], rule.column, entry.get(f"value_{rule.shown or rule.column}"), rule.text))
        ledger.note(file, noted)
        frame = frame.filter(pl.col("__rule").is_null())
    return frame.drop("__rule")
