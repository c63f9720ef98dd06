"""The passes of a causal model give every head's numbers as each text alone does, whatever it shares with others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from recft.models import attention, layout
from recft.models.base import load_base, tokenizer_of
from recft.models.blocks import checkpoint_blocks
from recft.models.passes import passes
from recft.models.text_model import Serving, TextModel, label_tokens, padded
from recft.models.tokens import Text, Tokens
from recft.schema import ModelSettings

CPU = torch.device("cpu")
ITEMS = ["red leather chair", "lamp", "黑色 墨盒 🎒", "usb cable", "oak desk", "usb cable", "red lamp", "椅子", ""]
HISTORIES = ["history: oak desk, black lamp, 打印机", "history: oak desk, black lamp", "历史：数据线 🎒", ""]
PAIRS: list[Text] = [(history, f" item: {item} answer:") for history in HISTORIES for item in ITEMS]

HEADS = [
    ("embedding", "last"),
    ("embedding", "mean"),
    ("classifier", "none"),
    ("answers", "none"),
    ("likelihood", "none"),
]


def model_of(folder: Path, head: str, pooling: str) -> tuple[TextModel, PreTrainedTokenizerBase]:
    settings = ModelSettings(base=str(folder))
    tokenizer = tokenizer_of(settings)
    ids = label_tokens(tokenizer, ["no", "yes"]) if head == "answers" else ()
    serving = Serving("t", "causal", head, pooling, head == "embedding", 64, label_ids=ids, n_outputs=3)
    return TextModel(load_base(settings, head, CPU, torch.float32, n_labels=3).model, serving).eval(), tokenizer


def alone(model: TextModel, tokens: list[Tokens]) -> np.ndarray:
    """Each text by itself, in the plain forward pass."""
    with torch.no_grad():
        return np.concatenate(
            [model(**padded(tokens, np.array([row]), 0, CPU, 64)).numpy() for row in range(len(tokens))]
        )


@pytest.mark.parametrize(("head", "pooling"), HEADS)
@pytest.mark.parametrize("chunk_tokens", [32, 4096])
@pytest.mark.parametrize("large", [False, True])
def test_every_head_reads_a_shared_beginning_as_each_text_alone(
    head: str, pooling: str, chunk_tokens: int, large: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_of(tiny_llama, head, pooling)
    tokens = model.serving.tokens(tokenizer, PAIRS)
    if large:  # small families are large ones: their beginning stays as keys and values
        monkeypatch.setattr(layout, "MOST", 8)
        monkeypatch.setattr(layout, "LONG", 3)
    found = np.full((len(tokens), alone(model, tokens[:1]).shape[1]), np.nan, np.float32)
    with torch.no_grad():
        chosen = passes(model, tokens, 0, chunk_tokens)
        for one in chosen:
            assert np.isnan(found[one.texts]).all(), "a text is computed twice"
            found[one.texts] = one.outputs().numpy()
    np.testing.assert_allclose(found, alone(model, tokens), atol=2e-5)
    behind = head == "embedding" and pooling == "mean"
    assert sum(one.n_tokens for one in chosen) < sum(len(row["input_ids"]) for row in tokens) * (1.2 if behind else 1)


def test_a_beginning_that_many_texts_have_is_read_once(tiny_llama: Path) -> None:
    model, tokenizer = model_of(tiny_llama, "answers", "none")
    texts: list[Text] = [
        ("history: red leather office chair, oak desk, usb cable, lamp, " * 2, f" {n} 椅子") for n in range(400)
    ]
    tokens = model.serving.tokens(tokenizer, texts)
    lengths: list[int] = []
    model.base.base_model.register_forward_pre_hook(
        lambda _m, _a, given: lengths.append(given["input_ids"].numel()), with_kwargs=True
    )
    with torch.no_grad():
        outputs = [(one.texts, one.outputs().numpy()) for one in passes(model, tokens, 0, 512)]
    rows = np.concatenate([texts for texts, _ in outputs])
    read = sum(lengths)
    np.testing.assert_allclose(
        np.concatenate([part for _, part in outputs])[np.argsort(rows)], alone(model, tokens), atol=2e-5
    )
    whole = sum(len(row["input_ids"]) for row in tokens)
    assert read < whole / 4, "the beginning was read again"


def deaf(_module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**given, "attention_mask": None}


def test_a_base_that_heeds_no_mask_and_a_window_that_is_too_small_take_padded_texts(tiny_llama: Path) -> None:
    model, tokenizer = model_of(tiny_llama, "answers", "none")
    model.base.base_model.register_forward_pre_hook(deaf, with_kwargs=True)
    tokens = model.serving.tokens(tokenizer, PAIRS)
    assert sum(one.n_tokens for one in passes(model, tokens, 0, 4096)) > sum(len(row["input_ids"]) for row in tokens)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.3,
    )  # fmt: skip
    base: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    narrow = TextModel(base, model.serving).eval()
    with torch.no_grad():
        found = [(one.texts, one.outputs().numpy()) for one in passes(narrow, tokens, 0, 4096)]
    order = np.argsort(np.concatenate([rows for rows, _ in found]))
    np.testing.assert_allclose(np.concatenate([part for _, part in found])[order], alone(narrow, tokens), atol=2e-5)


def test_a_trial_leaves_the_model_training(tiny_llama: Path) -> None:
    model, tokenizer = model_of(tiny_llama, "answers", "none")
    model.train()
    passes(model, model.serving.tokens(tokenizer, PAIRS), 0, 4096)
    assert model.base.training


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("numbers", [200, 10**6])
def test_log_p_has_the_gradient_of_whole_logits(
    cap: float | None, numbers: int, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recft.models import token_log_p

    base = model_of(tiny_llama, "likelihood", "none")[0].base
    base.config.final_logit_softcapping = cap
    monkeypatch.setitem(token_log_p.BLOCK_NUMBERS, "cpu", numbers)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, base.config.hidden_size, generator=generator)
    row, token = torch.tensor([1, 1, 1, 4, 6, 6, 8, 8]), torch.tensor([3, 0, 19, 7, 7, 1, 2, 2])
    weights = torch.randn(8, generator=generator)

    def gradient(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        there = hidden.clone().requires_grad_()
        (of(there) * weights).sum().backward()
        assert there.grad is not None
        return there.grad

    def whole(there: torch.Tensor) -> torch.Tensor:
        logits = base.get_output_embeddings()(there)
        logits = torch.tanh(logits / cap) * cap if cap else logits
        found: torch.Tensor = logits.log_softmax(dim=1)[row, token]
        return found

    found, wanted = gradient(lambda there: token_log_p.log_p(base, there, row, token)), gradient(whole)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


TITLES: list[Text] = [*((item, "") for item in ITEMS), ("oak desk, red lamp", "椅子 " * 9), ("red lamp", "黑色 墨盒")]


def encoder_of(folder: Path, pooling: str = "mean", head: str = "embedding") -> tuple[TextModel, list[Tokens]]:
    """An encoder in float32 with our attention, and the titles' tokens."""
    settings = ModelSettings(base=str(folder))
    serving = Serving("t", "encoder", head, pooling, head == "embedding", 64, n_outputs=3)
    model = TextModel(load_base(settings, head, CPU, torch.float32, n_labels=3).model, serving).eval()
    attention.put_in(model.base)
    return model, serving.tokens(tokenizer_of(settings), TITLES)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("chunk_tokens", [1, 40, 4096])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_encoders_texts_stand_side_by_side_and_come_out_as_alone(
    pooling: str, chunk_tokens: int, checkpointing: bool, tiny_bert: Path
) -> None:
    model, tokens = encoder_of(tiny_bert, pooling)
    parameters = [part for name, part in model.base.named_parameters() if ".layer." in name]
    for parameter in parameters:
        parameter.requires_grad_(True)
    if checkpointing:
        model.train()
        checkpoint_blocks(model.base, 2)
    found, n_tokens = torch.full((len(tokens), model.base.config.hidden_size), torch.nan), 0
    for one in passes(model, tokens, 0, chunk_tokens):
        found = found.index_copy(0, torch.from_numpy(one.texts), one.outputs())
        n_tokens += one.n_tokens
    assert n_tokens == sum(len(row["input_ids"]) for row in tokens), "something is padding"
    each = torch.cat([model(**padded([row], np.zeros(1, int), 0, CPU, 64)) for row in tokens])
    np.testing.assert_allclose(found.detach(), each.detach(), atol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((each * weights).sum(), parameters)
    largest = max(float(grad.abs().max()) for grad in expected)  # a key's bias has none but rounding
    for grad, wanted in zip(torch.autograd.grad((found * weights).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5 * largest)


def test_texts_of_an_encoder_stand_apart_where_a_row_would_not_do(tiny_bert: Path) -> None:
    """A new head reads the first token of a row, others know no lengths, a window is narrow, RoBERTa counts from 2."""
    model, tokens = encoder_of(tiny_bert, "none", "classifier")
    assert _is_padded(model, tokens)
    model, tokens = encoder_of(tiny_bert)
    assert not _is_padded(model, tokens)
    model.base.config.sliding_window = 4
    assert _is_padded(model, tokens)
    del model.base.config.sliding_window
    model.base.set_attn_implementation("eager")
    assert _is_padded(model, tokens)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    roberta = RobertaModel(RobertaConfig(**shape, vocab_size=2000, max_position_embeddings=80), add_pooling_layer=False)
    attention.put_in(roberta)
    other = TextModel(roberta.eval(), model.serving)
    plain: list[Tokens] = [{"input_ids": row["input_ids"]} for row in tokens]
    assert _is_padded(other, plain)


def _is_padded(model: TextModel, tokens: list[Tokens]) -> bool:
    return sum(one.n_tokens for one in passes(model, tokens, 0, 4096)) > sum(len(row["input_ids"]) for row in tokens)


def test_the_trial_of_rows_leaves_a_base_as_it_was(tiny_bert: Path) -> None:
    """A model whose own flag says training, as a new one's does, may hold a base that is evaluated."""
    model, tokens = encoder_of(tiny_bert)
    model.training = True
    passes(model, tokens, 0, 4096)
    assert not any(part.training for part in model.base.modules())
    model, tokens = encoder_of(tiny_bert)
    model.train()
    passes(model, tokens, 0, 4096)
    assert all(part.training for part in model.base.modules())
