"""Cutting: what an engine truncates plainly is what the tuned model saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recft.errors import ModelError
from recft.models.base import tokenizer_of
from recft.models.text_model import chunks_by_length, label_tokens, padded
from recft.models.tokens import Text, cut, tokenize
from recft.schema import ModelSettings

TAIL = "item: red chair answer:"
AWKWARD = [
    "",
    " ",
    "a",
    "墨盒" * 300,
    "🎒👩‍👩‍👧 " * 60,
    "ＵＳＢ 数据线\n",
    "lamp, " * 500,
    "x" * 5000,
    "\ud7ff\u200b\t\n end ",
]


@pytest.fixture(params=["tiny_bert", "tiny_llama"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    folder: Path = request.getfixturevalue(request.param)
    return tokenizer_of(ModelSettings(base=str(folder)))


def plain_ids(tokenizer: PreTrainedTokenizerBase, texts: list[Text], max_tokens: int) -> list[list[int]]:
    """As any stock engine would: no rule but truncation."""
    found = []
    for text in texts:
        parts = [[text]] if isinstance(text, str) else [[part] for part in text]
        found.append(tokenizer(*parts, truncation=True, max_length=max_tokens)["input_ids"][0])
    return found


@pytest.mark.parametrize("pairs", [False, True])
def test_plain_truncation_of_cut_texts_gives_the_same_ids(tokenizer: PreTrainedTokenizerBase, pairs: bool) -> None:
    texts = [(text, TAIL) for text in AWKWARD] if pairs else list(AWKWARD)
    ours = [row["input_ids"] for row in tokenize(tokenizer, texts, 32)]
    assert ours == plain_ids(tokenizer, cut(tokenizer, texts, 32), 32)
    assert max(map(len, ours)) <= 32


def test_cutting_twice_changes_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    once = cut(tokenizer, [(text, TAIL) for text in AWKWARD], 32)
    assert cut(tokenizer, once, 32) == once


def test_tail_is_kept_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    tail = tokenizer(TAIL, add_special_tokens=False)["input_ids"]
    end = [tokenizer.sep_token_id] if tokenizer.sep_token_id is not None else []
    for row in tokenize(tokenizer, [(text, " " + TAIL) for text in AWKWARD], 32):
        assert row["input_ids"][-len(end + tail) + 1 :] == [*tail, *end][1:]


def test_title_of_a_megabyte_leaves_the_body_a_quarter(tokenizer: PreTrainedTokenizerBase) -> None:
    row = tokenize(tokenizer, [("red " * 100, "lamp " * 210_000)], 32)[0]["input_ids"]
    assert len(row) <= 32
    red = tokenizer(" red", add_special_tokens=False)["input_ids"][0]
    assert row.count(red) >= 5
    assert row.count(tokenizer(" lamp", add_special_tokens=False)["input_ids"][0]) >= 16


def test_causal_pair_is_one_string_and_an_encoders_two_segments(tiny_bert: Path, tiny_llama: Path) -> None:
    bert, llama = (tokenizer_of(ModelSettings(base=str(folder))) for folder in (tiny_bert, tiny_llama))
    assert cut(llama, [("red chair", " answer:")], 32) == ["red chair answer:"]
    # One begin token, though the tokenizer's own pairs have two.
    assert tokenize(llama, [("red chair", " answer:")], 32)[0]["input_ids"].count(llama.bos_token_id) == 1
    assert cut(bert, [("red chair", "answer:")], 32) == [("red chair", "answer:")]
    assert set(tokenize(bert, [("red chair", "answer:")], 32)[0]["token_type_ids"]) == {0, 1}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.text(max_size=60), tail=st.text(max_size=60), limit=st.integers(8, 24))
def test_any_pair_fits_and_agrees(tokenizer: PreTrainedTokenizerBase, body: str, tail: str, limit: int) -> None:
    ours = tokenize(tokenizer, [(body, tail)], limit)[0]["input_ids"]
    fitted = cut(tokenizer, [(body, tail)], limit)
    assert [ours] == plain_ids(tokenizer, fitted, limit)
    # Nothing is left for the engine to truncate: the end of the tail, where an answer is read, is never lost.
    parts = [[fitted[0]]] if isinstance(fitted[0], str) else [[part] for part in fitted[0]]
    assert len(tokenizer(*parts, verbose=False)["input_ids"][0]) <= limit


def test_join_that_makes_more_tokens_cuts_the_body_further(tiny_llama: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # A word of its own is one token, a word behind another is two: as in tokenizers that mark a text's start.
    letters = {letter: number for number, letter in enumerate("ab▁<")}
    plain = Tokenizer(models.BPE({**letters, "▁b": 4}, [("▁", "b")]))
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    odd = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<")
    assert len(odd("b")["input_ids"]) == 1
    for tail in ("b", "bbb", "bbbbbbbbbbbb"):
        text = cut(odd, [("a" * 50, tail)], 8)[0]
        assert isinstance(text, str)
        assert len(odd(text)["input_ids"]) <= 8
        assert text.endswith("b" * min(len(tail), 5))


def test_texts_and_pairs_do_not_mix(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match="one kind a batch"):
        tokenize(tokenizer, ["red", ("red", "chair")], 16)
    assert tokenize(tokenizer, [], 16) == []


def test_answers_begin_with_tokens_of_their_own(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    yes, no = label_tokens(tokenizer, [" yes", " no"])
    assert tokenizer.convert_ids_to_tokens([yes, no]) == ["Ġyes", "Ġno"]
    with pytest.raises(ModelError, match="each answer begins with a token of its own"):
        label_tokens(tokenizer, [" yes", " yes"])


def test_chunks_hold_every_row_once_within_the_limit() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=200)
    tokens = [{"input_ids": [1] * int(length)} for length in lengths]
    chunks = chunks_by_length(tokens, chunk_tokens=256, most_rows=16)
    assert sorted(np.concatenate(chunks).tolist()) == list(range(200))
    for rows in chunks:
        batch = padded(tokens, rows, 0, torch.device("cpu"), limit=64)
        assert batch["input_ids"].numel() <= 256
        assert len(rows) <= 16
        assert batch["attention_mask"].sum(1).tolist() == lengths[rows].tolist()


def test_short_texts_are_not_padded_to_long_ones() -> None:
    tokens = [{"input_ids": [1] * length} for length in [*[60, 64] * 32, *[6, 8] * 32]]  # queries and products
    chunks = chunks_by_length(tokens, chunk_tokens=4096, most_rows=1024)
    assert [len(rows) for rows in chunks] == [64, 64]
    few = [{"input_ids": [1] * length} for length in [64, 8, 8, 8]]
    assert len(chunks_by_length(few, 4096, 1024)) == 1, "a pass of its own would cost more than the padding"
