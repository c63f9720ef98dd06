"""Conversations: the answers that are learned, and every way in which a conversation can be none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recft.data import messages as module
from recft.data.columns import HAS_NUL
from recft.data.messages import FLAWS, ROLES, answers
from recft.data.tables import BAD_UTF8


def turns_of(value: str, every: bool) -> list[tuple[str, str]]:
    """The answers of a conversation that has some."""
    found = answers(value, every)
    assert isinstance(found, list)
    return found


def talk(*turns: tuple[str, str]) -> str:
    return json.dumps([{"role": role, "content": content} for role, content in turns])


LONG = talk(
    ("system", "be kind"),
    ("user", "订单在哪里？ 📦"),
    ("assistant", " 已发货 "),
    ("user", "thanks"),
    ("assistant", "bye"),
)


def test_the_last_answer_or_every_answer() -> None:
    ((context, reply),) = turns_of(LONG, every=False)
    assert reply == "bye"
    assert [message["role"] for message in json.loads(context)] == ["system", "user", "assistant", "user"]
    assert "订单在哪里？ 📦" in context and ", " not in context  # compact, and as it is written
    every = turns_of(LONG, every=True)
    assert [reply for _, reply in every] == ["已发货", "bye"]
    assert [len(json.loads(context)) for context, _ in every] == [2, 4]


def test_what_follows_the_last_answer_and_what_else_a_message_holds_is_left_out() -> None:
    raw = [
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": "hello", "weight": 1},
        {"role": "user", "content": "and?"},
    ]
    assert turns_of(json.dumps(raw), every=False) == [('[{"role":"user","content":"hi"}]', "hello")]


def test_a_greeting_of_the_assistant_is_context_and_no_answer() -> None:
    found = turns_of(talk(("assistant", "welcome"), ("user", "hi"), ("assistant", "yes?")), every=True)
    assert [reply for _, reply in found] == ["yes?"]


@pytest.mark.parametrize(
    ("value", "rule", "shown"),
    [
        ("hello", module.NOT_MESSAGES, "hello"),
        ("[" * 100_000, module.NOT_MESSAGES, "[["),
        ("{}", module.NOT_MESSAGES, "{}"),
        ("[]", module.NOT_MESSAGES, "[]"),
        ('["hi"]', module.NOT_MESSAGES, 'message 1: "hi"'),
        ('[{"from": "human", "value": "hi"}]', module.NOT_MESSAGES, '{"from":"human","value":"hi"}'),
        (talk(("user", "hi"), ("assistent", "yes")), module.UNKNOWN_ROLE, "assistent. Did you mean 'assistant'?"),
        ('[{"role": ["user"], "content": "hi"}]', module.UNKNOWN_ROLE, "['user']"),
        (talk(("user", " "), ("assistant", "yes")), module.NEEDS_TEXT, "message 1 (user): ''"),
        ('[{"role": "assistant", "content": null}]', module.NEEDS_TEXT, "message 1 (assistant): (empty)"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', module.NEEDS_TEXT, "image"),
        ('[{"role": "user", "content": "a\\u0000b"}]', HAS_NUL, "a"),
        ('[{"role": "user", "content": "a\\ud83d"}]', BAD_UTF8, "\\ud83d"),
        (talk(("user", "hi"), ("user", "you there?")), module.NEEDS_ANSWER, "user → user"),
        (talk(("assistant", "welcome"), ("user", "hi")), module.NEEDS_ANSWER, "assistant → user"),
    ],
)
def test_what_is_no_conversation_is_told(value: str, rule: str, shown: str) -> None:
    flaw = answers(value, every=True)
    assert isinstance(flaw, tuple)
    assert flaw[0] == rule and shown in flaw[1]
    assert rule in FLAWS


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(ROLES), texts), min_size=1, max_size=8))
def test_every_answer_comes_once_with_what_was_said_before_it(turns: list[tuple[str, str]]) -> None:
    found = answers(talk(*turns), every=True)
    places = [place for place, (role, _) in enumerate(turns) if role == "assistant" and place]
    if not places:
        assert found[0] == module.NEEDS_ANSWER
        return
    assert found == [
        (
            json.dumps(
                [{"role": role, "content": content.strip()} for role, content in turns[:place]],
                ensure_ascii=False,
                separators=(",", ":"),
            ),
            turns[place][1].strip(),
        )
        for place in places
    ]
    assert answers(talk(*turns), every=False) == found[-1:]
