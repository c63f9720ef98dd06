"""The made shop: equal for equal seeds, believable, and honest."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import pytest

from recft.data._shop_words import CHINESE, ENGLISH, KINDS, Words
from recft.data.shop import make_shop
from recft.recipe import Recipe

FILES = ("products.jsonl.gz", "ratings.csv", "orders.csv.gz")


def read(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]], list[dict[str, str]]]:
    """Products, ratings and orders of a made shop."""
    products = [json.loads(line) for line in gzip.decompress((folder / FILES[0]).read_bytes()).decode().splitlines()]
    ratings = list(csv.DictReader((folder / FILES[1]).read_text(encoding="utf-8").splitlines()))
    orders = list(csv.DictReader(gzip.decompress((folder / FILES[2]).read_bytes()).decode().splitlines()))
    return products, ratings, orders


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    made = make_shop(folder, seed=1, scale=0.25)
    assert (made.items, made.queries, made.customers) == (200, 120, 125)
    return folder


def test_equal_seeds_give_equal_bytes(shop: Path, tmp_path: Path) -> None:
    make_shop(tmp_path / "again", seed=1, scale=0.25)
    make_shop(tmp_path / "other", seed=2, scale=0.25)
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (shop / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (shop / file).read_bytes()


def test_tables_fit_together(shop: Path) -> None:
    products, ratings, orders = read(shop)
    ids = [product["id"] for product in products]
    assert len(set(ids)) == len(ids) == 200
    assert all(product["title"].strip() and product["price"] > 0 for product in products)
    assert {row["docid"] for row in ratings} <= set(ids)
    assert {row["rating"] for row in ratings} == {"0", "1", "2", "3"}
    pairs = [(row["query"].casefold(), row["docid"]) for row in ratings]
    assert len(set(pairs)) == len(pairs)
    assert {row["sku"] for row in orders} <= set(ids)
    times = [int(row["ts"]) for row in orders]
    assert times == sorted(times)
    assert 300 * 86_400 < times[-1] - times[0] <= 365 * 86_400
    assert {row["stars"] for row in orders} <= set("12345")


def test_every_query_has_something_to_find_and_something_to_leave(shop: Path) -> None:
    grades = defaultdict(list)
    for row in read(shop)[1]:
        grades[row["query"]].append(int(row["rating"]))
    assert sum(max(found) >= 2 for found in grades.values()) >= 0.95 * len(grades)
    assert all(found.count(0) >= 5 for found in grades.values())


def test_tastes_drift(shop: Path) -> None:
    """What a customer buys late resembles their early purchases less than early ones resemble each other."""
    products, _, orders = read(shop)
    lines = {name: use for use, words in ENGLISH.uses.items() for name in words.shop}
    use_of = {
        product["id"]: next((use for name, use in lines.items() if name.upper() in product["title"].upper()), None)
        for product in products
    }
    assert None not in use_of.values()
    baskets: dict[str, list[str | None]] = defaultdict(list)
    for row in orders:
        baskets[row["customer"]].append(use_of[row["sku"]])

    def overlap(left: list[str | None], right: list[str | None]) -> float:
        return sum(a == b for a in left for b in right) / (len(left) * len(right))

    long = [uses for uses in baskets.values() if len(uses) >= 16]
    near = sum(overlap(uses[:4], uses[4:8]) for uses in long) / len(long)
    far = sum(overlap(uses[:4], uses[-4:]) for uses in long) / len(long)
    assert near > far + 0.03


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_each_language_names_the_whole_skeleton(words: Words) -> None:
    assert set(words.kinds) == set(KINDS)
    assert set(words.materials) == {material for kind in KINDS.values() for material in kind.materials}
    assert set(words.uses) == {use for kind in KINDS.values() for use in kind.uses}
    assert set(words.families) == {kind.family for kind in KINDS.values()}
    assert (set(words.colours), set(words.brands)) == (set(ENGLISH.colours), set(ENGLISH.brands))


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_the_shop_s_line_names_never_say_the_use(words: Words) -> None:
    """Otherwise shared words alone would find it, and there would be nothing to learn."""
    for names in words.uses.values():
        assert not {part.casefold() for part in names.shop} & {part.casefold() for part in names.asked}


def test_the_chinese_shop_has_full_width_forms_and_emoji(tmp_path: Path) -> None:
    make_shop(tmp_path, language="zh", scale=0.25)
    products, ratings, _ = read(tmp_path)
    titles = "".join(product["title"] for product in products)
    assert any("\uff01" <= sign <= "\uff5e" and sign.isalnum() for sign in titles)
    assert any(ord(sign) > 0x1F300 for sign in titles)
    assert sum("\u4e00" <= sign <= "\u9fff" for sign in titles) > len(products)
    assert all(not row["query"].isascii() for row in ratings)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prepare_accepts_both_tables(tmp_path: Path, language: Literal["en", "zh"]) -> None:
    from recft.prepare import prepare

    make_shop(tmp_path, language=language, scale=0.1)
    items = {"path": "products.jsonl.gz", "id": "id", "text": ["supplier", "product_type", "title"], "title": "title"}
    queries = {"path": "ratings.csv", "query": "query", "item": "docid", "grade": "rating"}
    interactions = {"path": "orders.csv.gz", "user": "customer", "item": "sku", "time": "ts", "rating": "stars"}
    for task, tables in (("retrieval", {"queries": queries}), ("next-item", {"interactions": interactions})):
        recipe = Recipe.from_mapping(
            {"name": "shop", "task": task, "method": "lora", "data": {"items": items, **tables}}, folder=tmp_path
        )
        store = prepare(recipe, out=tmp_path / task)
        assert len(store.item_ids) == 80
        assert all(len(store.records(split)) for split in ("train", "valid", "test"))
        assert store.card["quarantined"]["rows"] == 0
