"""From texts to token ids: what is cut where a text is too long, and what is told apart from what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recft.errors import ModelError, problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Text", "Tokens", "apart", "cut", "rendered", "tokenize"]

Text = str | tuple[str, str]
"""A text, or (body, tail): the body is cut where the two are too long, the tail hardly ever."""

Tokens = dict[str, list[int]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    max_tokens: int,
    likelihood: bool = False,
    chat: bool = False,
) -> list[Tokens]:
    """Token ids of each text, cut to `max_tokens`; of a (body, tail) the body is cut.

    An encoder sees body and tail as its two segments; a causal model sees them as one string. For a likelihood they
    are tokenized apart, so that equal bodies begin with equal ids, and `tail_mask` marks the tail with its end token.
    """
    if not texts:
        return []
    fitted = cut(tokenizer, texts, max_tokens, likelihood, chat)
    if likelihood:
        return apart(tokenizer, fitted, max_tokens, chat)
    if not isinstance(fitted[0], str):
        bodies, tails = zip(*fitted, strict=True)
        encoded = tokenizer(list(bodies), list(tails), truncation=True, max_length=max_tokens)
    else:
        encoded = tokenizer(fitted, truncation=True, max_length=max_tokens)
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return [{name: encoded[name][row] for name in names} for row in range(len(texts))]


def apart(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_tokens: int, chat: bool) -> list[Tokens]:
    """Body and tail tokenized apart and joined, the tail closed by the end token; too long a body loses its start.

    A body that went through a chat template carries its special tokens already.
    """
    begin = [] if chat else _begin(tokenizer)
    bodies = tokenizer([text[0] for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    tails = tokenizer([text[1] for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    found = []
    for body, tail in zip(bodies, tails, strict=True):
        closed = [*tail[: max_tokens * 3 // 4], int(tokenizer.eos_token_id)]
        room = max_tokens - len(begin) - len(closed)
        start = [*begin, *body[max(0, len(body) - room) :]]
        found.append({"input_ids": start + closed, "tail_mask": [0] * len(start) + [1] * len(closed)})
    return found


def _begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that a text begins with; one token at least, or the first tail token would have no past."""
    ids = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    return ids or [int(tokenizer.eos_token_id)]


def rendered(tokenizer: PreTrainedTokenizerBase, body: str, max_tokens: int) -> str:
    """A chat as the base's template writes it, up to where the reply begins; too long a chat loses its oldest turns.

    Args:
        tokenizer: with a chat template.
        body: a JSON list of messages, or plain text, which is one message of the user's.
        max_tokens: how long it may be.

    Raises:
        ModelError: the template refuses the chat.
    """
    messages = _messages(body)
    while True:
        text = _templated(tokenizer, messages)
        turns = [place for place, message in enumerate(messages) if message["role"] != "system"]
        # What is left must begin with the user: most templates insist on it.
        later = [place for place in turns[1:] if messages[place]["role"] == "user"]
        if not later or len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) <= max_tokens:
            return text
        messages = [message for message in messages[: later[0]] if message["role"] == "system"] + messages[later[0] :]


def _templated(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            problem(
                "the base's chat template",
                f"refuses {roles} ({error})",
                "a chat is written as the base knows it",
                "change the roles in the data, or set task.chat: false",
            )
        ) from error


def _messages(body: str) -> list[dict[str, str]]:
    try:
        found: list[dict[str, str]] = json.loads(body) if body.startswith("[{") else []
    except ValueError:
        found = []
    is_chat = all(isinstance(one, dict) and {"role", "content"} <= one.keys() for one in found)
    return found if found and is_chat else [{"role": "user", "content": body}]


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    max_tokens: int,
    likelihood: bool = False,
    chat: bool = False,
) -> list[Text]:
    """The texts as an engine takes them: its plain truncation at `max_tokens` then gives the ids of `tokenize`.

    Single texts are left to that truncation. Of a (body, tail) the body is cut, at a token's end, so that body, tail
    and special tokens fit; a tail that would leave the body less than a quarter is cut to three quarters: a title of
    a megabyte must not push everything else out. Pairs stay pairs for a base with segments, else they are joined. For a
    likelihood pairs stay pairs, and a body loses its start: what stands next to the tail matters most.

    Raises:
        ModelError: single texts and pairs are mixed.
    """
    pairs = [text for text in texts if not isinstance(text, str)]
    if not pairs:
        return list(texts)
    if len(pairs) < len(texts):
        raise ModelError(
            problem("tokenize", "single texts and pairs in one batch", "one kind a batch", "split the batch")
        )
    if likelihood:
        return _cut_start(tokenizer, pairs, max_tokens, chat)
    segments = _has_segments(tokenizer)
    room = max_tokens - tokenizer.num_special_tokens_to_add(pair=segments)
    tails, tail_sizes = _cut(tokenizer, [tail for _, tail in pairs], [room * 3 // 4] * len(pairs))
    limits = [room - size for size in tail_sizes]
    bodies, sizes = _cut(tokenizer, [body for body, _ in pairs], limits)
    if segments:
        return list(zip(bodies, tails, strict=True))
    return _joined(tokenizer, bodies, tails, sizes, max_tokens)


def _has_segments(tokenizer: PreTrainedTokenizerBase) -> bool:
    # Not the number of special tokens: Llama 3 puts a second begin token before the second of a pair.
    return tokenizer.sep_token_id is not None


def _joined(
    tokenizer: PreTrainedTokenizerBase, bodies: list[str], tails: list[str], sizes: list[int], max_tokens: int
) -> list[Text]:
    """Body and tail as one string each, within `max_tokens`.

    Where the two meet, other tokens may come out than from each alone: a body is cut further until the whole fits,
    so that the engine's truncation never reaches the tail's end.
    """
    while True:
        joined = [body + tail for body, tail in zip(bodies, tails, strict=True)]
        encoded = tokenizer(joined, verbose=False)["input_ids"]
        over = [len(ids) - max_tokens for ids in encoded]
        shrunk = [row for row, excess in enumerate(over) if excess > 0 and sizes[row] > 0]
        if not shrunk:
            return list(joined)
        limits = [max(sizes[row] - over[row], 0) for row in shrunk]
        for row, body, size in zip(shrunk, *_cut(tokenizer, [bodies[row] for row in shrunk], limits), strict=True):
            bodies[row], sizes[row] = body, size


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], limits: list[int]) -> tuple[list[str], list[int]]:
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept, sizes = [], []
    for text, offsets, limit in zip(texts, encoded["offset_mapping"], limits, strict=True):
        kept.append(text if len(offsets) <= limit else text[: offsets[limit][0]])
        sizes.append(min(len(offsets), limit))
    return kept, sizes


def _cut_start(
    tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]], max_tokens: int, chat: bool
) -> list[Text]:
    """Pairs whose bodies have lost their start where they are too long."""
    tails, sizes = _cut(tokenizer, [tail for _, tail in pairs], [max_tokens * 3 // 4] * len(pairs))
    begin = 0 if chat else len(_begin(tokenizer))
    rooms = [max_tokens - begin - size - 1 for size in sizes]
    bodies = {}
    for body, room in dict.fromkeys(zip((body for body, _ in pairs), rooms, strict=True)):
        text = rendered(tokenizer, body, room) if chat else body
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        start = max(len(offsets) - max(room, 0), 0)
        # A character may be several tokens: it goes as a whole, or more tokens than there is room for would be left.
        while 0 < start < len(offsets) and offsets[start][0] < offsets[start - 1][1]:
            start += 1
        bodies[body, room] = text[offsets[start][0] :] if 0 < start < len(offsets) else "" if start else text
    return [(bodies[body, room], tail) for (body, _), room, tail in zip(pairs, rooms, tails, strict=True)]
