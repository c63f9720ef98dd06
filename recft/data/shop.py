"""A small shop that is made, not downloaded: a catalogue, judged queries and a year of orders.

Everything follows from the seed. Each item has hidden facets (kind, use, material, brand, colour, size, price); its
title is what a hurried shop makes of them: line names, abbreviations, words left out, marketing. A query is what a
customer says about some facets. A grade compares facets and never looks at either text, so no score is built in:

    3  every facet asked for      2  the right kind and some of the rest
    1  the right kind alone, or the wrong kind of the right family with all the rest      0  anything else

About one judgement in twenty is off by one, as with human judges.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recft.data._shop_words import CHINESE, ENGLISH, KINDS, Names, Words
from recft.run import atomic_file

__all__ = ["Shop", "make_shop"]

_FACETS = ("kind", "use", "material", "brand", "colour")
_YEAR_SECONDS = 365 * 86_400
_OPENED = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())
_JUDGED_PER_QUERY = 60
_SLIP_SHARE = 0.05


@dataclass(frozen=True)
class Shop:
    """Where the made files lie, and how many rows they hold."""

    folder: Path
    items: int
    queries: int
    ratings: int
    customers: int
    orders: int


@dataclass(frozen=True)
class _Item:
    """One product's hidden facets, and what the shop shows of it."""

    id: str
    facets: dict[str, str]
    supplier: str
    title: str
    price: float


def make_shop(folder: Path, seed: int = 0, language: Literal["en", "zh"] = "en", scale: float = 1.0) -> Shop:
    """The shop written into `folder`: products.jsonl.gz, ratings.csv and orders.csv.gz.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        seed: equal seeds give equal bytes.
        language: of titles and queries; the Chinese shop has full-width forms and emoji.
        scale: 1 makes 800 products, 480 queries and 500 customers.
    """
    words = CHINESE if language == "zh" else ENGLISH
    # One stream for each part, so that a change to orders leaves queries as they were.
    streams = [np.random.default_rng([seed, part]) for part in range(3)]
    items = [_make_item(number, words, streams[0]) for number in range(max(round(800 * scale), 24))]
    ratings = _make_ratings(items, words, streams[1], n_queries=max(round(480 * scale), 10))
    orders = _make_orders(items, streams[2], n_customers=max(round(500 * scale), 10))
    _write_gzip(folder / "products.jsonl.gz", "".join(_product_line(item, words) for item in items))
    with atomic_file(folder / "ratings.csv") as draft:
        draft.write_bytes(_table(("query", "docid", "rating"), ratings).encode())
    _write_gzip(folder / "orders.csv.gz", _table(("customer", "sku", "ts", "quantity", "stars"), orders))
    return Shop(
        folder=folder,
        items=len(items),
        queries=len({row[0] for row in ratings}),
        ratings=len(ratings),
        customers=len({row[0] for row in orders}),
        orders=len(orders),
    )


def _pick(rng: np.random.Generator, options: Sequence[str], skew: float = 0.0) -> str:
    """One option; with `skew` the first ones come more often."""
    shares = np.arange(1, len(options) + 1, dtype=np.float64) ** -skew
    return options[int(rng.choice(len(options), p=shares / shares.sum()))]


def _make_item(number: int, words: Words, rng: np.random.Generator) -> _Item:
    """One product: facets first, then a title that shows most of them in the shop's own way."""
    kind = _pick(rng, list(KINDS))
    shape = KINDS[kind]
    facets = {
        "kind": kind,
        "use": _pick(rng, shape.uses),
        "material": _pick(rng, shape.materials),
        "brand": _pick(rng, list(words.brands), skew=0.5),
        "colour": _pick(rng, list(words.colours)),
    }
    dear = 1.0 + 0.5 * list(words.brands).index(facets["brand"]) / len(words.brands)
    price = round(float(shape.price * dear * rng.lognormal(0.0, 0.25)), 0) - 0.01
    supplier = _pick(rng, words.brands[facets["brand"]].shop)
    return _Item(f"{4_000 + number * 7}", facets, supplier, _title(facets, shape.sizes, words, rng), price)


def _title(facets: dict[str, str], sizes: Sequence[str], words: Words, rng: np.random.Generator) -> str:
    """A title: the line's name stands for the use, and every part but the noun may be missing."""
    parts = [_pick(rng, words.uses[facets["use"]].shop), _pick(rng, words.kinds[facets["kind"]].shop)]
    extra = []
    if rng.random() < 0.85:
        extra.append(_pick(rng, words.materials[facets["material"]].shop))
    if sizes and rng.random() < 0.7:
        extra.append(_pick(rng, sizes))
    if rng.random() < 0.8:
        extra.append(_pick(rng, words.colours[facets["colour"]].shop))
    rng.shuffle(extra)
    parts += extra
    if rng.random() < 0.3:
        parts.insert(int(rng.integers(len(parts) + 1)), _pick(rng, words.noise).format(n=int(rng.integers(1000, 9999))))
    title = " ".join(parts)
    if words.wide:
        return _widen(title) if rng.random() < 0.4 else title
    return title.upper() if rng.random() < 0.15 else title


def _widen(text: str) -> str:
    """ASCII letters and digits as full-width forms, as Chinese shops often type them."""
    return "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text)


def _make_ratings(
    items: Sequence[_Item], words: Words, rng: np.random.Generator, n_queries: int
) -> list[tuple[Any, ...]]:
    """Judgements (query, docid, rating): each query asks for some facets of an item that the shop has."""
    rows: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    for _ in range(20 * n_queries):
        if len(seen) == n_queries:
            break
        pattern = _pick(rng, words.queries)
        wanted = items[int(rng.integers(len(items)))].facets
        asked = {facet: wanted[facet] for facet in _FACETS if f"{{{facet}}}" in pattern}
        query = _spoken(pattern.format(**{f: _pick(rng, _names(words, f, key).asked) for f, key in asked.items()}), rng)
        if query.casefold() in seen:
            continue
        seen.add(query.casefold())
        rows += [(query, items[n].id, grade) for n, grade in _judge(items, asked, rng)]
    return rows


def _names(words: Words, facet: str, key: str) -> Names:
    """The words for one value of one facet."""
    names: Names = getattr(words, f"{facet}s")[key]
    return names


def _spoken(query: str, rng: np.random.Generator) -> str:
    """A query as it is typed: now and then two letters change places."""
    if len(query) > 6 and query.isascii() and rng.random() < 0.04:
        place = int(rng.integers(1, len(query) - 2))
        return query[:place] + query[place + 1] + query[place] + query[place + 2 :]
    return query


def _judge(items: Sequence[_Item], asked: dict[str, str], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Item numbers and grades: everything above 0, and zeros for the rest of the pool, in order of item."""
    grades = np.array([_grade(item.facets, asked) for item in items])
    ranked = np.lexsort((rng.random(len(items)), -grades))
    # Every 3 and 2 is judged; ones and zeros fill the pool, half and half where there are enough.
    sure = int((grades >= 2).sum())
    room = max(_JUDGED_PER_QUERY - sure, 20)
    ones = np.flatnonzero(grades == 1)
    kept_ones = rng.permutation(ones)[: room // 2]
    zeros = rng.permutation(np.flatnonzero(grades == 0))[: room - len(kept_ones)]
    pool = np.sort(np.concatenate([ranked[:sure], kept_ones, zeros]))
    slips = rng.random(len(pool)) < _SLIP_SHARE
    moves = rng.choice([-1, 1], size=len(pool))
    return [
        (int(n), int(np.clip(grades[n] + (move if slip else 0), 0, 3)))
        for n, slip, move in zip(pool, slips, moves, strict=True)
    ]


def _grade(facets: dict[str, str], asked: dict[str, str]) -> int:
    """The grade of an item for the facets a customer asked for."""
    rest = [facets[facet] == value for facet, value in asked.items() if facet != "kind"]
    if "kind" not in asked:
        return 3 if all(rest) else 0
    if facets["kind"] == asked["kind"]:
        return 3 if all(rest) else 2 if any(rest) else 1
    related = KINDS[facets["kind"]].family == KINDS[asked["kind"]].family
    return 1 if related and rest and all(rest) else 0


def _make_orders(items: Sequence[_Item], rng: np.random.Generator, n_customers: int) -> list[tuple[Any, ...]]:
    """Orders (customer, sku, ts, quantity, stars) in order of time.

    A customer has two uses and a brand at heart; on a day of the year one use gives way to another. What is bought
    follows taste, popularity and season, and stars follow taste.
    """
    charm = rng.lognormal(0.0, 0.8, len(items))
    uses = np.array([item.facets["use"] for item in items])
    brands = np.array([item.facets["brand"] for item in items])
    all_uses, all_brands = sorted(set(uses)), sorted(set(brands))
    rows: list[tuple[Any, ...]] = []
    for customer in range(n_customers):
        loved = [str(use) for use in rng.choice(all_uses, 3, replace=False)]
        brand = _pick(rng, all_brands)
        drift = rng.uniform(0.2, 0.8)
        for when in np.sort(rng.uniform(0, 1, 2 + int(rng.geometric(0.12)))):
            now = loved[:2] if when < drift else loved[1:]
            liking = np.where(np.isin(uses, now), 8.0, 1.0) * np.where(brands == brand, 2.5, 1.0)
            liking *= np.where((uses == "winter") & (0.2 < when < 0.75), 0.3, 1.0)
            second = _OPENED + int(when * _YEAR_SECONDS)
            for n in rng.choice(len(items), int(rng.integers(1, 4)), replace=False, p=_shares(charm * liking)):
                stars = int(np.clip(round(2.6 + np.log2(liking[n]) / 2 + rng.normal(0, 0.8)), 1, 5))
                rows.append((f"C{customer:04d}", items[n].id, second, 1 + int(rng.geometric(0.7) > 1), stars))
    return sorted(rows, key=lambda row: (row[2], row[0], row[1]))


def _shares(weights: np.ndarray) -> np.ndarray:
    """Weights that sum to 1."""
    shares: np.ndarray = weights / weights.sum()
    return shares


def _product_line(item: _Item, words: Words) -> str:
    """One product as a JSON line; every seventh has no product type, as in a grown catalogue."""
    family = words.families[KINDS[item.facets["kind"]].family]
    product = {
        "id": item.id,
        "title": item.title,
        "supplier": item.supplier,
        "product_type": None if int(item.id) % 49 == 4_000 % 49 else family,
        "price": item.price,
    }
    return json.dumps(product, ensure_ascii=False) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV table with plain newlines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write_gzip(path: Path, text: str) -> None:
    """Compressed text without a time stamp, so that equal text gives equal bytes."""
    with atomic_file(path) as draft:
        draft.write_bytes(gzip.compress(text.encode(), mtime=0))
