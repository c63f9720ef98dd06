"""Drawing ahead gives the same, step for step."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from recft.training.ahead import Ahead


def drawn(step: int) -> np.ndarray:
    return np.random.default_rng([3, step]).normal(size=4)


def test_both_ways_give_the_same() -> None:
    plain, ahead = Ahead(drawn, 6, on=False), Ahead(drawn, 6, on=True)
    for step in (0, 1, 2, 4, 5):  # a run that was resumed jumps
        assert np.array_equal(plain.take(step), ahead.take(step))
        ahead.wait()
    plain.close()
    ahead.close()


def test_the_next_one_is_made_while_this_one_is_used() -> None:
    threads: dict[int, str] = {}
    begun = threading.Event()

    def make(step: int) -> int:
        threads[step] = threading.current_thread().name
        if step == 1:
            begun.set()
        return step

    ahead = Ahead(make, 3, on=True)
    assert ahead.take(0) == 0
    assert begun.wait(10), "nobody makes the next one"
    assert [ahead.take(1), ahead.take(2)] == [1, 2]
    ahead.close()
    assert sorted(threads) == [0, 1, 2], "each is made once, and none after the last"
    assert threads[0] != threads[1] == threads[2]


def test_after_waiting_nothing_is_made() -> None:
    done = threading.Event()

    def make(step: int) -> int:
        if step:
            done.wait(0.05)
            done.set()
        return step

    ahead = Ahead(make, 3, on=True)
    ahead.take(0)
    ahead.wait()
    assert done.is_set()
    ahead.close()


def test_an_error_is_told_with_the_step_that_it_belongs_to() -> None:
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("row 7")
        return step

    ahead = Ahead(make, 3, on=True)
    assert ahead.take(0) == 0
    ahead.wait()
    with pytest.raises(ValueError, match="row 7"):
        ahead.take(1)
    ahead.close()
