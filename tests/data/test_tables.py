"""Tables of every format and compression read alike, with the rows' own numbers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data import tables
from recft.data.tables import batches
from recft.errors import DataError

# NUL and the reader's own mark, and separators that are white space to Python but not to Unicode.
NOT_HERE = "\0\ufdd0\x1c\x1d\x1e\x1f"
ROWS = [("a", "Red chair"), ("b", "椅子 🪑"), ("c", "x" * 1_000_000)]


def read(path: Path, *names: str, separator: str | None = None) -> pl.DataFrame:
    return pl.concat(
        [frame.select("row", "flaw", *names) for frame in batches(path, names, "data.items", separator)],
        how="vertical_relaxed",
    )


def values(path: Path, *names: str, separator: str | None = None) -> list[tuple[object, ...]]:
    return read(path, *names, separator=separator).select("row", *names).rows()


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def to(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return to


Put = Callable[[str, bytes], Path]


def _csv_bytes(separator: str = ",") -> bytes:
    return "\n".join([separator.join(["id", "title"]), *(separator.join(row) for row in ROWS)]).encode() + b"\n"


def _jsonl_bytes() -> bytes:
    return b"".join(json.dumps({"id": one, "title": two}).encode() + b"\n" for one, two in ROWS)


def test_every_format_and_compression_reads_the_same(put: Put, tmp_path: Path) -> None:
    expected_csv = [(number, *row) for number, row in enumerate(ROWS, start=2)]
    expected_jsonl = [(number, *row) for number, row in enumerate(ROWS, start=1)]
    plain, tabs, lines = _csv_bytes(), _csv_bytes("\t"), _jsonl_bytes()
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), ("", bytes)):
        assert values(put(f"t.csv{ending}", pack(plain)), "id", "title") == expected_csv
        assert values(put(f"t.tsv{ending}", pack(tabs)), "id", "title") == expected_csv
        assert values(put(f"t.jsonl{ending}", pack(lines)), "id", "title") == expected_jsonl
    frame = pl.DataFrame(ROWS, schema=["id", "title"], orient="row")
    frame.write_parquet(tmp_path / "t.parquet")
    assert values(tmp_path / "t.parquet", "id", "title") == expected_jsonl
    frame.write_csv(tmp_path / "t.csv.zst", compression="zstd")
    assert values(tmp_path / "t.csv.zst", "id", "title") == expected_csv


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,title\r\n1,one\r\n2,two\r\n",
        b"id,title\n1,one\n2,two",
        b'id,title\n"1","one"\n2,"two"\n',
        b"id,title\r1,one\r2,two\r",
        b"id,other,title\n1,x,one\n2,,two\n",
        b"id, title \n 1 , one\n2,two \n",
        b"title,id\none,1\ntwo,2\n",
    ],
    ids=["bom-crlf", "no-last-newline", "quotes", "old-mac", "more-columns", "spaces", "other-order"],
)
def test_ways_to_write_the_same_csv(put: Put, content: bytes) -> None:
    assert values(put("t.csv", content), "id", "title") == [(2, "1", "one"), (3, "2", "two")]


@pytest.mark.parametrize("quoted", [False, True])
def test_blank_lines_are_no_rows_but_count_as_the_reader_counts(put: Put, quoted: bool) -> None:
    body = b"id,title\n\n1,one\n\n\n2,two\n\n\n"
    path = put("t.csv", body.replace(b"one", b'"one"') if quoted else body)
    assert values(path, "id", "title") == [(3, "1", "one"), (6, "2", "two")]


def test_quoted_newlines_and_stray_quotes(put: Put) -> None:
    path = put("t.csv", b'id,title\n1,"two\nlines, ""said"""\n2,5" screen\n3,6" screen\n')
    assert values(path, "id", "title") == [(2, "1", 'two\nlines, "said"'), (3, "2", '5" screen'), (4, "3", '6" screen')]


def test_a_quick_block_hands_over_to_the_careful_reader(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recft.data.sources._BLOCK_BYTES", 64)
    lines = (
        [f"{number},t{number}" for number in range(40)]
        + ['40,"t\n40"']
        + [f"{number},t{number}" for number in range(41, 60)]
    )
    read_back = values(put("t.csv", ("id,title\n" + "\n".join(lines)).encode()), "id", "title")
    assert [row[0] for row in read_back] == list(range(2, 62))
    assert [row[1] for row in read_back] == [str(number) for number in range(60)]
    assert read_back[40][2] == "t\n40"


def test_a_row_with_too_many_fields_is_flawed_and_a_short_one_has_empty_fields(put: Put) -> None:
    frame = read(put("t.csv", b"id,title\n1,one\n2,two,too many\n3\n4,four\n"), "id", "title")
    assert frame["row"].to_list() == [2, 3, 4, 5]
    assert frame["flaw"].to_list() == [None, tables.RAGGED, None, None]
    assert frame["title"].to_list()[2] is None


def test_bytes_that_are_no_utf8_flaw_their_own_row_alone(put: Put) -> None:
    (frame,) = batches(
        put("t.csv", b"id,title,other\n1,caf\xe9,\n2,ok,\xff\n3,\xef\xbf\xbd,\n"), ["id", "title"], "data.items"
    )
    assert frame["flaw"].to_list() == [tables.BAD_UTF8, None, None]
    assert frame["flaw_value"].to_list()[0] == "caf\\xe9"
    frame = read(put("t.jsonl", b'{"id": 1}\n{"id": "\xff"}\n'), "id")
    assert frame["flaw"].to_list() == [None, tables.BAD_UTF8]


def test_jsonl_values_become_text_and_broken_lines_are_flaws(put: Put) -> None:
    lines = [
        b'{"id": 7, "v": ["a", 1, null, 2.0]}',
        b'{"id": 7.0, "v": {"colour": "red", "n": 2}}',
        b"",
        b'{"id": "x", "v": true}',
        b"[1]",
        b'{"id": "y",',
        b'{"id": "\\ud800"}',
        b'{"v": 0.5}',
    ]
    frame = read(put("t.jsonl", b"\n".join(lines)), "id", "v")
    assert frame["row"].to_list() == [1, 2, 4, 5, 6, 7, 8]
    assert frame["id"].to_list() == ["7", "7", "x", None, None, None, None]
    assert frame["v"].to_list() == ["a, 1, 2", "colour: red, n: 2", "true", None, None, None, "0.5"]
    flaws = [tables.NOT_JSON, tables.NOT_JSON, tables.BAD_UTF8]
    assert frame["flaw"].to_list() == [None, None, None, *flaws, None]


def test_parquet_values_become_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"id": [1.0, None], "v": [0.85, float("nan")], "tags": [["a", "b"], None], "when": ["2011-11-20 14:40", None]}
    ).with_columns(pl.col("when").str.to_datetime("%Y-%m-%d %H:%M", time_zone="Asia/Shanghai"))
    frame.write_parquet(tmp_path / "t.parquet")
    (read_back,) = batches(tmp_path / "t.parquet", ["id", "v", "tags", "when"], "data.items")
    assert read_back.row(0)[:5] == (1, "1", "0.85", "a, b", "2011-11-20 06:40:00.000000")
    assert read_back["v"][1] == "NaN"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.csv", b"", ("t.csv is empty",)),
        ("t.csv", b"\n\n", ("t.csv is empty",)),
        ("t.jsonl", b"", ("t.jsonl is empty",)),
        ("t.csv", b"ident,titel\n1,2\n", ("no column 'title'. Did you mean 'titel'?", "'ident', 'titel'")),
        ("t.jsonl", b'{"ident": 1, "titel": 2}', ("no column 'title'", "'ident', 'titel'")),
        ("t.csv", b"id,title,title\n1,2,3\n", ("two columns 'title'",)),
        ("t.csv", "id,title\n".encode("utf-16"), ("UTF-16", "iconv")),
        ("t.csv.gz", b"id,title\n1,2\n", ("cannot be read", "get it anew")),
        ("t.csv.gz", gzip.compress(b"id,title\n1,2\n" * 99)[:-20], ("cannot be read", "get it anew")),
        ("t.csv.xz", b"no", ("cannot be read",)),
        ("t.csv.zst", b"no", ("cannot be read",)),
        ("t.parquet", b"no", ("no Parquet file",)),
        ("t.xlsx", b"no", ("unknown ending", "csv, tsv, jsonl")),
    ],
)
def test_what_cannot_be_read_is_told_at_once(put: Put, name: str, content: bytes, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as error:
        read(put(name, content), "id", "title")
    assert "data.items" in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_a_missing_file_names_the_nearest(put: Put, tmp_path: Path) -> None:
    put("products.csv", b"id\n1\n")
    with pytest.raises(DataError, match=r"product\.csv does not exist\. Did you mean 'products\.csv'"):
        read(tmp_path / "product.csv", "id")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path, "id")


def test_lists_and_objects_come_as_json_where_they_are_asked_for(put: Put, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"m": [{"role": "user", "content": "嗨, 👋"}], "v": ["a", "b"]},
        {"m": "[1]", "v": None},
    ]
    path = put("t.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    expected = [(1, '[{"role":"user","content":"嗨, 👋"}]', "a, b"), (2, "[1]", None)]
    (frame,) = batches(path, ["m", "v"], "data.texts", nested=["m"])
    assert frame.select("row", "m", "v").rows() == expected
    pl.DataFrame({"m": [rows[0]["m"], None], "v": [["a", "b"], None]}).write_parquet(tmp_path / "t.parquet")
    (frame,) = batches(tmp_path / "t.parquet", ["m", "v"], "data.texts", nested=["m", "v"])
    assert frame["m"].to_list() == [expected[0][1]]  # a row without any value is none
    assert frame["v"].to_list() == ['["a","b"]']


@pytest.mark.parametrize("name", ["row", "flaw", "__place"])
def test_names_of_our_own_are_refused(put: Put, name: str) -> None:
    with pytest.raises(DataError, match=f"data.items: t.csv has a column '{name}'.*rename the column"):
        read(put("t.csv", f"id,{name}\n1,2\n".encode()), "id", name)


def test_a_separator_of_ones_own(put: Put) -> None:
    path = put("t.dat", b"id|title\n1|one\n")
    assert values(path, "id", "title", separator="|") == [(2, "1", "one")]
    with pytest.raises(DataError, match="one character"):
        read(path, "id", separator="::")


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters=NOT_HERE), min_size=1),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters=NOT_HERE)),
        ).filter(lambda row: row[0].strip() != ""),
        min_size=1,
        max_size=8,
    )
)
def test_what_python_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("id", "title"), *rows])
    (folder / "t.csv").write_bytes(text.getvalue().encode())
    (folder / "t.jsonl").write_text(
        "".join(json.dumps({"id": one, "title": two}, ensure_ascii=False) + "\n" for one, two in rows),
        newline="\n",
        encoding="utf-8",
    )
    expected = [tuple(value.strip() or None for value in row) for row in rows]
    for name in ("t.csv", "t.jsonl"):
        assert read(folder / name, "id", "title").select("id", "title").rows() == expected
