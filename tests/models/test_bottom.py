"""The frozen bottom: what is handed to the blocks above is what they would be given, on every kind of base."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from recft.models.blocks import blocks_of
from recft.models.bottom import Bottom
from recft.models.hidden_store import HiddenStore
from recft.models.passes import passes
from recft.models.text_model import Serving, TextModel
from recft.models.tokens import Tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
GROUPED = {"num_key_value_heads": 2}
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("encoder", "Bert", {}),
    "roberta": ("encoder", "Roberta", {"pad_token_id": 0}),
    "llama": ("causal", "Llama", GROUPED),
    "qwen3": ("causal", "Qwen3", {**GROUPED, "head_dim": 8}),
    "mistral": ("causal", "Mistral", {**GROUPED, "sliding_window": None}),
}
TEXTS = [[5, 7, 9, 11, 13, 4], [5, 7, 9, 8], [6, 3], [5, 7, 9, 11, 2, 2, 2, 41, 40], [50, 51, 52, 53, 54]]


def model_of(name: str) -> TextModel:
    """A tiny base whose texts are vectors: of the last token, or the mean."""
    kind, family, more = BASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **more)
    base: PreTrainedModel = getattr(transformers, f"{family}{'ForCausalLM' if kind == 'causal' else 'Model'}")(config)
    for parameter in base.eval().parameters():
        parameter.requires_grad_(False)
    return TextModel(base, Serving("retrieval", kind, "embedding", "last" if kind == "causal" else "mean", True, 64))


def tokens_of(texts: list[list[int]]) -> list[Tokens]:
    return [{"input_ids": text} for text in texts]


def outputs(model: TextModel, texts: list[list[int]], bottom: Bottom | None = None) -> Tensor:
    found = torch.zeros(len(texts), 32)
    for one in passes(model, tokens_of(texts), 0, 16, bottom):  # several passes
        found[torch.from_numpy(one.texts)] = one.outputs()
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextModel], list[int]]:
    """How often the blocks of a model compute, from here on."""

    def watch(model: TextModel) -> list[int]:
        counts = [0] * len(blocks_of(model.base))

        def counted(number: int, forward: Any) -> Any:
            def call(*inputs: Any, **options: Any) -> Any:
                counts[number] += 1
                return forward(*inputs, **options)

            return call

        for number, block in enumerate(blocks_of(model.base)):
            linear = next(module for module in block.modules() if isinstance(module, nn.Linear))
            monkeypatch.setattr(linear, "forward", counted(number, linear.forward))
        return counts

    return watch


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HiddenStore]:
    made = HiddenStore(tmp_path, 10**7)
    yield made
    made.close()


def bottom_of(model: TextModel, store: HiddenStore, n_blocks: int = 2) -> Bottom:
    bottom = Bottom.of(model, n_blocks, store, "toy")
    assert bottom is not None
    return bottom


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
@pytest.mark.parametrize("name", BASES)
def test_a_text_comes_out_as_it_does_without(
    name: str, n_blocks: int, store: HiddenStore, calls: Callable[[TextModel], list[int]]
) -> None:
    model = model_of(name)
    expected = outputs(model, TEXTS)
    bottom = bottom_of(model, store, n_blocks)
    with torch.no_grad():
        half = outputs(model, TEXTS[:2], bottom)
    assert torch.allclose(half, expected[:2], atol=1e-6)
    assert torch.allclose(outputs(model, TEXTS, bottom), expected, atol=1e-6), "half of them stored"
    counts = calls(model)
    again = outputs(model, TEXTS, bottom)
    assert torch.allclose(again, expected, atol=1e-6)
    assert counts[:n_blocks] == [0] * n_blocks, "lower blocks computed what is stored"
    assert all(counts[n_blocks:]), "upper blocks were not called"
    order = [3, 0, 4, 2, 1]
    shuffled = outputs(model, [TEXTS[text] for text in order], bottom)
    assert torch.allclose(shuffled, expected[order], atol=1e-6)


def test_only_new_texts_go_through_the_lower_blocks(store: HiddenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("bert")
    bottom = bottom_of(model, store)
    outputs(model, TEXTS[:3], bottom)
    seen: list[int] = []
    lowest: Any = blocks_of(model.base)[0]
    linear = lowest.attention.self.query
    forward = linear.forward

    def call(hidden: Tensor) -> Any:
        seen.append(len(hidden))
        return forward(hidden)

    monkeypatch.setattr(linear, "forward", call)
    outputs(model, TEXTS, bottom)
    assert sum(seen) == 2, "rows of the two new texts"


def test_blocks_that_give_tuples_are_handed_tuples(store: HiddenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    expected = outputs(model, TEXTS)

    class Unpacked(nn.Module):
        """A list of blocks of the older kind, whose caller takes the first of what they give."""

        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, *inputs: Any, **options: Any) -> Any:
            (hidden, _) = self.block(*inputs, **options)
            return hidden

    for block in blocks_of(model.base):
        forward = block.forward
        monkeypatch.setattr(block, "forward", lambda *a, _f=forward, **k: (_f(*a, **k), None))
    body: Any = model.base.base_model
    body.layers = nn.ModuleList(Unpacked(block) for block in body.layers)
    bottom = bottom_of(model, store)
    for _ in range(2):
        assert torch.allclose(outputs(model, TEXTS, bottom), expected, atol=1e-6)


def test_a_base_whose_blocks_hand_on_more_than_hidden_states_is_left_alone(
    store: HiddenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    first, *_, last = blocks_of(model.base)
    kept: list[Tensor] = []
    first_forward, last_forward = first.forward, last.forward

    def keeps(hidden: Tensor, **options: Any) -> Any:
        out = first_forward(hidden, **options)
        kept[:] = [out]
        return out

    monkeypatch.setattr(first, "forward", keeps)
    monkeypatch.setattr(last, "forward", lambda hidden, **options: last_forward(hidden + kept.pop(), **options))
    assert Bottom.of(model, 1, store, "toy") is None


def test_a_model_without_its_blocks_in_a_row_is_left_alone(store: HiddenStore) -> None:
    model = model_of("bert")
    model.base.config.num_hidden_layers = 4
    assert Bottom.of(model, 1, store, "toy") is None


def test_segments_lengths_and_what_is_said_of_the_blocks_are_parts_of_the_key(store: HiddenStore) -> None:
    model = model_of("bert")
    one = bottom_of(model, store)
    keys = {
        one._key({"input_ids": [1, 2, 3]}, 3),
        one._key({"input_ids": [1, 2, 3]}, 2),
        one._key({"input_ids": [1, 2]}, 2),
        one._key({"input_ids": [1, 2], "token_type_ids": [0, 0]}, 2),
        one._key({"input_ids": [1, 2], "token_type_ids": [0, 1]}, 2),
        Bottom(blocks_of(model.base)[:2], store, "other")._key({"input_ids": [1, 2, 3]}, 3),
    }
    assert len(keys) == 5


def test_an_error_in_the_model_leaves_its_blocks_as_they_were(
    store: HiddenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    bottom = bottom_of(model, store)
    expected = outputs(model, TEXTS)
    block = blocks_of(model.base)[2]
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(block, "forward", lambda *_a, **_k: (_ for _ in ()).throw(MemoryError()))
            with pytest.raises(MemoryError):
                outputs(model, TEXTS, bottom)
        assert not any("forward" in module.__dict__ for module in model.modules())
        assert torch.equal(outputs(model, TEXTS), expected)


def test_what_texts_share_is_stored_once(store: HiddenStore) -> None:
    model = model_of("llama")
    bottom = bottom_of(model, store)
    history = list(range(3, 11))
    outputs(model, [[*history, 20 + item] for item in range(6)], bottom)
    assert store.n_bytes == (8 + 6) * 32 * 4
