"""`prepare` as a whole: on small tables, on broken ones, and on the real files where they are."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recft.data.items import read_items
from recft.data.judgements import read_judgements
from recft.data.ledger import Ledger
from recft.data.query_splits import split_queries
from recft.data.store import SPLITS, Store
from recft.data.text import normalise
from recft.errors import DataError, RecipeError
from recft.prepare import prepare
from recft.recipe import Recipe
from recft.schema import DataSettings, MethodSettings, ModelSettings, SplitSettings, TaskSettings, TuneSettings

Put = Callable[[str, str | bytes], str]
Make = Callable[..., Recipe]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def to(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / name)

    return to


@pytest.fixture
def make(tiny_bert: Path) -> Make:
    """A recipe of these data settings; its task is none of recft's own, so that any table will do."""

    def of(data: Mapping[str, Any], max_tokens: int = 64, task: str = "of-the-test") -> Recipe:
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
def shop(put: Put) -> dict[str, Any]:
    items = "".join(f"i{n},Item {n},{'word ' * n}\n" for n in range(20))
    rng = np.random.default_rng(0)
    rows = [
        f"u{rng.integers(8)},i{rng.integers(20)},2024-01-{day:02d},{rng.integers(1, 6)}"
        for day in range(1, 29)
        for _ in range(20)
    ]
    rows = sorted({",".join(row.split(",")[:3]): row for row in rows}.values(), key=hash)
    return {
        "items": {
            "path": put("items.csv", "id,title,description\n" + items),
            "id": "id",
            "text": ["title", "description"],
        },
        "interactions": {
            "path": put("log.csv", "u,i,t,r\n" + "\n".join(rows)),
            "user": "u",
            "item": "i",
            "time": "t",
            "rating": "r",
        },
    }


@pytest.fixture
def real_data() -> Path:
    """The folder of real files, or a skip."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECFT_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: neither RECFT_DATA nor ../shared/data beside the repository is there")
    return folder


def test_files_and_card(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    heard: list[str] = []
    store = prepare(make(shop, max_tokens=12), tmp_path / "out", listen=lambda event, values: heard.append(event))
    names = {str(file.relative_to(store.folder)) for file in store.folder.rglob("*") if file.is_file()}
    assert names == {
        *("items.parquet", "users.parquet", "interactions.parquet", "card.json"),
        *(f"records/{split}.parquet" for split in SPLITS),
    }
    card = json.loads((store.folder / "card.json").read_text())
    assert card == store.card
    assert card["counts"]["items"] == 20 and card["counts"]["users"] == 8
    log = pl.read_parquet(store.folder / "interactions.parquet")
    assert card["counts"]["interactions"] == log.height
    assert log.schema == {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64, "rating": pl.Float32}
    assert log.sort("user", "time", maintain_order=True).equals(log)
    for split in SPLITS:
        records = store.records(split)
        assert card["split"][split]["records"] == len(records) > 0
        assert card["split"][split]["pairs"] == len(records.items)
    # 20 titles; item n has n more words, so from some n on the description, and it alone, is cut.
    assert card["lengths"]["columns"]["title"] == {"filled": 20, "rows_losing_tokens": 0}
    assert card["lengths"]["columns"]["description"]["filled"] == 19
    lost = card["lengths"]["columns"]["description"]["rows_losing_tokens"]
    assert 0 < lost < 19 and lost == card["lengths"]["items"]["rows_losing_tokens"]
    assert set(card["origin"]["files"]) == {"items", "interactions"}
    assert "stage" in heard and heard[-1] == "prepared"
    assert not list(tmp_path.glob(".out*"))


def test_equal_settings_are_reused_and_others_refused(
    make: Make, shop: dict[str, Any], tmp_path: Path, put: Put
) -> None:
    recipe, out = make(shop), tmp_path / "out"
    first = prepare(recipe, out).card
    written = (out / "card.json").stat().st_mtime_ns
    assert prepare(recipe, out).card == first
    assert (out / "card.json").stat().st_mtime_ns == written
    assert prepare(recipe, tmp_path / "again").card == first  # the same bytes, wherever they are written
    # The same content under another path is the same data.
    (tmp_path / "elsewhere").mkdir()
    path = put("elsewhere/items.csv", Path(shop["items"]["path"]).read_bytes())
    moved = {**shop, "items": {**shop["items"], "path": path}}
    assert prepare(make(moved), out).card == first
    other = make({**shop, "split": {"by": "leave_one_out"}})
    with pytest.raises(DataError, match=r"other settings or files.*--force"):
        prepare(other, out)
    assert prepare(other, out, force=True).card["split"]["by"] == "leave_one_out"
    with pytest.raises(DataError, match="--force"):
        prepare(recipe, out)
    # A damaged folder of the same settings is made anew, unasked.
    (out / "records" / "test.parquet").write_bytes(b"torn")
    assert prepare(other, out).card["split"]["by"] == "leave_one_out"
    assert len(Store.open(out).records("test"))


def test_another_folder_is_never_replaced(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="no folder of prepared data"):
        prepare(make(shop), tmp_path / "home", force=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_nothing_is_written_when_rows_are_bad(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    log = Path(shop["interactions"]["path"])
    log.write_text(log.read_text() + "\nu1,nowhere,2024-01-03,3\nu1,i1,never,3\n")
    rows = len(log.read_text().splitlines())
    with pytest.raises(DataError) as error:
        prepare(make(shop), tmp_path / "out")
    for part in (
        "2 bad rows",
        f"log.csv row {rows - 1}, i: 'nowhere'",
        f"log.csv row {rows}, t: 'never'",
        "counts by rule",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    store = prepare(make({**shop, "on_error": "quarantine"}), tmp_path / "out")
    assert store.card["quarantined"]["rows"] == 2
    aside = [json.loads(line) for line in (store.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["row"], entry["column"]) for entry in aside] == [
        ("log.csv", rows - 1, "i"),
        ("log.csv", rows, "t"),
    ]


def test_row_order_of_the_files_does_not_matter(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    one = prepare(make(shop), tmp_path / "one")
    log = Path(shop["interactions"]["path"])
    header, *rows = log.read_text().splitlines()
    log.write_text("\n".join([header, *sorted(rows, reverse=True)]))
    other = prepare(make(shop), tmp_path / "other")
    for split in SPLITS:
        # Users are numbered as they appear; what each has done and is asked for is the same.
        found = [
            {
                key: (
                    records.history(n).tolist(),
                    sorted(records.items[records.offsets[n] : records.offsets[n + 1]].tolist()),
                )
                for n, key in enumerate(
                    zip(records.keys, records.times.tolist() if records.times is not None else [], strict=True)
                )
            }
            for records in (one.records(split), other.records(split))
        ]
        assert {key: (sorted(past), targets) for key, (past, targets) in found[0].items()} == {
            key: (sorted(past), targets) for key, (past, targets) in found[1].items()
        }


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"interactions": None}, "none of interactions, queries and texts is given"),
        ({"queries": {"path": "q.csv", "query": "q"}}, "interactions and queries are given"),
        ({"labels": {"at_least": 4, "negatives": 4}}, "one source"),
        ({"split": {"by": "query"}}, "interactions have no queries"),
    ],
)
def test_settings_that_cannot_work_together(
    make: Make, shop: dict[str, Any], tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    with pytest.raises(RecipeError, match=part):
        prepare(make({**shop, **change}), tmp_path / "out")


def test_a_task_that_reads_the_other_table_is_refused(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="task retrieval reads queries"):
        prepare(make(shop, task="retrieval"), tmp_path / "out")


def test_all_missing_files_come_at_once(make: Make, shop: dict[str, Any], tmp_path: Path) -> None:
    broken = {
        "items": {**shop["items"], "path": str(tmp_path / "item.csv")},
        "interactions": {**shop["interactions"], "path": str(tmp_path / "lug.csv")},
    }
    with pytest.raises(DataError) as error:
        prepare(make(broken), tmp_path / "out")
    assert "Did you mean 'items.csv'" in str(error.value) and "Did you mean 'log.csv'" in str(error.value)


def test_a_chinese_catalogue_of_every_kind_of_text(make: Make, put: Put, tmp_path: Path) -> None:
    titles = ["红色 连衣裙 👗", "ＵＳＢ－Ｃ 数据线", "x" * 1_000_000, 'quoted "5 inch"\nscreen']
    items = "".join(
        json.dumps({"id": n, "title": title, "tags": ["a", 1]}, ensure_ascii=False) + "\r\n"
        for n, title in enumerate(titles)
    )
    rows = "".join(f"词 {n},{n % 4},{n % 3}\n" for n in range(10))
    data = {
        "items": {"path": put("items.jsonl.gz", gzip.compress(items.encode())), "id": "id", "text": ["title", "tags"]},
        "queries": {
            "path": put("q.tsv", ("\ufeff词,i,g\n" + rows).replace(",", "\t")),
            "query": "词",
            "item": "i",
            "grade": "g",
        },
    }
    store = prepare(make(data), tmp_path / "out")
    assert store.item_texts[:2] == ["红色 连衣裙 👗, a, 1", "ＵＳＢ－Ｃ 数据线, a, 1"]
    assert store.item_texts[3] == 'quoted "5 inch" screen, a, 1'
    assert len(store.item_titles[2]) == 1_000_000
    assert sorted(key for split in SPLITS for key in store.records(split).keys) == sorted(
        normalise(f"词 {n}") for n in range(10)
    )
    assert store.user_ids == []


ONLINE_RETAIL = {
    "items": {"path": "online-retail/items.csv", "id": "StockCode", "text": ["title"]},
    "interactions": {
        "path": "online-retail/interactions.csv.gz",
        "user": "CustomerID",
        "item": "StockCode",
        "time": "ts",
    },
}
CHORUS = {
    "items": {"path": "chorus/products_compact.jsonl.gz", "id": "id", "text": ["supplier", "product_type", "title"]},
    "queries": {"path": "chorus/Broad_Query_Set_rated.csv", "query": "query", "item": "docid", "grade": "rating"},
}
MOVIELENS = {
    "items": {"path": "ml-latest-small/movies.csv", "id": "movieId", "text": ["title", "genres"]},
    "interactions": {
        "path": "ml-latest-small/ratings.csv",
        "user": "userId",
        "item": "movieId",
        "time": "timestamp",
        "rating": "rating",
        "rating_range": [0.5, 5],
    },
}


def under(folder: Path, data: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The settings with paths in the folder of real files."""
    return {key: {**table, "path": str(folder / table["path"])} for key, table in data.items()} | more


def test_online_retail_is_the_published_protocol(make: Make, real_data: Path, tmp_path: Path) -> None:
    store = prepare(make(under(real_data, ONLINE_RETAIL)), tmp_path / "out")
    card, test = store.card, store.records("test")
    assert (card["counts"]["interactions"], card["counts"]["users"], card["counts"]["items"]) == (386_250, 4_334, 3_659)
    assert card["split"]["test_cut"] == 1_321_800_000
    assert len(test) == 1_027
    masked = 0
    for record in range(len(test)):
        targets = test.items[test.offsets[record] : test.offsets[record + 1]]
        masked += bool(set(targets.tolist()) - set(test.history(record).tolist()))
    assert masked == 889
    assert 0.30 < card["repeat_share"] < 0.32


def test_online_retail_with_sampled_negatives(make: Make, real_data: Path, tmp_path: Path) -> None:
    store = prepare(make(under(real_data, ONLINE_RETAIL, labels={"negatives": 4})), tmp_path / "out")
    test = store.records("test")
    assert len(test) == 1_027
    assert (test.grades == 0).sum() == 4 * (test.grades == 1).sum()
    assert store.card["labels"]["source"] == "sampled"
    assert abs(store.card["order"]["test"]["place_auc"] - 0.5) < 0.02


def test_chorus_folds_are_the_published_protocol(make: Make, real_data: Path, tmp_path: Path) -> None:
    file = pl.read_csv(real_data / "chorus" / "Broad_Query_Set_rated.csv")
    queries = file["query"].unique(maintain_order=True).to_list()
    order = list(queries)
    np.random.default_rng(0).shuffle(order)
    store = prepare(make(under(real_data, CHORUS, split={"by": "query", "folds": 5, "fold": 0})), tmp_path / "fold0")
    test = store.records("test")
    assert test.queries is not None and set(test.queries) == set(order[::5])
    assert sum(len(store.records(name)) for name in SPLITS) == 135
    assert store.card["counts"]["by_grade"] == {"0": 1853, "1": 238, "2": 105, "3": 1472}
    settings = make(under(real_data, CHORUS)).data
    with Ledger("stop", tmp_path / "quarantine.jsonl") as ledger:
        judgements = read_judgements(settings, read_items(settings, ledger), ledger)
        ledger.settle()
    best = np.maximum.reduceat(judgements.grades, judgements.offsets[:-1])
    judged = 0
    for fold in range(5):
        drafts = split_queries(judgements, SplitSettings(by="query", folds=5, fold=fold))
        tested = drafts["test"].queries.tolist()
        assert {judgements.queries[query] for query in tested} == set(order[fold::5])
        judged += int((best[tested] > 0).sum())
    assert judged == 116


def test_movielens_needs_no_code(make: Make, real_data: Path, tmp_path: Path) -> None:
    data = under(real_data, MOVIELENS, labels={"at_least": 4}, split={"by": "leave_one_out"})
    store = prepare(make(data), tmp_path / "out")
    assert (store.card["counts"]["interactions"], store.card["counts"]["users"]) == (100_836, 610)
    test = store.records("test")
    assert len(test) == 610
    assert test.log_ratings is not None
    ratings = pl.read_csv(real_data / "ml-latest-small" / "ratings.csv")
    yes = {
        (str(user), str(item))
        for user, item in ratings.filter(pl.col("rating") >= 4).select("userId", "movieId").rows()
    }
    owner = np.repeat(np.arange(len(test)), np.diff(test.offsets)).tolist()
    pairs = [(test.keys[record], store.item_ids[item]) for record, item in zip(owner, test.items.tolist(), strict=True)]
    assert [pair in yes for pair in pairs] == (test.grades == 1).tolist()
