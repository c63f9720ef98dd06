"""Ranks from scores, against counting one by one; and their speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.errors import DataError, ModelError
from recft.metrics import ndcg
from recft.metrics._base import Labels, Ranks
from recft.metrics._ranks import concat, gains, ranks_of, ranks_of_pairs, restrict


def same(a: Ranks, b: Ranks) -> None:
    for name in ("offsets", "grades", "greater", "tied", "n_candidates", "pairs"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name


def slow(scores: np.ndarray, offsets: np.ndarray, items: np.ndarray, grades: np.ndarray, excluded: np.ndarray) -> Ranks:
    starts, kept, greater, tied, n_candidates, pairs = [0], [], [], [], [], []
    for row in range(len(scores)):
        candidates = [c for c in range(scores.shape[1]) if not excluded[row, c]]
        for pair in range(offsets[row], offsets[row + 1]):
            if grades[pair] > 0 and items[pair] in candidates:
                own = scores[row, items[pair]]
                kept.append(grades[pair])
                pairs.append(pair)
                greater.append(sum(scores[row, c] > own for c in candidates))
                tied.append(sum(scores[row, c] == own for c in candidates))
        starts.append(len(kept))
        n_candidates.append(len(candidates))
    return Ranks(*(np.array(part) for part in (starts, kept, greater, tied, n_candidates, pairs)))


@given(st.data())
def test_equals_counting_one_by_one(data: st.DataObject) -> None:
    n_rows, n_columns = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 6))
    n = n_rows * n_columns
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, np.inf])
    scores = np.array(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=np.float32).reshape(n_rows, n_columns)
    excluded = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool).reshape(scores.shape)
    rows = [data.draw(st.lists(st.integers(0, n_columns - 1), unique=True)) for _ in range(n_rows)]
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    grades = np.array(data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(items), max_size=len(items))))
    offsets = np.cumsum([0, *map(len, rows)])
    expected = slow(scores, offsets, items, grades, excluded)
    same(ranks_of(scores, offsets, items, grades, np.nonzero(excluded)), expected)
    nothing = np.zeros_like(excluded)
    same(ranks_of(scores, offsets, items, grades), slow(scores, offsets, items, grades, nothing))
    parts = [
        ranks_of(scores[r : r + 1], offsets[r : r + 2], items, grades, np.nonzero(excluded[r : r + 1]))
        for r in range(n_rows)
    ]
    same(concat(parts), expected)


@given(st.data())
def test_a_part_equals_counting_without_the_rest(data: st.DataObject) -> None:
    n_rows, n_columns = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 7))
    n = n_rows * n_columns
    drawn = data.draw(st.lists(st.sampled_from([-np.inf, 0.0, 0.5]), min_size=n, max_size=n))
    scores = np.array(drawn, dtype=np.float32).reshape(n_rows, n_columns)
    excluded = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=bool).reshape(scores.shape)
    rows = [data.draw(st.lists(st.integers(0, n_columns - 1), unique=True)) for _ in range(n_rows)]
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    grades = np.array(data.draw(st.lists(st.sampled_from([0, 1, 2]), min_size=len(items), max_size=len(items))))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items))), dtype=bool)
    offsets = np.cumsum([0, *map(len, rows)])
    # Relevant items outside the part are excluded by hand; what is graded 0 stays a candidate.
    by_hand = excluded.copy()
    gone = (grades > 0) & ~keep
    by_hand[np.repeat(np.arange(n_rows), np.diff(offsets))[gone], items[gone]] = True
    expected = slow(scores, offsets, items, grades, by_hand)
    same(restrict(ranks_of(scores, offsets, items, grades, np.nonzero(excluded)), keep), expected)


def test_all_and_none_of_the_ranks() -> None:
    ranks = ranks_of_pairs([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 2])
    same(restrict(ranks, np.ones(4, dtype=bool)), ranks)
    none = restrict(ranks, np.zeros(4, dtype=bool))
    assert (len(none), none.n_candidates.tolist()) == (1, [1])
    assert np.isnan(ndcg.ranking(none, 10)).all()


def test_gains() -> None:
    grades = np.array([-1, 0, 0.5, 1, 4], dtype=np.float32)
    assert gains(grades, "linear").tolist() == [-1, 0, 0.5, 1, 4]
    assert gains(grades, "exponential").tolist() == pytest.approx([-0.5, 0, 2**0.5 - 1, 1, 15])
    assert ((gains(grades, "exponential") > 0) == (grades > 0)).all()


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=5), max_size=4))
def test_pairs_equal_a_dense_block(records: list[list[tuple[int, int]]]) -> None:
    width = max([1, *map(len, records)])
    scores, excluded = np.zeros((len(records), width), np.float32), np.ones((len(records), width), dtype=bool)
    for r, record in enumerate(records):
        scores[r, : len(record)] = [score for score, _ in record]
        excluded[r, : len(record)] = False
    offsets = np.cumsum([0, *map(len, records)])
    items = np.array([c for record in records for c in range(len(record))], dtype=np.int32)
    flat = [pair for record in records for pair in record]
    grades = np.array([grade for _, grade in flat], dtype=np.float32)
    same(
        ranks_of_pairs([score for score, _ in flat], grades, offsets),
        ranks_of(scores, offsets, items, grades, np.nonzero(excluded)),
    )


def test_scores_are_left_as_they_are() -> None:
    scores = np.array([[1.0, 3.0, 2.0]], dtype=np.float32)
    for hidden in (None, (np.array([0]), np.array([1]))):
        ranks_of(scores, np.array([0, 1]), np.array([0]), np.array([1]), hidden)
        assert scores.tolist() == [[1, 3, 2]]


def test_scores_that_are_no_numbers_are_refused() -> None:
    message = r"scores: 1 of 2 are not a number \(rule: .*; fix: .*\)"
    scores = np.array([[1.0, np.nan]])
    with pytest.raises(ModelError, match=message):
        ranks_of(scores, np.array([0, 1]), np.array([0]), np.array([1]))
    with pytest.raises(ModelError, match=message):
        ranks_of_pairs(scores[0], [1, 0])
    with pytest.raises(ModelError, match=message):
        Labels(scores[0], np.array([0, 1]), np.array([0, 0]))
    excluded = (np.array([0]), np.array([1]))
    assert ranks_of(scores, np.array([0, 1]), np.array([0]), np.array([1]), excluded).greater.tolist() == [0]


def test_an_item_twice_in_a_record_is_refused() -> None:
    with pytest.raises(DataError, match="one item stands twice"):
        ranks_of(np.zeros((1, 3)), np.array([0, 2]), np.array([1, 1]), np.array([1, 1]))


def test_no_blocks() -> None:
    assert len(concat([])) == 0


def test_a_catalogue_is_ranked_in_seconds() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((500, 20_000), dtype=np.float32)
    offsets, items = np.arange(501) * 5, np.tile(np.arange(5) * 7, 500)
    started = time.perf_counter()
    value = ndcg.ranking(ranks_of(scores, offsets, items, np.ones(2500)), 10)
    assert len(value) == 500
    # A quarter of 2,000 records; it takes about 0.3 s on an idle core.
    assert time.perf_counter() - started < 6
