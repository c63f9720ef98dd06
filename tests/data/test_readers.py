"""The rules of items, interactions and judgements, row by row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recft.data.interactions import read_interactions
from recft.data.items import Catalogue, read_items
from recft.data.judgements import Judgements, read_judgements
from recft.data.ledger import Ledger
from recft.data.store import Log
from recft.errors import DataError
from recft.run import silent
from recft.schema import DataSettings, InteractionsTable


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    def to(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return to


Put = Callable[[str, str | bytes], str]
ITEMS = "id,title,brand\na,Apple,x\nb,Bread,\nc,,y\n"
LOG = {"user": "u", "item": "i", "time": "t"}
SEARCH = {"query": "q", "item": "i", "grade": "g"}


def items_of(put: Put, content: str | bytes = ITEMS, on_error: str = "stop", **data: Any) -> tuple[Catalogue, Ledger]:
    settings = DataSettings.model_validate(
        {
            "items": {"path": put("items.csv", content), "id": "id", "text": ["brand", "title"]},
            "on_error": on_error,
            **data,
        }
    )
    with Ledger(settings.on_error, Path(put("q", "")).parent / "quarantine.jsonl") as ledger:
        return read_items(settings, ledger), ledger


def log_of(put: Put, rows: str, on_error: str = "stop", **table: Any) -> tuple[Log, list[str], Ledger]:
    catalogue, _ = items_of(put)
    columns = "u,i,t" + (",r" if "rating" in table else "") + (",e" if "event" in table else "")
    path = put("log.csv", f"{columns}\n{rows}")
    settings = DataSettings.model_validate(
        {
            "items": {"path": path, "id": "id", "text": ["title"]},
            "interactions": {"path": path, **LOG, **table},
            "on_error": on_error,
        }
    )
    assert settings.interactions is not None
    with Ledger(settings.on_error, Path(path).parent / "quarantine.jsonl") as ledger:
        log, users, _ = read_interactions(settings.interactions, catalogue, ledger, silent)
    return log, users, ledger


def judged(put: Put, rows: str, on_error: str = "stop", **data: Any) -> tuple[Judgements, Ledger]:
    catalogue, _ = items_of(put)
    path = put("queries.csv", f"q,i,g\n{rows}")
    table = {"path": path, **SEARCH, **data.pop("queries", {})}
    settings = DataSettings.model_validate(
        {"items": {"path": path, "id": "q", "text": ["q"]}, "queries": table, "on_error": on_error, **data}
    )
    with Ledger(settings.on_error, Path(path).parent / "quarantine.jsonl") as ledger:
        return read_judgements(settings, catalogue, ledger), ledger


def test_item_text_joins_the_columns_there_are(put: Put) -> None:
    catalogue, ledger = items_of(put)
    assert catalogue.frame["text"].to_list() == ["x, Apple", "Bread", "y"]
    assert catalogue.frame["title"].to_list() == ["x", "Bread", "y"]
    assert not ledger.by_rule
    titled, _ = items_of(
        put,
        items={"path": put("items.csv", ITEMS), "id": "id", "text": ["brand"], "title": "title"},
        on_missing_text="skip",
    )
    assert titled.frame["title"].to_list() == ["Apple", "y"]
    assert titled.skipped.to_list() == ["b"]


@pytest.mark.parametrize(
    ("content", "row", "value", "rule"),
    [
        ("id,title,brand\n,Apple,x\n", 2, "(empty)", "every item needs an id"),
        ("id,title,brand\na,A,x\na,B,x\n", 3, "'a'", "an id stands once"),
        ("id,title,brand\na,A,x\nb, ,\n", 3, "(empty)", "every item needs text"),
        (b"id,title,brand\na,A,x\nb,caf\xe9,\n", 3, "caf\\\\xe9", "text is UTF-8"),
        ("id,title,brand\na,A,x\nb,nul\0,\n", 3, "nul\\x00", "no NUL"),
        ("id,title,brand\na,A,x\nb,B,,more\n", 3, "4 fields for 3 columns", "no more fields than the header"),
    ],
)
def test_a_bad_item_is_told_with_row_value_and_rule(
    put: Put, content: str | bytes, row: int, value: str, rule: str
) -> None:
    if content.count("A,x" if isinstance(content, str) else b"A,x"):  # type: ignore[arg-type]
        _, ledger = items_of(put, content)
        with pytest.raises(DataError) as error:
            ledger.settle()
    else:
        with pytest.raises(DataError) as error:
            items_of(put, content)
    for part in (f"items.csv row {row}", value, rule, "data.on_error: quarantine", "1 × items.csv"):
        assert part in str(error.value)


def test_exact_repeats_of_items_are_dropped_and_counted(put: Put) -> None:
    catalogue, ledger = items_of(put, "id,title,brand\na,A,x\nb,B,\na,A,x\n")
    assert catalogue.frame["id"].to_list() == ["a", "b"]
    assert ledger.dropped["exact duplicates of items"] == 1
    assert not ledger.by_rule


def test_one_mistake_is_told_once(put: Put) -> None:
    # The item is bad; its events are not, as long as the run stops anyway.
    catalogue, ledger = items_of(put, "id,title,brand\na,A,x\nb,,\n")
    assert ledger.by_rule.total() == 1
    assert dict(catalogue.numbers.rows()) == {"a": 0, "b": -1}
    catalogue, _ = items_of(put, "id,title,brand\na,A,x\nb,,\n", on_error="quarantine")
    assert dict(catalogue.numbers.rows()) == {"a": 0}


def test_the_log_is_sorted_numbered_and_freed_of_exact_duplicates(put: Put) -> None:
    log, users, ledger = log_of(put, "v,b,200\nu,a,300\nv,a,100\nu,a,300\nu,b,300\n")
    assert users == ["v", "u"]
    assert [log.users.tolist(), log.items.tolist(), log.times.tolist()] == [
        [0, 0, 1, 1],
        [0, 1, 0, 1],
        [100, 200, 300, 300],
    ]
    assert ledger.dropped["exact duplicates of events"] == 1
    assert log.ratings is None
    assert [a.dtype.name for a in (log.users, log.items, log.times)] == ["int32", "int32", "int64"]


FUTURE = int(time.time()) + 10 * 86_400


@pytest.mark.parametrize(
    ("row", "column", "value", "rule"),
    [
        (",a,5,3", "u", "(empty)", "every event needs a user"),
        ("u,,5,3", "i", "(empty)", "every event needs an item"),
        ("u,zz,5,3", "i", "'zz'", "an item of data.items"),
        ("u,a,soon,3", "t", "'soon'", "a time (auto)"),
        ("u,a,nan,3", "t", "'nan'", "a time (auto)"),
        ("u,a,,3", "t", "(empty)", "a time (auto)"),
        (f"u,a,{FUTURE},3", "t", f"'{FUTURE}'", "not in the future"),
        ("u,a,2,3", "t", "'2'", "a time within 1970-01-01T00:00:05 to 2020-01-01"),
        ("u,a,5,good", "r", "'good'", "a finite number"),
        ("u,a,5,NaN", "r", "'NaN'", "a finite number"),
        ("u,a,5,inf", "r", "'inf'", "a finite number"),
        ("u,a,5,", "r", "(empty)", "a finite number"),
        ("u,a,5,6", "r", "'6'", "a rating within 0.5 to 5"),
        ("w,a,7,4", "r", "4 after 2, user w, item a", "one rating for the same user, item and time"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "quarantine"])
def test_a_bad_event_is_told_or_set_aside(
    put: Put, tmp_path: Path, row: str, column: str, value: str, rule: str, on_error: str
) -> None:
    table = {"rating": "r", "rating_range": (0.5, 5), "time_range": ("1970-01-01T00:00:05", "2020-01-01")}
    log, _, ledger = log_of(put, f"w,a,7,2\n{row}\nw,b,8,2\n", on_error=on_error, **table)
    assert log.items.tolist() == [0, 1]
    if on_error == "stop":
        with pytest.raises(DataError) as error:
            ledger.settle()
        for part in ("log.csv row 3", column, value, rule):
            assert part in str(error.value)
        assert not (tmp_path / "quarantine.jsonl").exists()
    else:
        ledger.settle()
        entry = json.loads((tmp_path / "quarantine.jsonl").read_text())
        assert (entry["file"], entry["row"], entry["column"]) == ("log.csv", 3, column)
        assert value in entry["value"] and rule in entry["rule"]


def test_the_first_twenty_and_the_counts(put: Put, tmp_path: Path) -> None:
    rows = "".join(f"u,x{number},5\n" for number in range(30)) + "u,a,soon\nu,a,5\n"
    _, _, ledger = log_of(put, rows)
    with pytest.raises(DataError) as error:
        ledger.settle()
    text = str(error.value)
    assert text.count("log.csv row ") == 20
    assert all(
        part in text
        for part in ("31 bad rows", "… 11 more", "30 × log.csv: i: an item of data.items", "1 × log.csv: t")
    )
    _, _, ledger = log_of(put, rows, on_error="quarantine")
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 31


def test_events_of_other_kinds_are_dropped_and_counted(put: Put) -> None:
    log, _, ledger = log_of(put, "u,a,5,buy\nu,b,6,view\nu,zz,7,view\n", event="e", keep_events=("buy",))
    assert log.items.tolist() == [0]
    assert ledger.dropped["events of other kinds"] == 2
    assert not ledger.by_rule


def test_judgements_are_grouped_by_normalised_query(put: Put) -> None:
    judgements, ledger = judged(put, "Red  Chair,a,3\ndesk,b,1\nｒｅｄ chair,b,0\n")
    assert judgements.keys == ["red chair", "desk"]
    assert judgements.queries == ["Red Chair", "desk"]
    assert judgements.offsets.tolist() == [0, 2, 3]
    assert judgements.items.tolist() == [0, 1, 1]
    assert judgements.grades.tolist() == [3, 0, 1]
    assert not ledger.by_rule


def test_repeated_judgements_keep_the_first_or_stop(put: Put) -> None:
    rows = "red,a,3\nred,a,3\nRED,a,1\n"
    judgements, ledger = judged(put, rows)
    assert judgements.grades.tolist() == [3]
    assert ledger.dropped["exact duplicates of judgements"] == 1
    assert ledger.dropped["later judgements of the same query and item"] == 1
    _, ledger = judged(put, rows, on_duplicate="stop")
    with pytest.raises(DataError, match=r"queries\.csv row 4.*one grade for the same query and item"):
        ledger.settle()


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (",a,1", "every query needs text"),
        ("\u200b,a,1", "every query needs text"),
        ("red,,1", "every judgement needs an item"),
        ("red,zz,1", "an item of data.items"),
        ("red,a,", "a finite number"),
        ("red,a,nan", "a finite number"),
        ("red,a,-1", "a grade of 0 or more"),
    ],
)
def test_a_bad_judgement_is_told(put: Put, row: str, rule: str) -> None:
    _, ledger = judged(put, f"desk,b,1\n{row}\n")
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert "queries.csv row 3" in str(error.value) and rule in str(error.value)


def test_grades_within_a_declared_range(put: Put) -> None:
    _, ledger = judged(put, "desk,b,3\nred,a,4\n", queries={"grade_range": (0, 3)})
    with pytest.raises(DataError, match=r"row 3, g: '4' \(rule: a grade within 0 to 3\)"):
        ledger.settle()


def test_grades_written_as_words(put: Put) -> None:
    words = {"grade_map": {"exact": 3, "substitute": 2, "不相关": 0}}
    judgements, ledger = judged(put, "red,a,exact\nred,b,不相关\ndesk,b,substitute\n", queries=words)
    assert judgements.grades.tolist() == [3, 0, 2]
    assert not ledger.by_rule
    _, ledger = judged(put, "red,a,exact\nred,b,exat\ndesk,b,9\nlamp,a,\n", queries=words)
    with pytest.raises(DataError) as error:
        ledger.settle()
    for part in (
        "queries.csv row 3, g: \"exat. Did you mean 'exact'?\" (rule: a word of grade_map: exact, substitute, 不相关)",
        "queries.csv row 4, g: '9.'",
        "queries.csv row 5, g: (empty)",
        "3 × queries.csv: g: a word of grade_map",
    ):
        assert part in str(error.value)


def test_grade_words_of_two_tables_and_their_range(put: Put) -> None:
    catalogue, _ = items_of(put)
    settings = {
        "queries": {
            "path": put("q.csv", "n,text,lang\n1,red,en\n2,椅子,zh\n"),
            "id": "n",
            "query": "text",
            "columns": ["lang"],
        },
        "grades": {
            "path": put("g.csv", "n,item,g\n2,a,E\n1,b,I\n1,a,X\n"),
            "query": "n",
            "item": "item",
            "grade": "g",
            "grade_map": {"E": 3, "I": 0, "X": 9},
            "grade_range": (0, 3),
        },
    }
    with Ledger("quarantine", Path(put("q", "")).parent / "quarantine.jsonl") as ledger:
        judgements = read_judgements(DataSettings.model_validate(settings), catalogue, ledger)
    assert (judgements.keys, judgements.grades.tolist()) == (["椅子", "red"], [3, 0])
    assert judgements.columns == {"lang": ["zh", "en"]}
    assert list(ledger.by_rule) == ["g.csv: g: a grade within 0 to 3"]


def test_columns_of_judgements_are_of_a_query_s_first_row(put: Put) -> None:
    columns = {"columns": ["g", "i"]}
    judgements, _ = judged(put, "red,a,3\nred,b,1\ndesk,b,\nlamp,b,0\n", queries=columns, on_error="quarantine")
    assert judgements.columns == {"g": ["3", "0"], "i": ["a", "b"]}


def test_a_table_s_own_names_do_not_clash_with_ours(put: Put) -> None:
    catalogue, _ = items_of(put)
    path = put("queries.csv", "value,__item,moment\nred,a,3\ndesk,b,0\n")
    table = {"path": path, "query": "value", "item": "__item", "grade": "moment"}
    with Ledger("stop", Path(path).parent / "quarantine.jsonl") as ledger, pytest.raises(DataError, match="__item"):
        read_judgements(DataSettings.model_validate({"queries": table}), catalogue, ledger)
    path = put("queries.csv", "value,item_number,moment\nred,a,3\ndesk,b,0\n")
    table = {"path": path, "query": "value", "item": "item_number", "grade": "moment"}
    with Ledger("stop", Path(path).parent / "quarantine.jsonl") as ledger:
        judgements = read_judgements(DataSettings.model_validate({"queries": table}), catalogue, ledger)
    assert (judgements.queries, judgements.items.tolist(), judgements.grades.tolist()) == (
        ["red", "desk"],
        [0, 1],
        [3, 0],
    )


def test_columns_kept_of_events(put: Put) -> None:
    catalogue, _ = items_of(put)
    path = put("log.csv", "u,i,t,channel,country\nv,b,200,app,\nu,a,300,网页,de\nv,a,100,web,fr\nu,a,300,网页,de\n")
    table = InteractionsTable(path=path, user="u", item="i", time="t", columns=("channel", "country"))
    with Ledger("stop", Path(path).parent / "quarantine.jsonl") as ledger:
        log, users, kept = read_interactions(table, catalogue, ledger, silent)
    assert users == ["v", "u"] and log.times.tolist() == [100, 200, 300]
    told = {name: [column.values[code] for code in column.codes.tolist()] for name, column in kept.items()}
    assert told == {"channel": ["web", "app", "网页"], "country": ["fr", "", "de"]}


def test_attributes_are_told_with_their_names_and_columns_are_kept(put: Put) -> None:
    table = {"id": "id", "text": ["title"], "attributes": ["colour", "brand {x}"], "columns": ["brand {x}", "title"]}
    content = "id,title,colour,brand {x}\na,Apple,red  green,ＡＣＭＥ\nb,面包,,\nc,,,oak\n"
    catalogue, ledger = items_of(put, content, items={**table, "path": put("items.csv", content)})
    assert catalogue.frame["text"].to_list() == ["Apple, colour: red green, brand {x}: ＡＣＭＥ", "面包"]
    assert catalogue.frame["column:brand {x}"].to_list() == ["ＡＣＭＥ", ""]
    assert catalogue.frame["column:title"].to_list() == ["Apple", "面包"]
    assert catalogue.fields == ("title", "colour", "brand {x}")
    # Attributes alone are no text: what an item is comes from its text columns.
    assert list(ledger.by_rule) == ["items.csv: title: every item needs text in one of its text columns"]
    more = catalogue.with_field("more", pl.Series([None, "fresh"], dtype=pl.String))
    assert more.frame["text"].to_list()[1] == "面包, fresh" and more.fields[-1] == "more"


def test_queries_and_grades_in_two_tables(put: Put) -> None:
    catalogue, _ = items_of(put)
    settings = {
        "items": {"path": "x", "id": "x", "text": ["x"]},
        "queries": {
            "path": put("queries.csv", "query,text\n1,red\n2,desk\n3,lamp\n3,lamp\n"),
            "id": "query",
            "query": "text",
        },
        "grades": {
            "path": put("grades.tsv", "query\titem\tg\n2\ta\t1\n1\tb\t3\n9\ta\t1\n"),
            "query": "query",
            "item": "item",
            "grade": "g",
        },
    }
    with Ledger("quarantine", Path(put("q", "")).parent / "quarantine.jsonl") as ledger:
        judgements = read_judgements(DataSettings.model_validate(settings), catalogue, ledger)
    assert judgements.keys == ["desk", "red"]
    assert list(ledger.by_rule) == ["grades.tsv: query: a query of data.queries"]
    assert ledger.dropped["queries without a judgement"] == 1
    assert ledger.dropped["exact duplicates of queries"] == 1
