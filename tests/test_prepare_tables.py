"""`prepare` of texts, and of items and users that other tables say more about."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recft.data.store import SPLITS, Store
from recft.errors import DataError, RecipeError
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.schema import DataSettings, MethodSettings, ModelSettings, TaskSettings, TuneSettings

Put = Callable[[str, str], str]
Make = Callable[..., Recipe]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def to(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        return str(tmp_path / name)

    return to


@pytest.fixture
def make(tiny_bert: Path) -> Make:
    """A recipe of these data settings; its task is none of recft's own, so that any table will do."""

    def of(data: Mapping[str, Any], task: str = "of-the-test", max_tokens: int = 16) -> Recipe:
        return Recipe(
            name="test",
            task=TaskSettings(name=task),
            data=DataSettings.model_validate(data),
            method=MethodSettings(name="lora"),
            model=ModelSettings(base=str(tiny_bert)),
            tune=TuneSettings(max_tokens=max_tokens),
        )

    return of


@pytest.fixture
def reviews(put: Put) -> dict[str, Any]:
    """Sentiment of 60 texts in two languages; two of them disagree."""
    rows = [
        f"{'很好' if n % 2 else 'bad'} {n % 58} 👍,{'Pos' if n % 2 else 'neg'},{'zh' if n % 2 else ''}\n"
        for n in range(58)
    ]
    rows += ["bad 0 👍,Pos,\n", f"{'long ' * 40},neg,\n"]
    table = {
        "path": put("texts.csv", "text,y,lang\n" + "".join(rows)),
        "text": ["text"],
        "label": "y",
        "columns": ["lang"],
    }
    return {"texts": table, "split": {"valid": 0.2, "test": 0.2}}


def test_labels_from_file_to_store(make: Make, reviews: dict[str, Any], tmp_path: Path) -> None:
    store = prepare(make(reviews), tmp_path / "out")
    assert (store.table, store.item_ids, store.item_texts, store.item_titles) == ("texts", *[["Pos", "neg"]] * 3)
    assert store.log is None and store.user_ids == [] and store.user_texts == []
    names = {str(file.relative_to(store.folder)) for file in store.folder.rglob("*") if file.is_file()}
    assert names == {"items.parquet", "card.json", *(f"records/{split}.parquet" for split in SPLITS)}
    total = 0
    for split in SPLITS:
        records = store.records(split)
        assert records.queries is not None and set(records.grades.tolist()) == {1}
        for query, item, lang in zip(records.queries, records.items.tolist(), records.columns["lang"], strict=True):
            assert lang == ("zh" if "很好" in query else "")
            assert store.item_ids[item] == ("Pos" if "很好" in query else "neg") or query == "bad 0 👍"
        total += len(records)
        assert sum(by[split] for by in store.card["texts"]["by_label"].values()) == len(records)
    assert total == 60
    card = store.card
    assert card["counts"] == {"texts": 60, "different_texts": 59, "groups": 59, "labels": 2}
    assert card["texts"]["conflicts"] == {"texts_with_several_labels": 1, "rows": 2}
    assert "in_two_splits" not in card["texts"] and card["texts"]["key"] == "text"
    assert card["lengths"]["columns"] == {"text": {"filled": 60, "rows_losing_tokens": 1}}
    assert card["lengths"]["texts"]["rows_losing_tokens"] == 1 and card["lengths"]["labels"]["texts"] == 2
    assert set(card["split"]["train"]) == {"records", "pairs", "positives", "cold_item_share"}
    assert prepare(make(reviews), tmp_path / "out").card == card


def test_given_files_and_what_they_share(make: Make, reviews: dict[str, Any], tmp_path: Path, put: Put) -> None:
    table = {**reviews["texts"], "test": put("dev.csv", "text,y,lang\n很好 1 👍,Pos,zh\nbad 99,NEG,\nbad 4 👍,neg,\n")}
    with pytest.raises(DataError, match=r"data\.texts\.label: test has 'NEG' \(1\), training has not"):
        prepare(make({**reviews, "texts": table}), tmp_path / "out")
    put("dev.csv", "text,y,lang\n很好 1 👍,Pos,zh\nbad 99,neg,\nbad 4 👍,neg,\n")
    store = prepare(make({**reviews, "texts": table}), tmp_path / "out")
    assert store.card["split"]["by"] == "file" and store.card["split"]["given"] == ["test"]
    assert len(store.records("test")) == 3 and len(store.records("valid")) == 12
    shared = store.card["texts"]["in_two_splits"]
    assert sum(part["texts"] for part in shared.values()) == 2
    assert set(store.card["origin"]["files"]) == {"texts", "texts.test"}
    Path(table["test"]).unlink()
    with pytest.raises(DataError, match=r"data\.texts\.test: .*dev\.csv does not exist"):
        prepare(make({**reviews, "texts": table}), tmp_path / "out")


def test_labels_that_differ_only_in_how_they_are_written(make: Make, reviews: dict[str, Any], tmp_path: Path) -> None:
    path = Path(reviews["texts"]["path"])
    path.write_text(path.read_text() + "a,ＰＯＳ,\nb,ＰＯＳ,\n", encoding="utf-8")
    store = prepare(make(reviews), tmp_path / "out")
    assert store.card["texts"]["labels_written_differently"] == [["Pos", "ＰＯＳ"]]


def test_preferences_and_conversations(make: Make, put: Put, tmp_path: Path) -> None:
    rows = [{"q": f"问 {n}", "good": f"yes {n}\nsir", "bad": [f"no {n}", "never"]} for n in range(40)]
    path = put("p.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    table = {"path": path, "text": ["q"], "chosen": "good", "rejected": "bad"}
    store = prepare(make({"texts": table}), tmp_path / "preferences")
    assert len(store.item_ids) == 81 and store.item_ids[80] == "r80"
    test = store.records("test")
    assert len(test) == 4 and test.offsets.tolist() == [0, 3, 6, 9, 12] and test.grades.sum() == 4
    assert test.queries is not None
    for record, query in enumerate(test.queries):
        pairs = slice(3 * record, 3 * record + 3)
        number = query.split()[1]
        by_grade = dict(zip(test.grades[pairs].tolist(), test.items[pairs].tolist(), strict=False))
        assert store.item_texts[by_grade[1.0]] == f"yes {number}\nsir"
        assert store.item_titles[by_grade[1.0]] == f"yes {number} sir"
    assert store.card["texts"]["candidates_a_text"] == {"3": 40}
    assert store.card["counts"]["replies"] == 81 and "together" in store.card["lengths"]
    talks = [[{"role": "user", "content": f"hi {n}"}, {"role": "assistant", "content": "hello"}] * 2 for n in range(30)]
    path = put("m.jsonl", "".join(json.dumps({"m": talk}) + "\n" for talk in talks))
    store = prepare(make({"texts": {"path": path, "messages": "m", "turns": "all"}}), tmp_path / "talks")
    assert store.item_texts == ["hello"] and store.card["counts"]["texts"] == 60
    keys = [set(store.records(split).keys) for split in SPLITS]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and sum(map(len, keys)) == 30
    queries = store.records("train").queries
    assert queries is not None and json.loads(queries[0])[-1]["role"] == "user"


def test_bad_texts_are_told_and_nothing_is_written(make: Make, reviews: dict[str, Any], tmp_path: Path) -> None:
    path = Path(reviews["texts"]["path"])
    path.write_text(path.read_text() + "a,,\n,neg,\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        prepare(make(reviews), tmp_path / "out")
    for part in ("2 bad rows", "texts.csv row 62, y: (empty) (rule: every row needs a label)", "texts.csv row 63"):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()
    store = prepare(make({**reviews, "on_error": "quarantine"}), tmp_path / "out")
    assert store.card["quarantined"]["rows"] == 2 and store.card["counts"]["texts"] == 60


def test_a_real_task_s_tables_are_asked_for(make: Make, reviews: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.texts: task next-item reads interactions"):
        prepare(make(reviews, task="next-item"), tmp_path / "out")


@pytest.fixture
def rich_shop(put: Put) -> dict[str, Any]:
    """A shop whose items and users other tables say more about."""
    items = "".join(f"i{n},Item {n},{'ＡＣＭＥ' if n % 2 else ''},{'red' if n < 5 else ''}\n" for n in range(12))
    days = [(user, day) for user in range(8) for day in range(1, 25)]
    log = "".join(f"u{u},i{(u + d * d) % 12},2024-01-{d:02d},{'app' if d % 2 else ''}\n" for u, d in days)
    opinions = "".join(f"i{n},opinion {n} day {day},2024-01-{day:02d}\n" for n in range(12) for day in (2, 9, 28))
    people = "".join(f"u{u},{20 + u},{'北京' if u % 2 else 'Rome'}\n" for u in range(1, 10))
    return {
        "items": {
            "path": put("items.csv", "id,title,brand,colour\n" + items),
            "id": "id",
            "text": ["title"],
            "attributes": ["colour"],
            "columns": ["brand"],
        },
        "interactions": {
            "path": put("log.csv", "u,i,t,channel\n" + log),
            "user": "u",
            "item": "i",
            "time": "t",
            "columns": ["channel"],
        },
        "triples": {
            "path": put("kg.csv", "h,r,t\ni0,made by,Acme\nAcme,in,Oslo\nghost,in,Rome\n"),
            "head": "h",
            "relation": "r",
            "tail": "t",
            "hops": 2,
        },
        "reviews": {"path": put("rev.csv", "i,x,t\n" + opinions), "item": "i", "text": "x", "time": "t", "per_item": 1},
        "users": {
            "path": put("users.csv", "id,age,city\n" + people),
            "id": "id",
            "text": ["age", "city"],
            "columns": ["city"],
        },
    }


def test_what_other_tables_say_becomes_text(make: Make, rich_shop: dict[str, Any], tmp_path: Path) -> None:
    store = prepare(make(rich_shop), tmp_path / "out")
    assert store.item_texts[0] == "Item 0, colour: red, made by: Acme; in: Oslo, opinion 0 day 9"
    assert store.item_texts[7] == "Item 7, opinion 7 day 9"
    assert store.item_titles[0] == "Item 0"
    assert store.item_columns == {"brand": ["", "ＡＣＭＥ"] * 6}
    assert store.user_ids[:2] == ["u0", "u1"]
    assert store.user_texts[:3] == ["", "21, 北京", "22, Rome"]
    assert store.user_columns["city"][:3] == ["", "北京", "Rome"]
    card = store.card
    assert card["triples"]["of_unknown_heads"] == 1 and card["triples"]["items_with"] == 1
    assert card["reviews"]["after_training"] == 12 and card["reviews"]["until"] == card["split"]["valid_cut"]
    assert card["users"] == {
        "profiles": 9, "users_without_profile": 1, "profiles_without_events": 2, "with_text": 7
    }  # fmt: skip
    assert list(card["lengths"]["columns"]) == ["title", "colour", "data.triples", "data.reviews"]
    assert card["lengths"]["columns"]["data.triples"]["filled"] == 1
    assert set(card["origin"]["files"]) == {"items", "interactions", "triples", "reviews", "users"}
    log = store.log
    assert log is not None
    for split in SPLITS:
        records = store.records(split)
        assert records.times is not None
        days = records.times // 86_400 - 19_722  # of January 2024
        assert records.columns["channel"] == ["app" if day % 2 else "" for day in days.tolist()]
    assert prepare(make(rich_shop), tmp_path / "out").card == card
    # Another table's content is other data.
    people = Path(rich_shop["users"]["path"])
    people.write_text(people.read_text().replace("Rome", "Roma"))
    with pytest.raises(DataError, match="--force"):
        prepare(make(rich_shop), tmp_path / "out")
    assert Store.open(tmp_path / "out").user_columns["city"][2] == "Rome"


def test_undated_cuts_are_said_on_the_card(make: Make, rich_shop: dict[str, Any], tmp_path: Path) -> None:
    store = prepare(make({**rich_shop, "split": {"by": "leave_one_out"}}), tmp_path / "out")
    assert store.item_texts[7] == "Item 7, opinion 7 day 28"
    assert "held out" in store.card["reviews"]["leakage"]


def test_bad_rows_of_all_tables_come_at_once(make: Make, rich_shop: dict[str, Any], tmp_path: Path) -> None:
    bad = {
        "items": ",no id,,",
        "interactions": "u1,nowhere,2024-01-03,",
        "triples": "i1,,x",
        "reviews": "i1,good,never",
    }
    for name, row in {**bad, "users": ",40,Oslo"}.items():
        path = Path(rich_shop[name]["path"])
        path.write_text(path.read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        prepare(make(rich_shop), tmp_path / "out")
    assert "5 bad rows" in str(error.value)
    for part in ("items.csv", "log.csv", "kg.csv", "rev.csv row 38, t: 'never'", "users.csv row 11, id: (empty)"):
        assert part in str(error.value)
    store = prepare(make({**rich_shop, "on_error": "quarantine"}), tmp_path / "out")
    assert store.card["quarantined"]["rows"] == 5


def test_judged_queries_keep_columns_and_word_grades(
    make: Make, put: Put, rich_shop: dict[str, Any], tmp_path: Path
) -> None:
    words = ["exact", "substitute", "irrelevant"]
    rows = "".join(f"查询 {n},i{n % 12},{words[n % 3]},{'zh' if n % 2 else ''}\n" for n in range(30))
    queries = {
        "path": put("q.csv", "q,i,g,lang\n" + rows),
        "query": "q",
        "item": "i",
        "grade": "g",
        "columns": ["lang"],
        "grade_map": {"exact": 3, "substitute": 2, "irrelevant": 0},
    }
    tables = {name: rich_shop[name] for name in ("items", "triples", "reviews")}
    store = prepare(make({**tables, "queries": queries}), tmp_path / "out")
    assert store.card["counts"]["by_grade"] == {"0": 10, "2": 10, "3": 10}
    for split in SPLITS:
        records = store.records(split)
        assert records.queries is not None
        odd = [int(query.split()[1]) % 2 for query in records.queries]
        assert records.columns["lang"] == ["zh" if one else "" for one in odd]
    assert store.item_texts[0].endswith("opinion 0 day 28") and store.user_texts == []


def test_customer_service_turns_by_file(make: Make, tmp_path: Path) -> None:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECFT_DATA", beside)) / "multidogo-media"
    if not folder.is_dir():
        pytest.skip("no real data: neither RECFT_DATA nor ../shared/data beside the repository is there")
    paths = {"path": "train", "valid": "dev", "test": "test"}
    files = {key: str(folder / f"media.{name}.tsv") for key, name in paths.items()}
    table = {**files, "text": ["utterance"], "label": "intent", "group": "conversationId"}
    with pytest.raises(DataError, match=r"media\.train\.tsv row 15, utterance: \(empty\)"):
        prepare(make({"texts": table}), tmp_path / "out")
    store = prepare(make({"texts": table, "on_missing_text": "skip"}), tmp_path / "out")
    assert [len(store.records(split)) for split in SPLITS] == [11_937, 1_689, 3_399]
    assert len(store.item_ids) == 16 and store.card["dropped"] == {"rows without text": 8}
