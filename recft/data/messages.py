"""Conversations: a JSON list of messages becomes answers, each with the messages before it."""

from __future__ import annotations

import json
from typing import Any

from recft.data.columns import HAS_NUL
from recft.data.ledger import short
from recft.data.tables import BAD_UTF8
from recft.registry import suggestion

__all__ = ["FLAWS", "ROLES", "Flaw", "answers"]

ROLES = ("system", "user", "assistant", "tool")
NOT_MESSAGES = "messages are a JSON list of {role, content}"
UNKNOWN_ROLE = f"a role is one of {', '.join(ROLES)}"
NEEDS_TEXT = "every message has a text as content"
NEEDS_ANSWER = "a conversation has an answer of the assistant, and a message before it"
FLAWS = (NOT_MESSAGES, UNKNOWN_ROLE, NEEDS_TEXT, HAS_NUL, BAD_UTF8, NEEDS_ANSWER)

Flaw = tuple[str, str]
"""The rule that is broken, and the value that breaks it."""


def answers(value: str, every: bool) -> list[tuple[str, str]] | Flaw:
    """(the messages before an answer as compact JSON, the answer) of the last answer, or of every one.

    What comes after the last answer is left out, and so is all of a message but its role and content.

    >>> answers('[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]', every=False)
    [('[{"role":"user","content":"hi"}]', 'hello')]
    >>> answers('[{"role": "user", "content": "hi"}]', every=False)[0]
    'a conversation has an answer of the assistant, and a message before it'
    """
    try:
        raw = json.loads(value)
    except (ValueError, RecursionError):
        return NOT_MESSAGES, value
    if not isinstance(raw, list) or not raw:
        return NOT_MESSAGES, value
    messages: list[dict[str, str]] = []
    for number, message in enumerate(raw, start=1):
        flaw = _flaw(message, number)
        if flaw is not None:
            return flaw
        messages.append({"role": message["role"], "content": message["content"].strip()})
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant" and place]
    if not places:
        return NEEDS_ANSWER, " → ".join(message["role"] for message in messages)
    chosen = places if every else places[-1:]
    return [(_compact(messages[:place]), messages[place]["content"]) for place in chosen]


def _flaw(message: Any, number: int) -> Flaw | None:
    """What is wrong with one message, the `number`-th from 1."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        return NOT_MESSAGES, f"message {number}: {_compact(message)}"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return UNKNOWN_ROLE, f"{role}.{suggestion(str(role), ROLES)}"
    if not isinstance(content, str) or not content.strip():
        return NEEDS_TEXT, f"message {number} ({role}): {short(content)}"
    if "\0" in content:
        return HAS_NUL, content
    try:
        content.encode()
    except UnicodeEncodeError:
        return BAD_UTF8, ascii(content)
    return None


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
