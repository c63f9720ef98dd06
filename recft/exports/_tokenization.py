"""Whether an artefact tokenizes, cuts and pads as the tuned model was: by the ids that travel with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recft.exports._base import Engine
from recft.exports._certificate import shown
from recft.exports._rows import Rows
from recft.models.text_model import Serving
from recft.models.tokens import Text

__all__ = ["same_tokens"]

LONGEST = 10**9
"""A tokenizer without a limit says a number far beyond this."""


def same_tokens(engine: Engine, rows: Rows, serving: Serving) -> tuple[dict[str, Any], list[str]]:
    """The figures of tokens, length and padding side, and what is wrong with them in words.

    The longest text that the artefact's files name is told; the ids and the side are judged.
    """
    differ, first = 0, None
    for texts, ours in ((rows.contexts, rows.context_tokens), (rows.items, rows.item_tokens)):
        if not len(texts) or not len(ours):
            continue
        theirs = _ids(engine, serving, texts)
        other = [row for row, (a, b) in enumerate(zip(ours, theirs, strict=True)) if list(a) != list(b)]
        if other and first is None:
            first = {"text": shown(texts[other[0]]), **_apart(ours[other[0]], theirs[other[0]])}
        differ += len(other)
    longest = int(getattr(engine.tokenizer, "model_max_length", 0) or 0)
    side = str(getattr(engine.tokenizer, "padding_side", serving.padding_side))
    found = {
        "tokenization_differs": differ,
        "first_other_tokens": first,
        "max_tokens": {"tuned": serving.max_tokens, "artefact": longest if 0 < longest < LONGEST else None},
        "padding_side": {"tuned": serving.padding_side, "artefact": side},
    }
    wrong = []
    if first is not None:
        wrong.append(
            f"{differ} of {len(rows.contexts) + len(rows.items)} texts are tokenized differently, the first "
            f"{first['text']} from token {first['token']} on: {first['tuned']} tuned, {first['served']} served "
            "(export again: tokenizer and template are the run's)"
        )
    if side != serving.padding_side:
        wrong.append(
            f"the artefact's tokenizer pads on the {side}, the tuned model on the {serving.padding_side} (export "
            f"again: padding_side of tokenizer_config.json is {serving.padding_side})"
        )
    return found, wrong


def _ids(engine: Engine, serving: Serving, texts: Sequence[Text]) -> list[list[int]]:
    """The engine's ids for texts of any length."""
    if engine.tokens is not None:
        return engine.tokens(serving.cut(engine.tokenizer, texts))
    return [row["input_ids"] for row in serving.tokens(engine.tokenizer, texts)]


def _apart(ours: Sequence[int], theirs: Sequence[int]) -> dict[str, Any]:
    """The place of the first other token, and a few ids of both from shortly before it."""
    shorter = min(len(ours), len(theirs))
    place = next((at for at in range(shorter) if ours[at] != theirs[at]), shorter)
    span = slice(max(0, place - 2), place + 4)
    return {"token": place, "tuned": [int(one) for one in ours[span]], "served": [int(one) for one in theirs[span]]}
