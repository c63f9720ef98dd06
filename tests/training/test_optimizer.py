"""The optimizer and the gradients' norm against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from recft.errors import TuneError
from recft.schema import TuneSettings
from recft.training import optimizer

SHAPES = {"b.weight": (8, 5), "a.weight": (3, 8), "norm": (8,), "scale": (1,)}
CPU = torch.device("cpu")


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in SHAPES.items()}


def test_adamw_is_its_formula() -> None:
    settings = TuneSettings(learning_rate=1e-2, weight_decay=0.1, betas=(0.8, 0.95))
    found, expected = parameters(), {name: p.detach().double() for name, p in parameters().items()}
    adamw = optimizer.make(found, settings, CPU)
    means = {name: (torch.zeros(shape).double(), torch.zeros(shape).double()) for name, shape in SHAPES.items()}
    for step in range(20):
        for name, gradient in gradients(step).items():
            found[name].grad = gradient.clone()
            first, second = means[name]
            first.mul_(0.8).add_(gradient.double(), alpha=0.2)
            second.mul_(0.95).add_(gradient.double() ** 2, alpha=0.05)
            decay = 0.1 if len(SHAPES[name]) >= 2 else 0.0
            root = (second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
            move = first / (1 - 0.8 ** (step + 1)) / root
            expected[name] = expected[name] * (1 - 1e-2 * decay) - 1e-2 * move
        adamw.step()
    for name, parameter in found.items():
        assert torch.allclose(parameter.double(), expected[name], rtol=1e-6, atol=1e-6), name


def test_its_state_comes_back_bitwise() -> None:
    settings = TuneSettings()

    def run(found: dict[str, nn.Parameter], adamw: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for name, gradient in gradients(step).items():
                found[name].grad = gradient.clone()
            adamw.step()

    whole = parameters()
    run(whole, optimizer.make(whole, settings, CPU), range(6))
    begun = parameters()
    adamw = optimizer.make(begun, settings, CPU)
    run(begun, adamw, range(3))
    tensors, plain = optimizer.state_of(adamw, begun)
    resumed = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in begun.items()}
    other = optimizer.make(resumed, settings, CPU)
    optimizer.load_state(other, resumed, {name: tensor.clone() for name, tensor in tensors.items()}, plain)
    run(resumed, other, range(3, 6))
    for name, parameter in whole.items():
        assert torch.equal(parameter, resumed[name]), name


@pytest.mark.parametrize("kind", ["adamw8bit", "paged_adamw8bit"])
def test_optimizers_of_a_gpu_are_refused_without_one(kind: str) -> None:
    with pytest.raises(TuneError, match=r"tune.optimizer: .* on cpu .*fix: set tune.optimizer: adamw"):
        optimizer.make(parameters(), TuneSettings.model_validate({"optimizer": kind}), CPU)


def test_the_norm_is_that_of_all_gradients_together() -> None:
    found = list(gradients(0).values())
    norm, finite = optimizer.gradient_norm(found)
    assert finite
    assert float(norm) == pytest.approx(float(torch.cat([gradient.flatten() for gradient in found]).norm()), rel=1e-6)
    parameters_ = [nn.Parameter(torch.zeros_like(gradient)) for gradient in found]
    again = [nn.Parameter(torch.zeros_like(gradient)) for gradient in found]
    for parameter, other, gradient in zip(parameters_, again, found, strict=True):
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
    torch.nn.utils.clip_grads_with_norm_(parameters_, 0.3, norm)
    torch.nn.utils.clip_grad_norm_(again, 0.3)
    for parameter, other in zip(parameters_, again, strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert torch.equal(parameter.grad, other.grad)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_noticed(value: float) -> None:
    found = list(gradients(0).values())
    found[2][3] = value
    assert not optimizer.gradient_norm(found)[1]


def test_large_gradients_are_finite_though_their_squares_are_not() -> None:
    norm, finite = optimizer.gradient_norm([torch.full((4,), 1e30)])
    assert finite and not norm.isfinite()


def test_no_gradients_have_a_norm_of_zero() -> None:
    norm, finite = optimizer.gradient_norm([])
    assert finite and not float(norm)
