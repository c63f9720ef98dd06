"""Texts with labels, replies, preferences and conversations, read and checked row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recft.data.ledger import Ledger
from recft.data.texts import Texts, read_texts
from recft.errors import DataError, RecipeError
from recft.schema import DataSettings

Read = Callable[..., tuple[Texts, Ledger]]
LABEL = {"text": ["title", "body"], "label": "y"}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The texts of a file of this content; more files by name in `files`."""

    def of(content: str | bytes, name: str = "t.csv", files: dict[str, str] | None = None, **settings: Any) -> Any:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        table = settings.pop("table", LABEL) | {"path": str(tmp_path / name)}
        for split, text in (files or {}).items():
            (tmp_path / f"{split}.csv").write_text(text, encoding="utf-8")
            table[split] = str(tmp_path / f"{split}.csv")
        data = DataSettings.model_validate({"texts": table, **settings})
        with Ledger(data.on_error, tmp_path / "quarantine.jsonl") as ledger:
            return read_texts(data, ledger), ledger

    return of


def pairs(texts: Texts) -> list[dict[str, float]]:
    """The candidates of each text by name, with their grades."""
    bounds = texts.offsets.tolist()
    return [
        {
            texts.names[item]: grade
            for item, grade in zip(texts.items[a:b].tolist(), texts.grades[a:b].tolist(), strict=True)
        }
        for a, b in pairwise(bounds)
    ]


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_labels_are_sorted_and_the_text_is_joined(read: Read) -> None:
    content = "title,body,y,lang\nGreat  thing,红色 👗,pos,zh\n,slow,neg,\nＧｒｅａｔ thing,红色 👗,neg,zh\n"
    texts, ledger = read(content, table={**LABEL, "columns": ["lang"]})
    assert texts.names == ["neg", "pos"]
    assert pairs(texts) == [{"pos": 1}, {"neg": 1}, {"neg": 1}]
    assert texts.frame["text"].to_list() == ["Great thing, 红色 👗", "slow", "Ｇｒｅａｔ thing, 红色 👗"]
    assert texts.frame["key"].to_list() == ["great thing, 红色 👗", "slow", "great thing, 红色 👗"]
    assert texts.frame["field_0"].to_list() == ["Great thing", None, "Ｇｒｅａｔ thing"]
    assert texts.frame["column:lang"].to_list() == ["zh", "", "zh"]
    assert (texts.target, texts.key, texts.given, texts.fields) == ("label", "text", (), ("title", "body"))
    assert not ledger.by_rule and len(texts) == 3


def test_files_of_their_own(read: Read) -> None:
    texts, ledger = read(
        "title,body,y\na,,pos\nb,,neg\n", files={"test": "body,title,y\nx,c,pos\n", "valid": "title,body,y\n,d,\n"}
    )
    assert texts.frame["file"].to_list() == ["train", "train", "test"]
    assert texts.frame["text"].to_list() == ["a", "b", "c, x"]
    assert texts.given == ("valid", "test")
    assert list(ledger.by_rule) == ["valid.csv: y: every row needs a label"]


@pytest.mark.parametrize(
    ("row", "value", "rule"),
    [
        (b",,pos,g", "(empty)", "every row needs text in one of its text columns"),
        ("\u200b,,pos,g".encode(), "'\\u200b'", "every row needs text in one of its text columns"),
        (b"b,, ,g", "(empty)", "every row needs a label"),
        (b"b,,pos,", "(empty)", "every row needs its group"),
        (b"caf\xe9,,pos,g", "caf", "text is UTF-8"),
        (b"b,nul\0,pos,g", "nul", "no NUL"),
        (b"b,,pos,g,more", "5 fields for 4 columns", "no more fields"),
    ],
)
def test_a_bad_row_is_told_or_set_aside(read: Read, row: bytes, value: str, rule: str) -> None:
    content = b"title,body,y,g\na,,pos,g\n" + row + b"\nc,,neg,g\n"
    _, ledger = read(content, table={**LABEL, "group": "g"})
    with pytest.raises(DataError) as error:
        ledger.settle()
    for part in ("t.csv row 3", value, rule, "data.on_error: quarantine"):
        assert part in str(error.value)
    texts, ledger = read(content, table={**LABEL, "group": "g"}, on_error="quarantine")
    ledger.settle()
    assert texts.frame["text"].to_list() == ["a", "c"] and texts.frame["key"].to_list() == ["g", "g"]


def test_rows_without_text_can_be_skipped(read: Read) -> None:
    texts, ledger = read("title,body,y\na,,pos\n,,pos\nb,,neg\n", on_missing_text="skip")
    assert len(texts) == 2 and not ledger.by_rule
    assert ledger.dropped["rows without text"] == 1


def test_one_label_no_row_and_no_table(read: Read, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.texts\.label: 'pos' is the only label \(rule: at least two labels"):
        read("title,body,y\na,,pos\nb,,pos\n")
    with pytest.raises(DataError, match=r"data\.texts: no row"):
        read("title,body,y\n")
    with pytest.raises(DataError, match=r"1 bad row"):
        read("title,body,y\na,,\n")
    with pytest.raises(DataError, match="is empty"):
        read("")
    with pytest.raises(DataError, match=r"no column 'y'"):
        read("title,body,label\n")
    with Ledger("stop", tmp_path / "q") as ledger, pytest.raises(RecipeError, match=r"data\.texts: missing"):
        read_texts(DataSettings(), ledger)


def test_replies_are_numbered_as_they_appear_and_keep_their_lines(read: Read) -> None:
    rows = [("订单？", "已发货 📦\n谢谢"), ("hours?", "9 to 5"), ("x" * 1_000_000, "已发货 📦\n谢谢")]
    texts, _ = read(jsonl(*({"q": q, "a": a} for q, a in rows)), name="t.jsonl", table={"text": ["q"], "reply": "a"})
    assert texts.names == ["已发货 📦\n谢谢", "9 to 5"]
    assert texts.items.tolist() == [0, 1, 0]
    assert len(texts.frame["text"][2]) == 1_000_000


PREFERENCE = {"text": ["q"], "chosen": "good"}


def test_preferences_of_several_columns_or_a_list(read: Read) -> None:
    columns = {**PREFERENCE, "rejected": ["bad", "worse"]}
    texts, _ = read("q,good,bad,worse\nhi,yes,no,\nho,yes,ah,no\nhu,no,ah,ah\n", table=columns)
    expected = [{"yes": 1, "no": 0}, {"yes": 1, "ah": 0, "no": 0}, {"no": 1, "ah": 0}]
    assert pairs(texts) == expected
    lists: list[dict[str, Any]] = [
        {"q": "hi", "good": "yes", "bad": ["no"]},
        {"q": "ho", "good": "yes", "bad": ["ah", " no ", ""]},
    ]
    rows = [*lists, {"q": "hu", "good": "no", "bad": "ah"}]
    table = {**PREFERENCE, "rejected": "bad"}
    texts, _ = read(jsonl(*rows), name="t.jsonl", table=table)
    assert pairs(texts) == expected
    texts, _ = read('q,good,bad\nhi,yes,"[""no"", ""[oh""]"\nho,yes,[no]\nhu,yes,[1]\n', table=table)
    assert pairs(texts) == [{"yes": 1, "no": 0, "[oh": 0}, {"yes": 1, "[no]": 0}, {"yes": 1, "[1]": 0}]


def test_lists_of_a_parquet_file(read: Read, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "嗨"}, {"role": "assistant", "content": "你好 👋"}]
    frame = pl.DataFrame({"q": ["hi"], "good": ["yes"], "bad": [["no, sir", "ah"]], "m": [talk]})
    frame.write_parquet(tmp_path / "src.parquet")
    content = (tmp_path / "src.parquet").read_bytes()
    texts, _ = read(content, name="t.parquet", table={**PREFERENCE, "rejected": "bad"})
    assert pairs(texts) == [{"yes": 1, "no, sir": 0, "ah": 0}]
    texts, _ = read(content, name="t.parquet", table={"messages": "m"})
    assert texts.frame["text"].to_list() == ['[{"role":"user","content":"嗨"}]'] and texts.names == ["你好 👋"]


@pytest.mark.parametrize(
    ("row", "column", "rule"),
    [
        ("ho,,no,", "good", "every row needs a chosen answer"),
        ("ho,yes,,", "bad, worse", "every preference needs a rejected answer"),
        ("ho,yes,[],", "bad, worse", "every preference needs a rejected answer"),
        ("ho,yes,no,yes", "good", "the chosen answer is none of the rejected ones"),
    ],
)
def test_a_bad_preference_is_told(read: Read, row: str, column: str, rule: str) -> None:
    _, ledger = read(f"q,good,bad,worse\nhi,yes,no,\n{row}\n", table={**PREFERENCE, "rejected": ["bad", "worse"]})
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert f"t.csv row 3, {column}: " in str(error.value) and rule in str(error.value)


@pytest.mark.parametrize("column", ["good", "bad"])
def test_an_answer_that_is_a_list_of_messages_is_told(read: Read, column: str) -> None:
    talk = [{"content": "yes", "role": "assistant"}]
    rows = jsonl(
        {"q": "hi", "good": '["ok"] {"role": 1}', "bad": "no"}, {"q": "hi", "good": "a", "bad": "b", column: talk}
    )
    _, ledger = read(rows, name="t.jsonl", table={**PREFERENCE, "rejected": "bad"})
    with pytest.raises(
        DataError, match=f"1 bad row(.|\n)*row 2, {column}: .*an answer is a text, not a list of messages"
    ):
        ledger.settle()


def test_neither_place_nor_number_tells_what_was_chosen(read: Read) -> None:
    rows = "".join(f"q{n},good {n},bad {n}\n" for n in range(400))
    texts, _ = read("q,good,bad\n" + rows, table={**PREFERENCE, "rejected": "bad"})
    first = texts.grades[::2]
    assert 0.4 < first.mean() < 0.6
    lower = texts.items[::2] < texts.items[1::2]
    assert 0.4 < (lower == (first == 1)).mean() < 0.6
    again, _ = read("q,good,bad\n" + rows, table={**PREFERENCE, "rejected": "bad"})
    assert again.items.tolist() == texts.items.tolist()
    other, _ = read("q,good,bad\n" + rows, table={**PREFERENCE, "rejected": "bad"}, split={"seed": 1})
    assert other.grades.tolist() != texts.grades.tolist() and pairs(other) == pairs(texts)


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": ["user", "assistant"][n % 2], "content": turn} for n, turn in enumerate(turns)]


def test_conversations_and_every_turn_of_them(read: Read) -> None:
    rows = jsonl({"m": talk("嗨", "你好 👋", "in stock?", "yes"), "shop": "a"}, {"m": talk("嗨", "hello"), "shop": "b"})
    texts, _ = read(rows, name="t.jsonl", table={"messages": "m", "columns": ["shop"]})
    assert texts.names == ["yes", "hello"] and texts.target == "messages" and texts.key == "conversation"
    assert [json.loads(text)[-1]["content"] for text in texts.frame["text"]] == ["in stock?", "嗨"]
    texts, _ = read(rows, name="t.jsonl", table={"messages": "m", "turns": "all", "columns": ["shop"]})
    assert texts.names == ["你好 👋", "yes", "hello"] and texts.items.tolist() == [0, 1, 2]
    keys = texts.frame["key"].to_list()
    assert keys[0] == keys[1] != keys[2]  # a conversation stays together, though both begin alike
    assert texts.frame["text_key"][0] == texts.frame["text_key"][2]
    assert texts.frame["column:shop"].to_list() == ["a", "a", "b"]
    texts, _ = read(rows, name="t.jsonl", table={"messages": "m", "group": "shop"})
    assert texts.frame["key"].to_list() == ["a", "b"] and texts.key == "group"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "every row needs messages"),
        ("hi", "messages are a JSON list"),
        ([{"role": "bot", "content": "hi"}], "a role is one of system, user, assistant, tool"),
        ([{"role": "user", "content": "a\ud83d"}], "text is UTF-8"),
        (talk("hi"), "a conversation has an answer of the assistant"),
        (talk("hi", " "), "every message has a text as content"),
    ],
)
def test_a_bad_conversation_is_told(read: Read, value: Any, rule: str) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in ({"m": talk("hi", "yes")}, {"m": value, "n": 1}))
    texts, ledger = read(rows, name="t.jsonl", table={"messages": "m", "columns": ["n"]})
    assert texts.names == ["yes"]
    with pytest.raises(DataError) as error:
        ledger.settle()
    assert "t.jsonl row 2" in str(error.value) and rule in str(error.value)
