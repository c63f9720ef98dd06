"""The quick readers of CSV beside the careful one: the same rows, the same users, the same complaints."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recft.data import tables
from recft.data.interactions import read_interactions
from recft.data.items import Catalogue
from recft.data.ledger import Ledger
from recft.data.plain import Plain
from recft.data.sources import ahead
from recft.data.tables import batches
from recft.run import silent
from recft.schema import InteractionsTable

NAMES = ["user", "item", "time"]
ODD = ["", " 7", "7 ", "+7", "007", "-0", "-7", "1e3", "7.0", "0", "０", "杯子", "☕", "1_000", "0x1", "\t7"]
TIMES = ["1700000000", "1700000000.5", "2023-01-02", "1700000000000", "9223372036854775807", "99999999999"]
CELLS = st.one_of(
    st.integers(0, 30).map(str),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(ODD),
    st.sampled_from(TIMES),
)
TABLES = st.lists(st.lists(CELLS, min_size=3, max_size=3).map(",".join), min_size=1, max_size=12)
WHOLE = st.lists(st.lists(st.integers(0, 40).map(str), min_size=3, max_size=3).map(",".join), min_size=1, max_size=12)
TORN = st.lists(st.sampled_from(["1,2,3", "4,5", "6", "", "7,8,9,10", "1,,3", ",,", "007,2,3"]), min_size=1, max_size=8)
ENDS = st.sampled_from(["\n", "\r\n"])


def as_text(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.select(pl.col("row").cast(pl.Int64), pl.col(*NAMES, "flaw").cast(pl.String)).rows()


def read(path: Path, whole: list[str]) -> list[tuple[Any, ...]]:
    return [row for frame in batches(path, NAMES, "data.interactions", whole=whole) for row in as_text(frame)]


@settings(deadline=None, max_examples=150)
@given(st.one_of(TABLES, WHOLE, TORN), ENDS, st.booleans())
def test_whole_numbers_say_what_the_text_says(lines: list[str], end: str, closed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes((end.join(["user,item,time", *lines]) + (end if closed else "")).encode())
        assert read(path, NAMES) == read(path, [])


@pytest.mark.parametrize("cell", ["007", "+7", " 7", "-0", "10000000000000000000", "1000000000000000000", "7 ", "1e1"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_cell_that_is_not_written_as_a_number_leaves_the_block_to_text(cell: str, place: int) -> None:
    plain = Plain(NAMES, NAMES, ",", NAMES)
    clean = "".join(f"{number},{number * 7},{number + 5}\n" for number in range(40_000)).encode()
    frame = plain.read(clean)
    assert frame is not None and frame.schema == dict.fromkeys(NAMES, pl.Int64)
    row = ["1", "2", "3"]
    row[place] = cell
    assert plain.read(clean + ",".join(row).encode() + b"\n") is None
    assert plain.read(clean) is not None


def test_a_missing_separator_cannot_hide_behind_a_leading_zero() -> None:
    plain = Plain(NAMES, NAMES, ",", NAMES)
    assert plain.read(b"1,2,3\n") is not None
    assert plain.read(b"1,2,3\n001\n4,5,6\n") is None
    assert plain.read(b"1,2,3\n\n4,5,0006\n") is None


def test_columns_of_text_stay_text_beside_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("item,time,note,user\n杯子,5, 好 ,7\n☕,6,,8\n", encoding="utf-8")
    frame = next(batches(path, NAMES, "data.interactions", whole=NAMES))
    assert frame.select(NAMES).rows() == [(7, "杯子", 5), (8, "☕", 6)]
    noted = next(batches(path, [*NAMES, "note"], "data.interactions", whole=["user", "time"]))
    assert noted["note"].to_list() == ["好", None] and noted.schema["user"] == pl.Int64


def test_whole_numbers_of_parquet_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [3, None], "item": ["a", "b"], "time": [1.0, 2.5]}).write_parquet(path)
    frame = next(batches(path, NAMES, "data.interactions", whole=NAMES))
    assert frame.select(NAMES).rows() == [(3, "a", "1"), (None, "b", "2.5")]


Logged = tuple[list[list[Any]], list[str], dict[str, int], dict[str, int], str]


def logged(path: Path, whole: bool, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Logged:
    """All that reading a log gives: the log, its users, and what was set aside."""
    ids = [*map(str, range(20)), "007", "杯子"]
    catalogue = Catalogue(pl.DataFrame({"id": ids}), (), pl.Series([], dtype=pl.String))
    table = InteractionsTable(path=str(path), user="user", item="item", time="time")
    aside = folder / "quarantine.jsonl"
    aside.unlink(missing_ok=True)
    with monkeypatch.context() as patched, Ledger("quarantine", aside) as ledger:
        if not whole:
            patched.setattr(Plain, "read", lambda self, body: None)
        log, users, _ = read_interactions(table, catalogue, ledger, silent)
    told = aside.read_text(encoding="utf-8") if aside.is_file() else ""
    columns = [log.users.tolist(), log.items.tolist(), log.times.tolist()]
    return columns, users, dict(ledger.by_rule), dict(ledger.dropped), told


CLEAN = st.tuples(st.integers(0, 5), st.integers(0, 24), st.integers(1, 9))
MIXED = st.tuples(
    st.sampled_from(["7", "007", "+7", "杯子", "", "3"]),
    st.sampled_from(["7", "007", "杯子", "99", ""]),
    st.sampled_from(["5", "1e3", "2023-01-02", "99999999999", "x"]),
)
BLOCKS = st.lists(
    st.one_of(st.lists(CLEAN, min_size=1, max_size=8), st.lists(MIXED, min_size=1, max_size=4)), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=60)
@given(BLOCKS)
def test_a_log_read_as_numbers_is_the_log_read_as_text(parts: list[list[tuple[Any, ...]]]) -> None:
    # Blocks of some lines each: one may come as numbers, the next as text.
    cut = ["".join(",".join(map(str, row)) + "\n" for row in part).encode() for part in parts]
    cut = [b"user,item,time\n" + cut[0], *cut[1:], b"1,1,1"]
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        path = Path(name) / "log.csv"
        path.write_bytes(b"".join(cut))
        patched.setattr(tables, "blocks", lambda path, place: iter(cut))
        assert logged(path, True, patched, Path(name)) == logged(path, False, patched, Path(name))


def test_work_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(ahead(range(20), lambda number: number * 2)) == [(number, number * 2) for number in range(20)]
    assert list(itertools.islice(ahead(itertools.count(), str), 3)) == [(0, "0"), (1, "1"), (2, "2")]

    def fails(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="three"):
        found.extend(number for number, _ in ahead(range(9), fails))
    assert found == [0, 1, 2]
