"""Triples: what is told of an item is what a plain search finds, nearest first, within the budget."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recft.data import triples as module
from recft.data.items import Catalogue
from recft.data.ledger import Ledger
from recft.data.text import words
from recft.data.triples import with_triples
from recft.errors import DataError
from recft.schema import TriplesTable

KEYS = {"head": "h", "relation": "r", "tail": "t"}
Told = Callable[..., tuple[list[str], dict[str, Any], Ledger]]


def catalogue_of(ids: list[str]) -> Catalogue:
    text = pl.Series([f"item {name}" for name in ids], dtype=pl.String)
    frame = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String), "text": text, "title": text, "field_0": text})
    return Catalogue(frame, ("title",), frame["id"][:0])


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """What the rows of a triples table, as CSV lines, add to the items."""

    def of(rows: str | bytes, ids: str = "a b c", on_error: Any = "stop", **table: Any) -> Any:
        path = tmp_path / "kg.csv"
        path.write_bytes(b"h,r,t\n" + (rows if isinstance(rows, bytes) else rows.encode()))
        with Ledger(on_error, tmp_path / "quarantine.jsonl") as ledger:
            made, card = with_triples(catalogue_of(ids.split()), TriplesTable(path=str(path), **KEYS, **table), ledger)
        assert made.fields == ("title", "data.triples")
        told_ = made.frame["field_1"].to_list()
        expected = [
            f"item {name}" + (f", {text}" if text else "") for name, text in zip(ids.split(), told_, strict=True)
        ]
        assert made.frame["text"].to_list() == expected
        return told_, card, ledger

    return of


def test_own_triples_in_the_file_s_order(told: Told) -> None:
    rows = "b,颜色,红色 👗\na,made by,Acme\na,type,chair\nz,x,y\na,made by,Acme\n"
    texts, card, ledger = told(rows)
    assert texts == ["made by: Acme; type: chair", "颜色: 红色 👗", None]
    assert card["triples"] == 4 and card["of_unknown_heads"] == 1 and card["items_with"] == 2
    assert ledger.dropped["exact duplicates of triples"] == 1


def test_hops_follow_tails_that_are_heads_and_circles_end(told: Told) -> None:
    rows = "Acme,in,Oslo\na,by,Acme\nOslo,of,Norway\nNorway,in,Europe\nAcme,makes,a\na,by,a\nOslo,by,Acme\nx,y,z\n"
    assert told(rows, hops=1)[0][0] == "by: Acme"
    assert told(rows, hops=2)[0][0] == "by: Acme; in: Oslo"
    texts, card, _ = told(rows, hops=3)
    assert texts[0] == "by: Acme; in: Oslo; of: Norway"
    assert card["of_unknown_heads"] == 2  # Norway's, three hops away, and x's
    assert [told(rows, hops=hops)[1]["of_unknown_heads"] for hops in (1, 2)] == [6, 4]


def test_whole_triples_up_to_the_budget(told: Told) -> None:
    rows = "a,made by,Acme Corp\na,颜色,红色连衣裙\na,x,y\nb,❤,👗\nb,❤,👠\n"
    # made by Acme Corp is 4 words; 颜色 is one, 红色连衣裙 four.
    assert told(rows, max_words=3)[0][:1] == [None]
    assert told(rows, max_words=8)[0][0] == "made by: Acme Corp"
    texts, card, _ = told(rows, max_words=9)
    assert texts[0] == "made by: Acme Corp; 颜色: 红色连衣裙"
    assert card["items_cut_at_max_words"] == 1
    assert told(rows, max_words=11)[1]["items_cut_at_max_words"] == 0
    assert told(rows, max_words=1)[0][1] == "❤: 👗"  # symbols are no words, and still they count


@pytest.mark.parametrize(
    ("row", "value", "rule"),
    [
        (b",r,t", "(empty)", "every triple needs a head"),
        (b"a, ,t", "(empty)", "every triple needs a relation"),
        (b"a,r,", "(empty)", "every triple needs a tail"),
        (b"a,r,caf\xe9", "caf", "text is UTF-8"),
        (b"a,r,t,u", "4 fields for 3 columns", "no more fields"),
        (b"a,r,nul\0", "nul", "no NUL"),
    ],
)
def test_a_bad_triple_is_told_or_set_aside(told: Told, row: bytes, value: str, rule: str) -> None:
    _, _, ledger = told(b"b,r,t\n" + row + b"\n")
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert "kg.csv row 3" in str(error.value) and value in str(error.value) and rule in str(error.value)
    texts, _, ledger = told(b"b,r,t\n" + row + b"\n", on_error="quarantine")
    ledger.settle()
    assert texts == [None, "r: t", None]


def test_no_triple_and_one_of_a_million_characters(told: Told, tmp_path: Path) -> None:
    texts, card, _ = told("")
    assert texts == [None, None, None] and card["triples"] == 0
    texts, _, _ = told(f"a,r,{'x' * 1_000_000}\nb,r,{'字' * 1_000_000}\n")
    assert texts[0] is not None and len(texts[0]) == 1_000_003 and texts[1] is None
    path = tmp_path / "none.csv.gz"
    path.write_bytes(gzip.compress(b""))
    with Ledger("stop", tmp_path / "q") as ledger, pytest.raises(DataError, match=r"data\.triples.*is empty"):
        with_triples(catalogue_of(["a"]), TriplesTable(path=str(path), **KEYS), ledger)


names = st.sampled_from("abcdefg")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(names, st.sampled_from("rs"), names), max_size=30),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_equal_to_a_plain_search(
    told: Told, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str, str]], hops: int, budget: int, chunk: int
) -> None:
    monkeypatch.setattr(module, "_FACTS_A_CHUNK", chunk)
    texts, card, _ = told("".join(",".join(row) + "\n" for row in rows), hops=hops, max_words=budget)
    for item, text in zip("abc", texts, strict=True):
        facts: list[str] = []
        level, met, full = [item], {item}, False
        for _ in range(hops):
            following = []
            for here in level:
                for head, relation, tail in dict.fromkeys(rows):
                    fact = f"{relation}: {tail}"
                    if head != here or tail == item or fact in facts or full:
                        continue
                    full = sum(len(words(known)) for known in [*facts, fact]) > budget
                    if full:
                        continue
                    facts.append(fact)
                    if tail not in met:
                        met.add(tail)
                        following.append(tail)
            level = following
        assert (text or "") == "; ".join(facts)
    reach = set("abc")
    for _ in range(hops - 1):
        reach |= {tail for head, _, tail in rows if head in reach}
    assert card["of_unknown_heads"] == sum(head not in reach for head, _, _ in set(rows))
