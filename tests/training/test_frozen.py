"""Tuning the upper layers alone: what lies below is computed once a text, and nothing else changes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from step_toys import Work, work_of
from step_toys import assert_close as assert_gradients
from torch import Tensor

from recft.models import hidden_store
from recft.models.blocks import blocks_of, checkpoint_blocks
from recft.models.bottom import Bottom
from recft.models.hidden_store import HiddenStore
from recft.recipe import Recipe
from recft.training import checkpoint, loop
from recft.training.assemble import load_adapter
from recft.training.step import Sums
from recft.tune import tune

ToyRecipe = Callable[..., Recipe]

UPPER = {"layers": "last 1"}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "adalora": {"rank": 4},
    "prefix": {"virtual_tokens": 3, "init": "random"},
    "bottleneck": {"reduction_factor": 4},
}


@pytest.fixture
def work(toy_recipe: ToyRecipe, tmp_path: Path) -> Callable[..., Work]:
    def make(task: str, kind: str = "encoder", method: str = "lora", dropout: float = 0.0, **sections: Any) -> Work:
        settings = {"name": method, **METHODS[method], **UPPER}
        recipe = toy_recipe(task, kind, settings, tune={"dropout": dropout}, **sections)
        return work_of(recipe, tmp_path / "data")

    return make


@pytest.fixture
def below(tmp_path: Path) -> Iterator[Callable[..., Bottom]]:
    """Makes the lowest block of a model computed once a text, over a store that is closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(job: Work, name: str = "store", most_bytes: int = 10**8) -> Bottom:
            store = stack.enter_context(contextlib.closing(HiddenStore(tmp_path / name, most_bytes)))
            bottom = Bottom.of(job.tuned.model, 1, store, "toy")
            assert bottom is not None
            return bottom

        yield make


def assert_close(found: tuple[Sums, dict[str, Tensor]], expected: tuple[Sums, dict[str, Tensor]]) -> None:
    assert found[0].loss == pytest.approx(expected[0].loss, rel=1e-5) and found[0].n_tokens == expected[0].n_tokens
    assert_gradients(found[1], expected[1])


def assert_equal(found: tuple[Sums, dict[str, Tensor]], expected: tuple[Sums, dict[str, Tensor]]) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], grad) for name, grad in expected[1].items())


def counted(job: Work, patch: pytest.MonkeyPatch) -> list[int]:
    """How often the lowest block's first linear layer is called, from here on, in a list of one."""
    calls = [0]
    linear = next(module for module in blocks_of(job.tuned.model.base)[0].modules() if hasattr(module, "in_features"))
    forward = linear.forward

    def call(*inputs: Any, **options: Any) -> Any:
        calls[0] += 1
        return forward(*inputs, **options)

    patch.setattr(linear, "forward", call)
    return calls


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "causal"])
@pytest.mark.parametrize("method", METHODS)
def test_no_graph_is_built_below_the_lowest_adapter(
    method: str, kind: str, checkpointing: bool, work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = work("retrieval", kind, method)
    if checkpointing:
        checkpoint_blocks(job.tuned.model.base)
    seen: list[list[bool]] = [[], []]

    def watched(number: int, forward: Any) -> Any:
        def call(*inputs: Any, **options: Any) -> Any:
            out = forward(*inputs, **options)
            if torch.is_grad_enabled():  # a trial of the base, before its first pass, has none
                seen[number].append((out[0] if isinstance(out, tuple) else out).requires_grad)
            return out

        return call

    for number, block in enumerate(blocks_of(job.tuned.model.base)):
        monkeypatch.setattr(block, "forward", watched(number, block.forward))
    job.run()
    assert set(seen[0]) == {False} and set(seen[1]) == {True}


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        *((task, kind) for task in ("retrieval", "purchase", "classify") for kind in ("encoder", "causal")),
        ("next-item", "encoder"),
        ("rating", "encoder"),
        ("relevance", "causal"),
        ("reply", "causal"),
    ],
)
def test_every_tasks_loss_and_gradients_are_those_without(
    task: str,
    kind: str,
    work: Callable[..., Work],
    below: Callable[..., Bottom],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = work(task, kind)
    expected = job.run()
    bottom = below(job)
    first = job.run(bottom=bottom)
    assert_close(first, expected)
    calls = counted(job, monkeypatch)
    assert_equal(job.run(bottom=bottom), first)
    assert_close(job.run(2, bottom=bottom), expected)
    assert calls == [0], "a lower block was called for texts that are stored"


@pytest.mark.parametrize(
    ("kind", "quantization"), [("encoder", "none"), ("causal", "none"), ("encoder", "nf4"), ("causal", "int8")]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_methods_gradients_are_those_without_half_of_the_texts_stored_too(
    method: str, kind: str, quantization: str, work: Callable[..., Work], below: Callable[..., Bottom]
) -> None:
    job = work("purchase", kind, method, model={"quantization": quantization})
    bottom = below(job)
    expected = job.run()
    Work(job.tuned, job.texts[::2], lambda outputs: outputs.sum()).run(bottom=bottom)
    assert len(bottom._store) == len(job.texts[::2])
    found = job.run(bottom=bottom)
    assert_close(found, expected)
    assert len(bottom._store) == len(job.texts)
    assert_equal(job.run(bottom=bottom), found)


def test_texts_of_every_script_have_places_of_their_own(
    work: Callable[..., Work], below: Callable[..., Bottom]
) -> None:
    job = work("retrieval")
    texts = ["打印机 墨盒", "🎒🎒 red", "ＯＡＫ desk", "red 🎒🎒", "", "a" * 300, "打印机 墨盒 黑色"]
    expected = Work(job.tuned, texts, lambda outputs: (outputs[:, :7] * torch.arange(1, 8)).sum()).run()
    bottom = below(job)
    for _ in range(2):
        assert_close(
            Work(job.tuned, texts, lambda o: (o[:, :7] * torch.arange(1, 8)).sum()).run(bottom=bottom), expected
        )


def test_dropout_of_the_adapter_is_the_same_over_stored_texts(
    work: Callable[..., Work], below: Callable[..., Bottom]
) -> None:
    job = work("retrieval", dropout=0.5)
    bottom = below(job)
    expected = job.run(micro_batch=2)
    first = job.run(2, bottom=bottom)
    assert_close(first, expected)
    assert_equal(job.run(2, bottom=bottom), first)


def test_it_goes_with_blocks_that_are_computed_again(work: Callable[..., Work], below: Callable[..., Bottom]) -> None:
    job = work("purchase", "causal", dropout=0.3)
    expected = job.run()
    checkpoint_blocks(job.tuned.model.base)
    bottom = below(job)
    for _ in range(2):
        assert_close(job.run(bottom=bottom), expected)


def test_a_damaged_store_and_a_full_one_give_the_same_gradients(
    work: Callable[..., Work], below: Callable[..., Bottom], tmp_path: Path
) -> None:
    job = work("retrieval", "causal")
    expected = job.run()
    job.run(bottom=below(job, "damaged"))
    numbers = tmp_path / "damaged" / "states.bin"
    raw = bytearray(numbers.read_bytes())
    raw[::997] = bytes(0xFF ^ byte for byte in raw[::997])
    numbers.write_bytes(raw)
    assert_close(job.run(bottom=below(job, "damaged")), expected)
    for most_bytes in (0, len(raw) * 2 // 3):
        small = below(job, f"small-{most_bytes}", most_bytes)
        for _ in range(2):
            assert_close(job.run(2, bottom=small), expected)
        store = small._store
        assert store.full and store.n_bytes <= most_bytes and bool(most_bytes) == bool(len(store))


# -- runs -------------------------------------------------------------------------------------------------------------

LORA = {"name": "lora", "rank": 4, **UPPER}


def long_enough(**settings: Any) -> dict[str, Any]:
    """Two epochs and a half."""
    steps = {"batch_size": 6, "epochs": 2.5, "max_steps": None, "checkpoint_every_steps": 3, "eval_every_steps": 100}
    return {**steps, "eval_records": 4, "calibration": "none", **settings}


def states_of(run: Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint, and of its adapter."""
    newest = max((run / "checkpoints").iterdir())
    return {**load_file(newest / "state.safetensors"), **load_adapter(run / "adapter")[1]}


class Killed(BaseException):
    """What no part of the program expects."""


@pytest.mark.parametrize(
    ("task", "kind", "method", "most_gb"),
    [
        ("retrieval", "encoder", "lora", 3e-5),
        ("purchase", "causal", "prefix", 4),
        ("classify", "encoder", "bottleneck", 4),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    task: str,
    kind: str,
    method: str,
    most_gb: float,
    toy_recipe: ToyRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"name": method, **METHODS[method], **UPPER}
    size = {"batch_size": 40} if task == "purchase" else {}
    recipe = toy_recipe(task, kind, settings, tune=long_enough(frozen_cache_gb=most_gb, micro_batch_size=2, **size))
    tune(recipe, tmp_path / "whole")
    one_step = loop._Loop.one_step
    steps: list[int] = []

    def killed(self: Any) -> None:
        one_step(self)
        if self.job.folder is not None and self.progress.step > 0.7 * self.total and self.progress.step % 3 == 2:
            steps.append(self.progress.step)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "one_step", killed)
        with pytest.raises(Killed):
            tune(recipe, tmp_path / "cut")
    # Two steps are done again, over what they stored the first time.
    newest = checkpoint.latest(tmp_path / "cut" / "checkpoints")
    assert newest is not None and newest.name == f"step-{steps[0] - 2:08d}"
    with contextlib.closing(HiddenStore(tmp_path / "cut" / "frozen", int(most_gb * 1e9))) as store:
        assert len(store) and store.full == (most_gb < 1)
    tune(recipe, tmp_path / "cut", resume=True)
    whole, cut = states_of(tmp_path / "whole"), states_of(tmp_path / "cut")
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items()) and cut.keys() == whole.keys()
    assert not (tmp_path / "cut" / "frozen").exists() and not (tmp_path / "whole" / "frozen").exists()


class Begun(Exception):  # noqa: N818
    """A run has come so far as a test wants it."""


@pytest.fixture
def frozen_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Path], list[int]]:
    """How many blocks each stage of a run computes once a text; the last stage is only begun."""

    def of(recipe: Recipe, run: Path) -> list[int]:
        found: list[int] = []

        def watched(job: Any, resume: bool = False) -> Any:
            found.append(len(job.bottom._blocks) if job.bottom else 0)
            if job.own:
                raise Begun
            return loop.fit(job, resume)

        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["recft.tune"], "fit", watched)
            with pytest.raises(Begun):
                tune(recipe, run)
        return found

    return of


def test_the_stage_of_a_new_head_alone_computes_every_block_once(
    toy_recipe: ToyRecipe, tmp_path: Path, frozen_blocks: Callable[[Recipe, Path], list[int]]
) -> None:
    sizes = {"batch_size": 40}
    assert frozen_blocks(toy_recipe("classify", tune=long_enough(**sizes)), tmp_path / "all") == [2, 0]
    upper = toy_recipe("classify", method=LORA, tune=long_enough(**sizes))
    assert frozen_blocks(upper, tmp_path / "upper") == [2, 1]
    never = toy_recipe("classify", method=LORA, tune=long_enough(frozen_cache_gb=0, **sizes))
    assert frozen_blocks(never, tmp_path / "never") == [0, 0]


@pytest.mark.parametrize(
    ("changes", "active"),
    [
        ({}, True),
        ({"tune": {"frozen_cache_gb": 0}}, False),
        ({"tune": {"max_steps": 2}}, False),  # less than an epoch
        ({"tune": {"epochs": 1.2}}, False),  # what is saved is less than it may cost
        ({"tune": {"augment": {"typos": 1.0}}}, True),  # of queries: items are the same
        ({"task": "purchase", "tune": {"batch_size": 100}}, True),
        ({"task": "purchase", "tune": {"batch_size": 100, "augment": {"typos": 1.0}}}, False),
        ({"method": {"layers": "all"}}, False),
        ({"method": {"layers": [1]}}, True),
        ({"method": {"layers": [0, 1]}}, False),
    ],
)
def test_it_is_used_where_texts_come_again(
    changes: dict[str, Any],
    active: bool,
    toy_recipe: ToyRecipe,
    tmp_path: Path,
    frozen_blocks: Callable[[Recipe, Path], list[int]],
) -> None:
    method = {**LORA, **changes.get("method", {})}
    kind = "causal" if "task" in changes else "encoder"
    recipe = toy_recipe(changes.get("task", "retrieval"), kind, method, tune=long_enough(**changes.get("tune", {})))
    assert frozen_blocks(recipe, tmp_path / "run") == [int(active)]


def test_a_run_begun_anew_forgets_an_old_store(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recipe = toy_recipe(method=LORA, tune=long_enough())
    tune(recipe, run)
    (run / "frozen").mkdir()
    (run / "frozen" / "old").touch()
    tune(toy_recipe(method=LORA, tune=long_enough(frozen_cache_gb=0)), run, force=True)
    assert not (run / "frozen" / "old").exists()


def test_a_run_over_a_full_disk_says_so_and_ends_well(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = hidden_store._append
    calls: list[int] = []

    def full(file: Any, offset: int, content: Any) -> int:
        calls.append(1)
        if len(calls) > 3:
            append(file, offset, bytes(content)[:100])
            raise OSError(28, "No space left on device")
        return append(file, offset, content)

    plain = tune(toy_recipe(method=LORA, tune=long_enough(frozen_cache_gb=0)), tmp_path / "plain")
    monkeypatch.setattr(hidden_store, "_append", full)
    heard: list[str] = []
    found = tune(
        toy_recipe(method=LORA, tune=long_enough()),
        tmp_path / "full",
        listen=lambda event, values: heard.append(str(values.get("text"))) if event == "warning" else None,
    )
    assert sum("No space left" in text for text in heard) == 1
    assert found["steps"] == plain["steps"]
    expected = load_adapter(tmp_path / "plain" / "adapter")[1]
    for name, tensor in load_adapter(tmp_path / "full" / "adapter")[1].items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), name
