"""Blocks that are computed again, or compiled, compute what plain ones do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from recft.models.blocks import blocks_of, checkpoint_blocks, compiled, compiled_forwards

IDS = torch.arange(48).reshape(4, 12) % 37 + 5


@pytest.fixture
def base_of(tiny_bert: Path, tiny_llama: Path) -> Callable[[str], PreTrainedModel]:
    """A base in training mode of which all the linear weights of the upper block train."""

    def make(kind: str) -> PreTrainedModel:
        base: PreTrainedModel = AutoModel.from_pretrained(
            tiny_bert if kind == "bert" else tiny_llama, attn_implementation="eager"
        )
        base.requires_grad_(False).train()
        for module in base.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        for module in blocks_of(base)[-1].modules():
            if isinstance(module, nn.Linear):
                module.weight.requires_grad_(True)
        return base

    return make


def gradients(base: PreTrainedModel) -> dict[str, Tensor]:
    base.zero_grad()
    torch.manual_seed(7)
    options = {"use_cache": False} if base.config.model_type == "llama" else {}
    base(input_ids=IDS, **options).last_hidden_state.square().mean().backward()
    return {name: p.grad.clone() for name, p in base.named_parameters() if p.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and expected
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_blocks_are_found_from_the_bottom_up(base_of: Callable[[str], PreTrainedModel]) -> None:
    for kind, inside in (("bert", "encoder.layer"), ("llama", "layers")):
        base = base_of(kind)
        assert blocks_of(base) == list(base.get_submodule(inside).children())


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("number", [1, None])
def test_checkpointed_gradients_are_the_plain_ones_dropout_and_all(
    number: int | None, kind: str, base_of: Callable[[str], PreTrainedModel]
) -> None:
    base = base_of(kind)
    expected = gradients(base)
    passes = [0] * len(blocks_of(base))
    for place, block in enumerate(blocks_of(base)):
        norm = next(module for module in block.modules() if "Norm" in type(module).__name__)

        def count(*_: object, place: int = place) -> None:
            passes[place] += 1

        norm.register_forward_hook(count)
    checkpoint_blocks(base, number)
    assert_near(gradients(base), expected)
    # The lower block has no parameter that trains: it is not computed again even where it could be.
    assert passes == [1, 2]
    checkpoint_blocks(base, 0)
    passes[:] = [0, 0]
    assert_near(gradients(base), expected)
    assert passes == [1, 1]


def test_the_backward_pass_ends_at_the_lowest_block_that_trains(base_of: Callable[[str], PreTrainedModel]) -> None:
    base = base_of("llama")
    checkpoint_blocks(base)
    with torch.enable_grad():
        assert not base.get_input_embeddings()(IDS).requires_grad


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_compiled_blocks_compute_what_plain_ones_do(kind: str, base_of: Callable[[str], PreTrainedModel]) -> None:
    base = base_of(kind)
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # compiled code draws in another order
    expected = gradients(base)
    forwards = compiled_forwards(base, backend="eager")  # traced, but not built: that takes a compiler, and its time
    plain = [block.forward for block in blocks_of(base)]
    with compiled(forwards):
        assert all(block.forward is forward for block, forward in forwards)
        assert_near(gradients(base), expected)
    assert [block.forward for block in blocks_of(base)] == plain
    assert_near(gradients(base), expected)


def test_blocks_come_back_as_they_were_after_an_error(base_of: Callable[[str], PreTrainedModel]) -> None:
    base = base_of("bert")
    own = blocks_of(base)[0].__dict__.setdefault("forward", blocks_of(base)[0].forward)  # as a method's may be
    with pytest.raises(MemoryError), compiled([(block, lambda *_: None) for block in blocks_of(base)]):
        raise MemoryError
    assert blocks_of(base)[0].__dict__["forward"] is own
    assert "forward" not in blocks_of(base)[1].__dict__
