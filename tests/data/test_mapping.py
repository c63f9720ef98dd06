"""Tables that do not go together are told before a file is read, all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recft.data.mapping import table_of, target_of
from recft.errors import RecipeError
from recft.schema import DataSettings, TextsTable

ITEMS = {"path": "i.csv", "id": "id", "text": ["t"]}
LOG = {"path": "l.csv", "user": "u", "item": "i", "time": "t"}
QUERIES = {"path": "q.csv", "query": "q", "item": "i"}
TEXTS = {"path": "t.csv", "text": ["t"], "label": "y"}
TRIPLES = {"path": "k.csv", "head": "h", "relation": "r", "tail": "t"}
TALKS = {"path": "t.jsonl", "messages": "m"}


def of(readable: tuple[str, ...] | None = None, **data: Any) -> str:
    return table_of(DataSettings.model_validate(data), "the-task", readable)


def test_the_one_table_that_is_mapped() -> None:
    assert of(items=ITEMS, interactions=LOG) == "interactions"
    assert of(("queries", "texts"), items=ITEMS, queries=QUERIES) == "queries"
    assert of(("queries", "texts"), texts=TEXTS) == "texts"
    assert of(texts=TALKS | {"turns": "all"}) == "texts"
    preference = {"path": "t.csv", "text": ["t"], "chosen": "a"}
    assert of(texts=preference | {"rejected": "b"}, split={"folds": 5, "fold": 4}) == "texts"
    assert of(texts=preference | {"rejected": ["b", "c"], "test": "t.csv"}, split={"by": "file"}) == "texts"


def test_what_texts_are_answered_with() -> None:
    assert target_of(TextsTable(path="t", text=("t",), reply="r")) == "reply"
    assert target_of(TextsTable(path="t", text=("t",), chosen="c", rejected="r")) == "chosen"


@pytest.mark.parametrize(
    ("data", "place", "part"),
    [
        ({}, "data", "none of interactions, queries and texts is given"),
        ({"items": ITEMS, "interactions": LOG, "queries": QUERIES}, "data", "interactions and queries are given"),
        ({"interactions": LOG}, "data.items", "is missing"),
        ({"queries": QUERIES}, "data.items", "is missing"),
        ({"items": ITEMS, "texts": TEXTS}, "data.items", "given beside data.texts"),
        ({"texts": TEXTS, "triples": TRIPLES}, "data.triples", "given beside data.texts"),
        ({"texts": TEXTS, "reviews": {"path": "r", "item": "i", "text": "t"}}, "data.reviews", "given beside"),
        ({"texts": TEXTS, "users": {"path": "u", "id": "i", "text": ["t"]}}, "data.users", "given with texts"),
        ({"items": ITEMS, "interactions": LOG, "users": {"path": "u", "id": "i"}}, "data.users", "neither text nor"),
        ({"texts": TEXTS, "labels": {"at_least": 4}}, "data.labels", "given with texts"),
        ({"items": ITEMS, "queries": QUERIES, "labels": {"negatives": 4}}, "data.labels", "given with queries"),
        (
            {"texts": TEXTS, "grades": {"path": "g", "query": "q", "item": "i", "grade": "g"}},
            "data.grades",
            "without data.queries",
        ),
        ({"items": ITEMS, "queries": {**QUERIES, "grade_map": {"E": 3}}}, "data.queries.grade_map", "without grade"),
        ({"texts": {"path": "t", "text": ["t"]}}, "data.texts", "no target is given"),
        ({"texts": {**TEXTS, "reply": "r"}}, "data.texts", "label and reply are given"),
        ({"texts": {**TEXTS, "messages": "m"}}, "data.texts", "label and messages are given"),
        ({"texts": {"path": "t", "label": "y"}}, "data.texts", "neither text nor messages is given"),
        ({"texts": {**TALKS, "text": ["t"]}}, "data.texts", "text and messages are given"),
        ({"texts": {"path": "t", "text": ["t"], "chosen": "c"}}, "data.texts.rejected", "is missing"),
        ({"texts": {**TEXTS, "rejected": "c"}}, "data.texts.chosen", "is missing"),
        ({"texts": {**TEXTS, "turns": "all"}}, "data.texts.turns", "turns are of messages"),
        ({"texts": TEXTS, "split": {"by": "time"}}, "data.split.by", "'time'"),
        ({"texts": TEXTS, "split": {"by": "file"}}, "data.split.by", "a split has a file of its own"),
        ({"texts": {**TEXTS, "test": "x"}, "split": {"by": "query"}}, "data.split.by", "beside data.texts.test"),
        ({"texts": {**TEXTS, "valid": "x"}, "split": {"folds": 5}}, "data.split.folds", "given files are not cut"),
        ({"texts": TEXTS, "split": {"folds": 5, "fold": 5}}, "data.split.fold", "fold 5 of 5"),
    ],
)
def test_what_does_not_go_together_is_refused(data: dict[str, Any], place: str, part: str) -> None:
    with pytest.raises(RecipeError) as error:
        of(**data)
    line = next(line for line in str(error.value).splitlines() if line.startswith(f"{place}: "))
    assert part in line and "(rule: " in line and "; fix: " in line


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        of(("queries",), texts={"path": "t"}, items=ITEMS, labels={"negatives": 2})
    for part in ("task the-task reads queries", "data.items", "no target", "neither text nor messages", "data.labels"):
        assert part in str(error.value)


def test_every_file_is_found_and_made_absolute() -> None:
    users = {"path": "/there/u.csv", "id": "i", "text": ["t"]}
    data = DataSettings.model_validate({"items": ITEMS, "texts": {**TEXTS, "valid": "v.csv"}, "users": users})
    expected = {"items.path": "i.csv", "texts.path": "t.csv", "texts.valid": "v.csv", "users.path": "/there/u.csv"}
    assert data.files() == expected
    moved = data.under(Path("/shop"))
    assert set(moved.files().values()) == {"/shop/i.csv", "/shop/t.csv", "/shop/v.csv", "/there/u.csv"}
    assert data.files() == expected and moved.split == data.split
