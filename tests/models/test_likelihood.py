"""The likelihood head: against a loop over tokens, cut from the left, equal to what an engine reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from recft.exports._engine import numbers
from recft.exports._engine import tokens as engine_tokens
from recft.models.base import load_base, tokenizer_of
from recft.models.encoder import Encoder, encode
from recft.models.text_model import Serving, TextModel, padded
from recft.models.tokens import Text, Tokens, apart, cut, tokenize
from recft.schema import ModelSettings

CPU = torch.device("cpu")
MOST = 40
PAIRS: list[Text] = [
    ("history: oak desk, black lamp item: ", "red chair"),
    ("history: oak desk, black lamp item: ", "黑色 打印机 墨盒 🎒"),
    ("历史：数据线", "red chair"),
    ("", "lamp"),
    ("history: ", ""),
    ("red leather office chair " * 12, "usb cable"),
    ("history: oak desk, black lamp item: ", "red chair with wheels, " * 9),
    ("历史：数据线", "red chair"),
]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> TextModel:
    base = load_base(ModelSettings(base=str(tiny_llama)), "answers", CPU, torch.float32).model
    return TextModel(base, Serving("t", "causal", "likelihood", "none", False, MOST)).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return tokenizer_of(ModelSettings(base=str(tiny_llama)))


@torch.no_grad()
def naive(model: TextModel, tokens: Tokens) -> tuple[float, int]:
    """Log p of the tail, one token and one pass at a time, in float64."""
    ids, total, n = tokens["input_ids"], 0.0, 0
    for place, is_tail in enumerate(tokens["tail_mask"]):
        if is_tail:
            logits = model.base(torch.tensor([ids[:place]])).logits[0, -1].double()
            total += float(torch.log_softmax(logits, dim=0)[ids[place]])
            n += 1
    return total, n


def test_a_likelihood_is_the_loop_over_its_tokens(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = model.serving.tokens(tokenizer, PAIRS)
    expected = np.array([naive(model, row) for row in tokens])
    batch = padded(tokens, np.arange(len(PAIRS)), int(tokenizer.eos_token_id), CPU, MOST)
    with torch.no_grad():
        together = model(**batch).numpy()
    np.testing.assert_allclose(together, expected, atol=1e-4)
    np.testing.assert_allclose(encode(model, tokenizer, PAIRS), expected, atol=1e-4)
    assert (expected[:, 0] < 0).all() and expected[4, 1] == 1, "an empty reply still has its end"


def test_equal_bodies_read_once_give_the_same(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = model.serving.tokens(tokenizer, PAIRS)
    alone = np.array([naive(model, row) for row in tokens])
    for chunk_tokens in (4096, 60, 8):
        np.testing.assert_allclose(encode(model, tokenizer, PAIRS, chunk_tokens), alone, atol=1e-4)
    np.testing.assert_array_equal(encode(model, tokenizer, PAIRS)[[2]], encode(model, tokenizer, PAIRS)[[7]])


def test_gradients_reach_what_the_tail_is_read_from(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = model.serving.tokens(tokenizer, PAIRS[:2])
    batch = padded(tokens, np.arange(2), 0, CPU, MOST)
    embedding = model.base.get_input_embeddings()
    kept: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        kept.append(output)
        return output

    hook = embedding.register_forward_hook(keep)
    model(**batch)[:, 0].sum().backward()
    hook.remove()
    grads = kept[0].grad
    assert grads is not None
    moved = grads.abs().sum(dim=2) > 0
    for row in range(2):
        n = len(tokens[row]["input_ids"])
        assert moved[row, : n - 1].all() and not moved[row, n - 1 :].any(), "nothing reads the end, or padding"


def test_a_long_body_loses_its_start_and_keeps_its_end(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    (tokens,) = model.serving.tokens(tokenizer, [PAIRS[5]])
    assert len(tokens["input_ids"]) <= MOST
    tail = tokenizer("usb cable", add_special_tokens=False)["input_ids"]
    assert tokens["input_ids"][-len(tail) - 1 :] == [*tail, tokenizer.eos_token_id]
    body = tokenizer("red leather office chair " * 12, add_special_tokens=False)["input_ids"]
    kept = tokens["input_ids"][1 : -len(tail) - 1]
    assert tokens["input_ids"][0] == tokenizer.bos_token_id and kept == body[-len(kept) :] and len(kept) > 20


def test_a_long_tail_leaves_the_body_a_quarter(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    (tokens,) = model.serving.tokens(tokenizer, [PAIRS[6]])
    assert len(tokens["input_ids"]) <= MOST
    assert sum(tokens["tail_mask"]) == MOST * 3 // 4 + 1
    assert tokens["input_ids"][-1] == tokenizer.eos_token_id


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(st.text("red 黑色🎒,\n\0", max_size=60), st.text("lamp 墨盒🎒", max_size=40)), min_size=1, max_size=4
    ),
    st.integers(8, 30),
)
def test_what_an_engine_reads_is_what_was_scored(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], most: int
) -> None:
    """The engine takes the cut texts, and tokenizes body and tail apart."""
    ours = tokenize(tokenizer, pairs, most, likelihood=True)
    theirs = apart(tokenizer, cut(tokenizer, pairs, most, likelihood=True), most, chat=False)
    assert ours == theirs
    for tokens in ours:
        assert len(tokens["input_ids"]) == len(tokens["tail_mask"]) <= most
        assert tokens["tail_mask"][0] == 0, "the first tail token has a past"
        assert sorted(tokens["tail_mask"]) == tokens["tail_mask"] and tokens["tail_mask"][-1] == 1
        assert tokens["input_ids"][-1] == tokenizer.eos_token_id
    # A text that was cut already is not cut again.
    fitted = cut(tokenizer, pairs, most, likelihood=True)
    assert apart(tokenizer, cut(tokenizer, fitted, most, likelihood=True), most, chat=False) == theirs


def test_the_engine_s_own_batch_holds_the_same_ids(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ours = model.serving.tokens(tokenizer, PAIRS)
    batch = engine_tokens(tokenizer, model.serving.cut(tokenizer, PAIRS), model.serving, "pt")
    for row, tokens in enumerate(ours):
        n = len(tokens["input_ids"])
        assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
        assert batch["input_ids"][row, :n].tolist() == tokens["input_ids"]
        assert batch["tail_mask"][row, :n].tolist() == tokens["tail_mask"] and batch["tail_mask"][row, n:].sum() == 0
    found = numbers(model.base, batch, model.serving)
    np.testing.assert_allclose(found, encode(model, tokenizer, PAIRS), atol=1e-4)


@pytest.mark.parametrize("most", range(8, 14))
def test_nothing_is_left_for_a_body_beside_the_longest_tail(most: int, tokenizer: PreTrainedTokenizerBase) -> None:
    (tokens,) = tokenize(tokenizer, [("red chair " * 9, "usb cable " * 30)], most, likelihood=True)
    assert len(tokens["input_ids"]) <= most and tokens["tail_mask"][0] == 0 and sum(tokens["tail_mask"]) > 1


def test_a_catalogue_is_scored_as_its_pairs_are(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(model, tokenizer)
    bodies, tails = ["history: oak desk", "历史：数据线", ""], ["red chair", "lamp", "黑色 墨盒", "red chair", "red"]
    every = encoder.catalogue(bodies, tails)
    pairs = encoder([(body, tail) for body in bodies for tail in tails])[:, 0].reshape(3, 5)
    np.testing.assert_allclose(every, pairs, atol=1e-4)
    np.testing.assert_array_equal(every[:, 0], every[:, 3])
    items, scores = encoder.generated(bodies, tails, 5, free=False)
    for row in range(3):
        order = sorted(range(5), key=lambda item: (-every[row, item], item))
        np.testing.assert_allclose(scores[row], every[row, order], atol=1e-4)
        assert sorted(items[row].tolist()) == list(range(5))


def test_likelihoods_of_nothing_are_none(model: TextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(encode(model, tokenizer, [])) == 0
