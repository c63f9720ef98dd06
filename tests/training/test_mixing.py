"""The order of steps: shares by weight, every example once an epoch, and nothing but the seed behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.training.mixing import Order, Part, epoch_steps

Sizes = list[int]


def parts(sizes: Sizes, weights: list[float] | None = None) -> list[Part]:
    nothing: Any = None
    return [
        Part(nothing, size, nothing, nothing, weight=weight)
        for size, weight in zip(sizes, weights or [1.0] * len(sizes), strict=True)
    ]


def at(order: Order, made: list[Part], step: int) -> tuple[int, list[int]]:
    part, rows = order.at(step)
    return next(number for number, one in enumerate(made) if one is part), rows.tolist()


def steps(order: Order, made: list[Part], total: int) -> list[tuple[int, list[int]]]:
    return [at(order, made, step) for step in range(total)]


def test_one_task_is_shuffled_as_it_always_was() -> None:
    made = parts([10])
    order = Order(made, 4, 9, seed=3)
    for epoch in range(3):
        whole = np.random.default_rng([3, 0, epoch]).permutation(10)
        for place in range(3):
            part, rows = order.at(3 * epoch + place)
            assert part is made[0]
            assert rows.tolist() == whole[4 * place : 4 * place + 4].tolist()


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(0, 5),
    st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_every_example_stands_once_in_each_epoch_of_its_task(
    sizes: Sizes, batch_size: int, seed: int, weights: list[float]
) -> None:
    made = parts(sizes, weights[: len(sizes)])
    found = steps(Order(made, batch_size, 60, seed), made, 60)
    for number, size in enumerate(sizes):
        own = [rows for task, rows in found if task == number]
        each = -(-size // batch_size)
        for start in range(0, len(own) - each + 1, each):
            assert sorted(row for rows in own[start : start + each] for row in rows) == list(range(size))
        assert all(0 < len(rows) <= batch_size for rows in own)


@given(st.lists(st.floats(0.05, 20), min_size=2, max_size=5), st.integers(1, 200))
def test_no_task_is_ever_further_behind_its_share_than_the_others_allow(weights: list[float], total: int) -> None:
    made = parts([7] * len(weights), weights)
    found = [task for task, _ in steps(Order(made, 2, total, 0), made, total)]
    shares = np.array(weights) / sum(weights)
    given_ = np.zeros(len(weights))
    for step, task in enumerate(found):
        given_[task] += 1
        assert np.all(np.abs(given_ - shares * (step + 1)) < len(weights)), step


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 1.0], "01010101"), ([1.0, 2.0, 1.0], "10211021"), ([3.0, 1.0], "00100010"), ([1.0, 3.0], "10111011")],
)
def test_turns_by_hand(weights: list[float], expected: str) -> None:
    made = parts([5] * len(weights), weights)
    found = "".join(str(task) for task, _ in steps(Order(made, 2, 8, 0), made, 8))
    assert found == expected


def test_the_order_is_a_function_of_the_seed() -> None:
    made = parts([9, 5], [1, 2])
    one, same, other = (steps(Order(made, 3, 30, seed), made, 30) for seed in (4, 4, 5))
    assert one == same != other
    assert [task for task, _ in one] == [task for task, _ in other]


def test_a_resumed_run_needs_nothing_but_its_step() -> None:
    made = parts([9, 5, 30], [1, 2, 0.5])
    whole = steps(Order(made, 3, 40, 1), made, 40)
    late = Order(made, 3, 40, 1)
    for step in (39, 17, 17, 3):
        assert at(late, made, step) == whole[step]


def test_an_epoch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts([40, 20], [1, 1])
    seeds = [[4, 0, epoch, number] for epoch in range(4) for number in range(2)]
    expected = {tuple(seed): np.random.default_rng(seed).permutation(made[seed[3]].n_examples) for seed in seeds}
    drawn: list[tuple[int, ...]] = []
    generator = np.random.default_rng

    def noted(seed: list[int]) -> np.random.Generator:
        drawn.append(tuple(seed))
        return generator(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    order = Order(made, 10, 16, seed=4)
    for step in range(16):
        part, rows = order.at(step)
        number = step % 2
        epoch, place = divmod(step // 2, 4 - 2 * number)
        assert part is made[number]
        assert rows.tolist() == expected[4, 0, epoch, number][10 * place : 10 * place + 10].tolist()
        rows[:] = -1
    # Eight steps each: two epochs of the first, four of the second, in turns and yet each drawn once.
    assert sorted(drawn) == [
        (4, 0, epoch, number) for epoch, number in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 1)]
    ]


def test_tasks_of_one_size_are_shuffled_apart() -> None:
    made = parts([50, 50])
    found = steps(Order(made, 50, 2, 0), made, 2)
    assert found[0][1] != found[1][1]


def test_an_epoch_is_as_many_steps_as_all_tasks_need() -> None:
    assert epoch_steps([10], 4) == 3
    assert epoch_steps([10, 4, 1], 4) == 5
