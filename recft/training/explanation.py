"""Why this item: which words of a query or a history, and which of its items, move a score most.

Leave-one-out: effect = score of the whole - score without the part. What is left out goes before the task puts its
own words around a query or a history, so that prompts are never parts. Parts that say the same, such as two equal
words, share what they say: each alone may have no effect.

Integrated gradients (Sundararajan, Taly, Yan 2017), for a model whose gradients are there: the same question asked
of the word vectors, on a straight way from nothing to the text; its effects sum to the whole difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from recft.data.spans import spans
from recft.data.store import Records
from recft.tasks._base import Task, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recft.models.text_model import TextModel

__all__ = [
    "INTEGRATED_GRADIENTS",
    "LEAVE_ONE_OUT",
    "Part",
    "explain",
    "integrated_gradients",
    "items_left_out",
    "leave_one_out",
    "words_left_out",
]

LEAVE_ONE_OUT = "leave-one-out"
INTEGRATED_GRADIENTS = "integrated gradients"

Context = TypeVar("Context")
History = tuple[str, ...]
"""The texts of a history's items, oldest first."""

_PARTED = ("; ", ", ", "；", "，", " ")


@dataclass(frozen=True)
class Part:
    """A part of a context, and what it does to a score.

    Attributes:
        kind: a word, or an item of the history.
        text: as it stands there.
        effect: by how much it raises the score; below 0 where it lowers it.
        start: where it begins in the query, or in its item's text.
        end: where it ends.
        item: the place of its item in the history, from 0, the oldest; None in a query.
    """

    kind: Literal["word", "item"]
    text: str
    effect: float
    start: int
    end: int
    item: int | None = None


def explain(
    task: Task,
    config: Any,
    encode: Callable[[Sequence[Text]], np.ndarray],
    items: Sequence[str],
    chosen: Sequence[int],
    context: str | Sequence[str],
    scores: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[list[Part]]:
    """For each chosen item (or class) the parts of the context with their effects, in reading order.

    The model reads all that is left in one call.

    Args:
        task: what scores.
        config: its settings.
        encode: texts -> (N, K).
        items: N item texts.
        chosen: item numbers; class numbers where the task reads contexts alone.
        context: a query or text, or the item texts of a history, oldest first.
        scores: outputs (P, K) -> scores, where they are more than the task's own, such as calibrated; of no use where
            context and items are read apart.
    """
    meant = scores or (lambda outputs: task.scores(config, outputs))  # a task of two towers has none of its own
    score = partial(_scores, task, config, encode, meant, [items[item] for item in chosen], chosen)
    if isinstance(context, str):
        return leave_one_out(score, context, words_left_out(context))
    places = _read(task, config, context)
    shown = tuple(context[place] for place in places)
    found = leave_one_out(score, shown, items_left_out(shown))
    return [[dataclasses.replace(part, item=places[part.item or 0]) for part in parts] for parts in found]


def leave_one_out(
    score: Callable[[Sequence[Context]], np.ndarray], whole: Context, left: Sequence[tuple[Part, Context]]
) -> list[list[Part]]:
    """The parts with their effects, in one call of `score`; a list for each of its M columns.

    Args:
        score: V contexts -> (V, M).
        whole: the context with nothing left out.
        left: each part, and the context without it.
    """
    scores = np.asarray(score([whole, *(context for _, context in left)]), np.float64)
    effects = scores[0] - scores[1:]  # (parts, M)
    return [
        [dataclasses.replace(part, effect=float(effect)) for (part, _), effect in zip(left, column, strict=True)]
        for column in effects.T
    ]


def words_left_out(text: str) -> list[tuple[Part, str]]:
    """Each word of a text, and the text without it.

    >>> [(part.text, rest) for part, rest in words_left_out("red oak, chair")]
    [('red', 'oak, chair'), ('oak', 'red, chair'), ('chair', 'red oak')]
    """
    return [(Part("word", text[start:end], 0.0, start, end), _without(text, start, end)) for start, end in spans(text)]


def items_left_out(history: History) -> list[tuple[Part, History]]:
    """Each item of a history with the history without it, then each word of each item likewise."""
    found: list[tuple[Part, History]] = [
        (Part("item", text, 0.0, 0, len(text), place), history[:place] + history[place + 1 :])
        for place, text in enumerate(history)
    ]
    for place, text in enumerate(history):
        for part, rest in words_left_out(text):
            # An item of one word is that word.
            if rest.strip():
                left = (*history[:place], rest, *history[place + 1 :])
                found.append((dataclasses.replace(part, item=place), left))
    return found


def _without(text: str, start: int, end: int) -> str:
    """The text without a part, and without the mark that would then stand twice, or at an end."""
    before, after = text[:start], text[end:]
    for mark in _PARTED:
        if after.startswith(mark) and (not before or before.endswith(mark)):
            return before + after[len(mark) :]
        if before.endswith(mark) and not (after and after[0].isalnum()):
            return before[: -len(mark)] + after
    return before + after


def _read(task: Task, config: Any, history: Sequence[str]) -> list[int]:
    """The places of the history's items that the task reads: the newest ones, each text once."""
    newest = {text: place for place, text in enumerate(history)}
    places = sorted(newest.values(), reverse=True)
    text = _rendered(task, config, [tuple(history)], [""])[0]
    shown = text if isinstance(text, str) else "".join(text)
    read, at = [], 0
    for place in places:
        at = shown.find(history[place], at)
        if at < 0:
            break
        read.append(place)
        at += len(history[place])
    return sorted(read)


def _scores(
    task: Task,
    config: Any,
    encode: Callable[[Sequence[Text]], np.ndarray],
    meant: Callable[[np.ndarray], np.ndarray],
    items: Sequence[str],
    chosen: Sequence[int],
    contexts: Sequence[str] | Sequence[History],
) -> np.ndarray:
    """The score of each context with each of M items, (V, M), in one call of `encode`."""
    texts = _rendered(task, config, contexts, items)
    reads = task.reads(config)
    if reads == "towers":
        vectors = encode([*texts, *task.candidates(config, items)])
        return np.asarray(vectors[: len(texts)] @ vectors[len(texts) :].T)
    scores = np.asarray(meant(encode(texts)))
    if reads == "contexts":
        return scores[:, list(chosen)]
    # Of a likelihood the first column is the score, the second counts tokens.
    return (scores[:, 0] if scores.ndim == 2 else scores).reshape(len(contexts), len(items))


def _rendered(task: Task, config: Any, contexts: Sequence[str] | Sequence[History], items: Sequence[str]) -> list[Text]:
    """What the model reads: a text a context, or a text a context and item."""
    records, texts = _records(contexts, items)
    rows = np.arange(len(contexts))
    if task.reads(config) == "pairs":
        return task.pairs(config, records, rows, texts)
    # Some tokenizers make no token of an empty text, and a model cannot read none.
    return [text or " " for text in task.contexts(config, records, rows, texts)]


def _records(contexts: Sequence[str] | Sequence[History], items: Sequence[str]) -> tuple[Records, list[str]]:
    """Contexts as records with every item as candidate, and the item texts: the candidates', then the histories'."""
    queries = [context for context in contexts if isinstance(context, str)]
    histories = [context for context in contexts if not isinstance(context, str)]
    known = {text: place for place, text in enumerate(dict.fromkeys(text for one in histories for text in one))}
    bounds = np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64)
    log = [len(items) + known[text] for history in histories for text in history]
    n, m = len(contexts), len(items)
    records = Records(
        keys=[str(place) for place in range(n)],
        queries=queries if queries else None,
        users=None,
        starts=None if queries else bounds[:-1],
        cuts=None if queries else bounds[1:],
        times=None,
        offsets=np.arange(n + 1, dtype=np.int64) * m,
        items=np.tile(np.arange(m, dtype=np.int32), n),
        grades=np.zeros(n * m, np.float32),
        log_items=None if queries else np.array(log, np.int32),
    )
    return records, [*items, *known]


def integrated_gradients(
    model: TextModel, tokenizer: PreTrainedTokenizerBase, text: str, other: np.ndarray, steps: int = 32
) -> tuple[list[Part], float]:
    """The words of a text with their effects on its product with `other`, and the effect of all that is no word.

    Together they are the score of the text less that of a text of padding alone, up to the error of the sum.

    Args:
        model: of two towers.
        tokenizer: the model's.
        text: as the task writes it, with its prompt.
        other: (K,), the other side's vector.
        steps: points on the way, by Gauss and Legendre.
    """
    import torch

    row = model.serving.tokens(tokenizer, [text])[0]
    ids = torch.tensor([row["input_ids"]], device=model.device)  # (1, T)
    own, start = _ends(model, tokenizer, ids)
    nodes, weights = (torch.as_tensor(part, dtype=own.dtype) for part in np.polynomial.legendre.leggauss(steps))
    way = ((nodes + 1) / 2).to(own.device)[:, None, None]  # (S, 1, 1)
    points = (start + way * (own - start)).detach().requires_grad_()  # (S, T, D)
    inputs = {name: torch.tensor([row[name]] * steps, device=model.device) for name in row}
    hook = model.base.get_input_embeddings().register_forward_hook(lambda *_: points)
    try:
        with torch.enable_grad():
            outputs = model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))
            target = torch.as_tensor(other, dtype=outputs.dtype, device=outputs.device)
            (slopes,) = torch.autograd.grad((outputs @ target).sum(), points)
    finally:
        hook.remove()
    mean = (slopes * (weights / 2).to(own.device)[:, None, None]).sum(dim=0)  # (T, D)
    effects = (mean * (own - start)[0]).sum(dim=1).double().cpu().numpy()  # (T,)
    return _by_word(tokenizer, text, model.serving.max_tokens, effects)


def _ends(model: TextModel, tokenizer: PreTrainedTokenizerBase, ids: Any) -> tuple[Any, Any]:
    """Vectors of a text's tokens, and those of a text that says nothing, (1, T, D): padding between special tokens.

    Without a padding token it is the end token. Never zeros: a model that norms by length is steep without bound there.
    """
    import torch

    embed = model.base.get_input_embeddings()
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    with torch.no_grad():
        own, nothing = embed(ids), embed(torch.full_like(ids, int(pad or 0)))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids, device=ids.device))
    return own, torch.where(special[:, :, None], own, nothing)


def _by_word(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, effects: np.ndarray
) -> tuple[list[Part], float]:
    """Tokens' effects summed over words; a token that reaches into several is divided by its letters in each."""
    offsets = tokenizer(text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)["offset_mapping"]
    places = spans(text)
    sums, rest = np.zeros(len(places)), 0.0
    for (first, last), effect in zip(offsets, effects, strict=True):
        letters = np.array([max(0, min(last, end) - max(first, start)) for start, end in places])
        if letters.sum():
            sums += effect * letters / letters.sum()
        else:
            rest += float(effect)
    parts = [
        Part("word", text[start:end], float(effect), start, end)
        for (start, end), effect in zip(places, sums, strict=True)
    ]
    return parts, rest
