"""What is served in the parameters' place, against the formula step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recft.training.served import Served


def parameters(*values: float) -> dict[str, torch.nn.Parameter]:
    return {f"p{place}": torch.nn.Parameter(torch.tensor([value, 2 * value])) for place, value in enumerate(values)}


def move(own: dict[str, torch.nn.Parameter], by: float) -> None:
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(by)


def test_without_average_and_share_the_parameters_themselves_are_served() -> None:
    own = parameters(1.0, -3.0)
    served = Served(own, 0.0, 1.0)
    move(own, 0.5)
    served.update(0)
    assert served.average == {}
    for name, value in served.values().items():
        assert torch.equal(value, own[name]) and value.data_ptr() != own[name].data_ptr()
        assert not value.requires_grad


@given(st.floats(0.01, 0.99), st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0.1, 1.0))
def test_the_average_and_the_way_back_are_their_formulas(decay: float, moves: list[float], share: float) -> None:
    own = parameters(1.0, -3.0)
    start = {name: parameter.detach().clone().double() for name, parameter in own.items()}
    served, expected = Served(own, decay, share), dict(start)
    for step, by in enumerate(moves):
        move(own, by)
        served.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = {
            name: torch.where(own[name] == 0, 0.0, kept * value + (1 - kept) * own[name].detach().double())
            for name, value in expected.items()
        }
    for name, value in served.values().items():
        wanted = start[name] + share * (expected[name] - start[name])
        assert value.tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


def test_what_is_switched_off_stays_off() -> None:
    own = parameters(1.0)
    served = Served(own, 0.9, 1.0)
    with torch.no_grad():
        own["p0"][0] = 0.0
    served.update(5)
    assert served.values()["p0"][0] == 0 and served.values()["p0"][1] == 2


@pytest.mark.parametrize("fails", [False, True])
def test_the_parameters_come_back_also_after_an_error(fails: bool) -> None:
    own = parameters(1.0)
    served = Served(own, 0.5, 0.5)
    move(own, 1.0)
    served.update(3)
    before, inside = own["p0"].detach().clone(), served.values()["p0"]
    try:
        with served.in_place():
            assert torch.equal(own["p0"], inside) and not torch.equal(own["p0"], before)
            if fails:
                raise RuntimeError("scoring failed")
    except RuntimeError:
        assert fails
    assert torch.equal(own["p0"], before)
    served.put(served.values())
    assert torch.equal(own["p0"], inside)


def test_what_is_put_is_the_parameter_s_own_memory() -> None:
    own = parameters(1.0)
    place = own["p0"].data_ptr()
    Served(own, 0.0, 1.0).put({"p0": torch.tensor([5.0, 6.0])})
    assert own["p0"].data_ptr() == place and own["p0"].tolist() == [5, 6]
