"""Written replies: what a model reads before it writes one."""

from __future__ import annotations

import json

from pydantic import Field

from recft.errors import DataError, problem
from recft.schema import TaskSettings

__all__ = ["MOST_CHARACTERS", "ReplySettings", "prompt_of"]

MOST_CHARACTERS = 100_000
"""Of a reply: more than a base reads, and a text of a megabyte takes a second to tokenize."""


class ReplySettings(TaskSettings):
    """What tasks of written replies can be told."""

    chat: bool = Field(default=True, description="through the base's chat template; false: as plain text")
    before: str | None = Field(
        default=None, description="stands before a text; nothing where absent, or a few words before a history"
    )
    after: str | None = Field(
        default=None, description="stands after a text; where absent nothing in a chat, and a line end in plain text"
    )


def prompt_of(config: ReplySettings, text: str, before: str = "", after: str = "") -> str:
    """What stands before a reply: a text in its words, or a conversation as it is, or written out in plain text.

    Args:
        config: of the task.
        text: or a JSON list of messages.
        before: what stands before it where the settings do not say.
        after: what stands after it.

    Raises:
        DataError: words to stand around a conversation that goes through a chat template.
    """
    before = before if config.before is None else config.before
    after = (after or ("" if config.chat else "\n")) if config.after is None else config.after
    messages = _messages(text)
    if messages is None:
        return before + text + after
    if not config.chat:
        return before + "\n".join(f"{message['role']}: {message['content']}" for message in messages) + after
    if before or after:
        place, value = ("task.before", before) if before else ("task.after", after)
        raise DataError(
            problem(
                place,
                f"{value!r} around a conversation of data.texts.messages",
                "a chat template writes a conversation's turns itself",
                "remove it, put it into a system message, or set task.chat: false",
            )
        )
    return text


def _messages(text: str) -> list[dict[str, str]] | None:
    """The messages of a conversation as prepare has written it; None of any other text."""
    if not text.startswith('[{"role":'):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if all(isinstance(part, dict) and {"role", "content"} <= part.keys() for part in found) else None
