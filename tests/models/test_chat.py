"""Chats: rendered by the base's own template, cut by whole turns, oldest first, and read alike by an engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from recft.errors import ModelError
from recft.models.base import tokenizer_of
from recft.models.tokens import apart, cut, rendered, tokenize
from recft.schema import ModelSettings

Turns = list[tuple[str, str]]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return tokenizer_of(ModelSettings(base=str(tiny_llama)))


def body(turns: Turns) -> str:
    return json.dumps([{"role": role, "content": text} for role, text in turns], ensure_ascii=False)


def written(turns: Turns) -> str:
    """What the tiny template makes of turns."""
    return "".join(f"<|{role}|>{text}" for role, text in turns)


def size(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


CHAT: Turns = [
    ("system", "你是客服"),
    ("user", "black desk"),
    ("assistant", "oak desk"),
    ("user", "红色 chair 🎒"),
    ("assistant", "red chair"),
    ("user", "lamp"),
]


def test_a_chat_is_what_the_template_writes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert rendered(tokenizer, body(CHAT), 10_000) == written(CHAT)


def test_plain_text_is_one_message_of_the_user_s(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("红色 chair", "", "[1, 2]", "[{", '[{"a": 1}]', '{"role": "user"}', "[{}]", '[{"role": "user"}]'):
        assert rendered(tokenizer, text, 10_000) == written([("user", text)])


def test_the_oldest_turns_go_and_the_system_s_stays(tokenizer: PreTrainedTokenizerBase) -> None:
    left = [CHAT, [CHAT[0], *CHAT[3:]], [CHAT[0], *CHAT[5:]]]
    sizes = [size(tokenizer, written(turns)) for turns in left]
    assert sizes == sorted(sizes, reverse=True)
    for turns, most in zip(left, sizes, strict=True):
        assert rendered(tokenizer, body(CHAT), most) == written(turns)
        assert rendered(tokenizer, body(CHAT), most + 1) == written(turns)
    # The last turn of the user's is never dropped, however long: its start is cut later.
    assert rendered(tokenizer, body(CHAT), 1) == written(left[-1])


def test_what_is_left_begins_with_the_user(tokenizer: PreTrainedTokenizerBase) -> None:
    turns: Turns = [("user", "red"), ("assistant", "oak " * 20), ("assistant", "usb"), ("user", "lamp")]
    assert rendered(tokenizer, body(turns), 30) == written(turns[3:])
    only: Turns = [("assistant", "oak " * 20)]
    assert rendered(tokenizer, body(only), 5) == written(only)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text('red 椅🎒"\\', max_size=30)),
        min_size=1,
        max_size=6,
    ),
    st.text("lamp 墨", max_size=20),
    st.integers(16, 60),
)
def test_an_engine_reads_a_chat_as_it_was_scored(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, reply: str, most: int
) -> None:
    pairs = [(body(turns), reply), ("红色 chair", reply)]
    ours = tokenize(tokenizer, pairs, most, likelihood=True, chat=True)
    fitted = cut(tokenizer, pairs, most, likelihood=True, chat=True)
    assert ours == apart(tokenizer, fitted, most, chat=True)
    for tokens, one, (source, _) in zip(ours, fitted, pairs, strict=True):
        text, tail = str(one[0]), str(one[1])
        assert len(tokens["input_ids"]) <= most and tokens["tail_mask"][0] == 0
        assert any(rendered(tokenizer, source, room).endswith(text) for room in range(1, most))
        assert reply.startswith(tail)


def test_a_chat_brings_its_own_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    (chat,) = tokenize(tokenizer, [(body(CHAT[3:]), "oak")], 200, likelihood=True, chat=True)
    (plain,) = tokenize(tokenizer, [(written(CHAT[3:]), "oak")], 200, likelihood=True)
    assert plain["input_ids"] == [tokenizer.bos_token_id, *chat["input_ids"]]


def test_a_template_that_refuses_a_chat_is_one_message(tokenizer: PreTrainedTokenizerBase) -> None:
    kept = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    try:
        with pytest.raises(ModelError, match=r"chat template.*System role not supported.*fix: "):
            rendered(tokenizer, body(CHAT), 100)
    finally:
        tokenizer.chat_template = kept
