"""One step's gradients: cached or at once, on one process or two, they are the same sum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from step_toys import Ranks, Work, assert_close, work_of
from torch import Tensor

from recft.recipe import Recipe
from recft.training.step import Gradients, Sums, gradients

ToyRecipe = Callable[..., Recipe]


@pytest.fixture
def work(toy_recipe: ToyRecipe, tmp_path: Path) -> Callable[..., Work]:
    def make(
        task: str, kind: str = "encoder", dropout: float = 0.0, method: dict[str, Any] | None = None, **sections: Any
    ) -> Work:
        method = method or {"name": "lora", "rank": 4}
        recipe = toy_recipe(task, kind, method, tune={"dropout": dropout}, **sections)
        return work_of(recipe, tmp_path / "data")

    return make


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        *((task, kind) for task in ("retrieval", "next-item", "purchase") for kind in ("encoder", "causal")),
        ("classify", "encoder"),
        ("reply", "causal"),
    ],
)
def test_cached_gradients_equal_those_of_one_pass(task: str, kind: str, work: Callable[..., Work]) -> None:
    job = work(task, kind)
    whole, expected = job.run(len(job.texts))
    for micro_batch in (1, 2):
        sums, found = job.run(micro_batch)
        assert sums.loss == pytest.approx(whole.loss, rel=1e-5) and sums.n_tokens == whole.n_tokens
        assert_close(found, expected)


def test_one_pass_equals_autograd_without_any_chunks(work: Callable[..., Work]) -> None:
    from recft.models.text_model import padded
    from recft.models.tokens import tokenize

    job = work("retrieval")
    _, found = job.run(len(job.texts))
    model, tokenizer = job.tuned.model, job.tuned.tokenizer
    tokens = tokenize(tokenizer, job.texts, 32)
    batch = padded(tokens, np.arange(len(tokens)), int(tokenizer.pad_token_id), model.device, 32)
    parameters = job.tuned.attached.parameters()
    grads = torch.autograd.grad(job.loss(model(**batch)), list(parameters.values()))
    assert_close(found, dict(zip(parameters, grads, strict=True)))


def test_dropout_is_the_same_in_both_passes(work: Callable[..., Work]) -> None:
    job = work("retrieval", dropout=0.5)
    # Chunks of two rows, a graph for one or two: the same masks, and so the same loss.
    first, expected = job.run(2)
    second, found = job.run(2)
    assert first == second
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    assert first.loss != work("retrieval").run(2)[0].loss, "dropout did nothing"


@pytest.mark.parametrize("micro_batch", [2, 64])
def test_the_shares_of_two_processes_sum_to_one_process(micro_batch: int, work: Callable[..., Work]) -> None:
    job = work("retrieval")
    whole, expected = job.run(len(job.texts))
    sent = []
    for index in range(2):  # what each sends; its gradients are of half the outputs, and of no use
        ranks = Ranks(2, index)
        job.run(micro_batch, ranks)
        sent.append(ranks.mine)
    shares = []
    for index in range(2):
        sums, found = job.run(micro_batch, Ranks(2, index, others=sent[1 - index]))
        assert sums.loss == pytest.approx(whole.loss, rel=1e-5)
        shares.append(found)
    zero = {name: torch.zeros_like(grad) for name, grad in expected.items()}
    first, second = shares
    assert_close({name: first.get(name, zero[name]) + second.get(name, zero[name]) for name in expected}, expected)


def test_the_penalty_and_the_scale_reach_gradients_and_not_the_loss_that_is_told(work: Callable[..., Work]) -> None:
    job = work("retrieval")
    plain, expected = job.run(64)
    parameters = job.tuned.attached.parameters()

    def with_penalty(micro_batch: int) -> tuple[Sums, dict[str, Tensor]]:
        for parameter in parameters.values():
            parameter.grad = None

        def penalty() -> Tensor:
            return torch.stack([parameter.sum() for parameter in parameters.values()]).sum()

        work = Gradients(job.tuned.model, job.tuned.tokenizer, penalty, Ranks(), seed=5, loss_scale=8.0)
        sums = gradients(work, job.texts, job.loss, micro_batch)
        return sums, {name: parameter.grad / 8 for name, parameter in parameters.items() if parameter.grad is not None}

    for micro_batch in (64, 2):
        sums, found = with_penalty(micro_batch)
        assert sums.loss == pytest.approx(plain.loss, rel=1e-5)
        assert_close(found, {name: grad + 1 for name, grad in expected.items()})


# -- passes that share beginnings -------------------------------------------------------------------------------------

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 4},
    "dora": {"name": "lora", "rank": 4, "dora": True},
    "adalora": {"name": "adalora", "rank": 4},
    "prefix": {"name": "prefix", "virtual_tokens": 3, "init": "random"},
    "houlsby": {"name": "bottleneck", "reduction_factor": 4},
    "parallel": {"name": "bottleneck", "reduction_factor": 4, "placement": "parallel"},
    "upper": {"name": "lora", "rank": 4, "layers": "last 1"},
}


def plain(job: Work, monkeypatch: pytest.MonkeyPatch) -> tuple[Sums, dict[str, Tensor]]:
    """The same step with every text padded to the longest."""
    with monkeypatch.context() as patch:
        patch.setattr("recft.models.passes._takes_layouts", lambda *_: False)
        return job.run(len(job.texts))


@pytest.mark.parametrize("task", ["retrieval", "next-item", "purchase", "rating", "relevance", "classify", "reply"])
def test_a_layout_gives_every_tasks_loss_and_gradients(
    task: str, work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work(task, "causal")
    sums, expected = plain(job, monkeypatch)
    for micro_batch in (len(job.texts), 2):
        found = job.run(micro_batch)
        assert found[0].loss == pytest.approx(sums.loss, rel=1e-5)
        assert_close(found[1], expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_layout_gives_every_methods_gradients(
    method: str, quantization: str, work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    if (method, quantization) == ("dora", "int8"):
        pytest.skip("refused: PEFT's DoRA cannot start over int8 layers")
    job = work("purchase", "causal", method=METHODS[method], model={"quantization": quantization})
    sums, expected = plain(job, monkeypatch)
    found = job.run(len(job.texts))
    assert found[0].loss == pytest.approx(sums.loss, rel=1e-5)
    assert_close(found[1], expected)
