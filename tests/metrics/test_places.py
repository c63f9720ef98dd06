"""Places by counting and first places by a bound, against sorting every row whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recft.errors import ModelError
from recft.metrics import _places
from recft.metrics._places import hidden, standing

Asked = tuple[np.ndarray, np.ndarray, np.ndarray]


def slow(scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, depth: int) -> list[list[list[float]]]:
    """Places and first places by comparing and sorting everything."""
    own = scores[rows, columns][:, None]
    greater, tied = (scores[rows] > own).sum(axis=1), (scores[rows] == own).sum(axis=1)
    n_columns = scores.shape[1]
    order = np.lexsort((np.broadcast_to(np.arange(n_columns), scores.shape), -scores))[:, :depth]
    values = np.take_along_axis(scores, order, axis=1)
    return [greater.tolist(), tied.tolist(), np.where(np.isneginf(values), -1, order).tolist(), values.tolist()]


def same(scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, depth: int, threads: int = 1) -> None:
    found = standing(scores, rows, columns, depth, threads)
    got = [part.tolist() for part in (found.greater, found.tied, found.top, found.top_scores)]
    assert got == slow(scores, rows, columns, depth)


def drawn(seed: int, n_rows: int, n_columns: int, most: int, values: int) -> Asked:
    """Scores of so many different values (0: all different), and up to `most` columns asked of each row."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((n_rows, n_columns)).astype(np.float32)
    if values:
        scores = rng.choice(np.array([-np.inf, 0, 0.5, 7, np.inf, -3], np.float32)[:values], (n_rows, n_columns))
    sizes = rng.integers(0, min(most, n_columns) + 1, n_rows)
    columns = [rng.choice(n_columns, size, replace=False) for size in sizes]
    return scores, np.repeat(np.arange(n_rows), sizes), np.concatenate([np.zeros(0, np.int64), *columns])


@given(
    seed=st.integers(0, 10_000),
    n_rows=st.integers(0, 9),
    n_columns=st.integers(1, 400),
    most=st.sampled_from([0, 1, 3, 20]),
    values=st.integers(0, 6),
    depth=st.integers(0, 30),
    group=st.sampled_from([1, 300, 1 << 17]),
)
@settings(max_examples=300, deadline=None)
def test_counting_equals_sorting(
    seed: int, n_rows: int, n_columns: int, most: int, values: int, depth: int, group: int
) -> None:
    before, _places.GROUP_SCORES = _places.GROUP_SCORES, group
    try:
        same(*drawn(seed, n_rows, n_columns, most, values), min(depth, n_columns))
    finally:
        _places.GROUP_SCORES = before


@pytest.mark.parametrize("values", [0, 2, 5])
@pytest.mark.parametrize("depth", [1, 20, 100])
def test_a_wide_catalogue(values: int, depth: int) -> None:
    """So wide that columns share maxima; with few values nearly everything ties at the last place."""
    same(*drawn(3, 7, 30_011, 5, values), depth)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_what_is_found(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_places, "PARALLEL_COLUMNS", 1)
    monkeypatch.setattr(_places, "GROUP_SCORES", 400)
    same(*drawn(1, 31, 200, 15, 0), 9, threads)
    scores, rows, columns = drawn(1, 31, 200, 15, 0)
    scores[17, 5] = np.nan
    with pytest.raises(ModelError, match=r"scores: 1 of 6200 are not a number"):
        standing(scores, rows, columns, 9, threads)


def test_a_row_that_scores_little_has_few_first_places() -> None:
    scores = np.full((2, 900), -np.inf, np.float32)
    scores[0, [700, 3]] = 1
    found = standing(scores, np.array([0, 1]), np.array([5, 5]), 3)
    assert found.top.tolist() == [[3, 700, -1], [-1, -1, -1]]
    assert (found.greater.tolist(), found.tied.tolist()) == ([2, 0], [898, 900])


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("column", [0, 64, 129])
def test_a_score_that_is_no_number_is_found_anywhere(column: int, depth: int) -> None:
    scores = np.zeros((3, 130), np.float32)
    scores[1, column] = np.nan
    with pytest.raises(ModelError, match=r"scores: 1 of 390 are not a number"):
        standing(scores, np.zeros(0, int), np.zeros(0, int), depth)


def test_what_is_hidden_is_put_back() -> None:
    scores = np.array([[1.0, np.nan, 3.0]])
    places = (np.array([0, 0]), np.array([1, 2]))
    with pytest.raises(ZeroDivisionError), hidden(scores, places) as shown:
        assert shown is scores and shown.tolist() == [[1, -np.inf, -np.inf]]
        raise ZeroDivisionError
    np.testing.assert_array_equal(scores, [[1.0, np.nan, 3.0]])
    scores.flags.writeable = False
    with hidden(scores, places) as shown:
        assert shown is not scores and shown.tolist() == [[1, -np.inf, -np.inf]]
    with hidden(scores, None) as shown:
        assert shown is scores
