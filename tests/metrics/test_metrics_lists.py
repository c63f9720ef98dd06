"""What every metric of lists promises, for every file that has one, and a slow reference for each."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft import registry
from recft.data.text import words
from recft.errors import RecipeError
from recft.metrics import diversity
from recft.metrics._base import PACKAGE, Lists, Metric, depth

MEMBERS: dict[str, Metric] = {name: registry.load(PACKAGE, name) for name in registry.names(PACKAGE)}
NAMES = [name for name, metric in MEMBERS.items() if metric.lists]
TOGETHER = [
    name
    for name in NAMES
    if isinstance(MEMBERS[name].lists(Lists(np.zeros((1, 1), int), np.ones(1), ["a"]), 1), float)  # type: ignore[misc]
]
BY_RECORD = [name for name in NAMES if name not in TOGETHER]
TEXTS = ["red chair", "red desk 🪑", "红色椅子", "红色桌子", "", "!", "red chair"]
POPULARITY = np.array([10, 5, 5, 3, 1, 0, 1])
N = len(TEXTS)


def score(name: str, lists: Lists, cutoff: int | None) -> np.ndarray | float:
    found = MEMBERS[name].lists
    assert found is not None
    return found(lists, cutoff)


# A list names no item twice, may hold invalid outputs anywhere, and ends in empty places.
LIST = st.lists(st.integers(0, N), max_size=6, unique=True).map(lambda found: [i if i < N else -2 for i in found])
MANY = st.lists(LIST, max_size=4)


def lists_of(rows: list[list[int]], width: int = 6) -> Lists:
    top = np.full((len(rows), width), -1, np.int32)
    for place, row in enumerate(rows):
        top[place, : len(row)] = row
    return Lists(top, POPULARITY, TEXTS)


def is_tail(item: int) -> bool:
    """Items of a higher count hold 80% of events already."""
    return sum(count for count in POPULARITY if count > POPULARITY[item]) / sum(POPULARITY) >= 0.8 or (
        not POPULARITY[item]
    )


def jaccard(a: int, b: int) -> float:
    left, right = set(words(TEXTS[a])), set(words(TEXTS[b]))
    return 1 - len(left & right) / len(left | right) if left | right else 0.0


def slow(name: str, rows: list[list[int]], k: int | None) -> list[float] | float:
    rows = [row[:k] for row in rows]
    items = [[item for item in row if item >= 0] for row in rows]
    times = Counter(itertools.chain(*items))
    nan = float("nan")
    if name == "coverage":
        return len(times) / N if rows else nan
    if name == "gini":
        if not times:
            return nan
        x = [times[item] for item in range(N)]
        return sum(abs(a - b) for a in x for b in x) / (2 * N * sum(x))
    if name == "tail-count":
        return [float(sum(map(is_tail, own))) if row else nan for row, own in zip(rows, items, strict=True)]
    if name == "tail-share":
        return [sum(map(is_tail, own)) / len(row) if row else nan for row, own in zip(rows, items, strict=True)]
    if name == "invalid":
        return [row.count(-2) / len(row) if row else nan for row in rows]
    if name == "novelty":
        share = (POPULARITY + 1) / (POPULARITY.sum() + N)
        return [float(np.mean([-np.log2(share[item]) for item in own])) if own else nan for own in items]
    if name == "diversity":
        pairs = [list(itertools.combinations(own, 2)) for own in items]
        return [float(np.mean([jaccard(a, b) for a, b in own])) if own else nan for own in pairs]
    raise KeyError(name)


@pytest.mark.parametrize("name", NAMES)
@given(rows=MANY, k=st.sampled_from([None, 1, 2, 3, 6, 9]))
def test_equals_the_definition(name: str, rows: list[list[int]], k: int | None) -> None:
    np.testing.assert_allclose(score(name, lists_of(rows), None if k is None else min(k, 6)), slow(name, rows, k))


@pytest.mark.parametrize("name", NAMES)
@given(rows=MANY)
def test_range(name: str, rows: list[list[int]]) -> None:
    most = {"tail-count": 6, "novelty": np.log2(POPULARITY.sum() + N)}.get(name, 1)
    values = np.atleast_1d(score(name, lists_of(rows), 6))
    assert all(np.isnan(value) or -1e-12 <= value <= most + 1e-12 for value in values)


@pytest.mark.parametrize("name", NAMES)
@given(rows=MANY, data=st.data())
def test_order_within_the_cutoff_does_not_matter(name: str, rows: list[list[int]], data: st.DataObject) -> None:
    turned = [data.draw(st.permutations(row)) for row in rows]
    np.testing.assert_allclose(score(name, lists_of(rows), None), score(name, lists_of(turned), None), rtol=1e-12)


@pytest.mark.parametrize("name", BY_RECORD)
@given(rows=MANY)
def test_records_do_not_touch_each_other(name: str, rows: list[list[int]]) -> None:
    alone = [np.asarray(score(name, lists_of([row]), 3))[0] for row in rows]
    whole = lists_of(rows)
    np.testing.assert_allclose(score(name, whole, 3), alone, rtol=1e-12)
    mask = np.arange(len(rows)) % 2 == 0
    np.testing.assert_allclose(score(name, whole.where(mask), 3), np.array(alone)[mask], rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_empty_places_add_nothing(name: str) -> None:
    rows = [[0, 3, -2], [2], []]
    np.testing.assert_allclose(score(name, lists_of(rows, 3), None), score(name, lists_of(rows, 20), None))


@pytest.mark.parametrize("name", NAMES)
def test_no_lists(name: str) -> None:
    assert np.isnan(score(name, lists_of([]), 3)).all()
    assert np.isnan(score(name, Lists(np.zeros((0, 0), np.int32), np.zeros(0, int), []), 3)).all()
    assert name == "coverage" or np.isnan(score(name, lists_of([[], []]), 3)).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_places_than_were_kept_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"a cutoff of 5 \(rule: lists hold 2 places; fix: take @2\)"):
        score(name, lists_of([[1, 2]], 2), 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_catalogue_smaller_than_the_cutoff(name: str) -> None:
    small = Lists(np.array([[1, 0]], np.int32), np.array([3, 1]), ["a", "b"])
    np.testing.assert_allclose(score(name, small, 10), score(name, small, 2))


def test_even_and_one_sided_showing() -> None:
    assert score("gini", lists_of([[i] for i in range(N)]), 1) == pytest.approx(0)
    assert score("gini", lists_of([[0]] * 50), 1) == pytest.approx(1 - 1 / N)
    assert score("coverage", lists_of([[i] for i in range(N)]), 1) == 1


def test_items_of_one_popularity_are_tail_together() -> None:
    # 10 of 25 events are item 0's, the two items of 5 make it 20 of 25, which is 80%.
    assert [is_tail(item) for item in range(N)] == [False, False, False, True, True, True, True]
    assert score("tail-count", lists_of([[0, 1, 2], [3, 4, 5]]), 3).tolist() == [0, 3]  # type: ignore[union-attr]


def test_how_many_places_must_be_kept() -> None:
    assert depth(["ndcg@100", "gini@5", "coverage@30", "log_loss"]) == 30
    assert depth(["ndcg@100", "auc"]) == 0
    assert depth(["invalid"]) == 0


def test_two_thousand_lists_are_compared_in_seconds() -> None:
    import time

    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 500, 8))) for _ in range(2_000)]
    top = rng.integers(0, 2_000, (2_000, 10)).astype(np.int32)
    started = time.perf_counter()
    assert len(np.asarray(score("diversity", Lists(top, np.ones(2_000), texts), 10))) == 2_000
    assert time.perf_counter() - started < 5  # about 0.2 s on an idle core


@pytest.mark.parametrize("depth", [2, 5, 8])
def test_diversity_in_threads_is_that_of_every_two_items(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "MANY_BLOCKS", 2)
    monkeypatch.setattr(diversity, "BLOCK_PAIRS", 70)
    draw = np.random.default_rng(depth)
    vocabulary = ["red", "chair", "椅子", "红色连衣裙", "🎒", "ＯＡＫ", ""]
    texts = [" ".join(draw.choice(vocabulary, draw.integers(0, 5))) for _ in range(30)]
    top = np.stack([draw.choice(30, depth, replace=False) for _ in range(25)])
    top[draw.random(top.shape) < 0.2] = -1
    top[draw.random(top.shape) < 0.1] = -2
    found = diversity.lists(Lists(top, np.ones(30), texts), depth)
    for row, value in zip(top, found, strict=True):
        sets = [set(words(texts[item])) for item in row if item >= 0]
        apart = [1 - len(a & b) / len(a | b) if a | b else 0.0 for a, b in itertools.combinations(sets, 2)]
        assert value == pytest.approx(np.mean(apart) if apart else np.nan, nan_ok=True)
