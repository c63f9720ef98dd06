"""How an exported model reads text and what its numbers mean, in words that a serving engineer needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from recft.reports.sheets import number

__all__ = ["how_it_reads"]

MOST_LABELS = 40

_PROMPTS = {
    "query_prompt": "before every query or history",
    "item_prompt": "before every item",
    "before": "before the first part",
    "between": "before the second part",
    "after": "after the last part",
}


def how_it_reads(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        serving: `Serving.to_json`.
        task: the task's settings.
    """
    head = serving["head"]
    yield from (f"- {line}" for line in _SHAPES[head](serving, task))
    yield from (f"- {line}" for line in _texts(serving, task))
    yield from (f"- {line}" for line in _labels(serving))
    yield from (f"- {line}" for line in _probabilities(serving))
    yield ""


def _embedding(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG001
    pooled = {
        "mean": "the mean of the last hidden states over real tokens, special ones included, padding not",
        "last": "the last hidden state of the last real token",
    }
    yield "One text in, one vector out. Queries (or histories) and items are read apart, by the same model."
    yield f"Pooling `{serving['pooling']}`: {pooled.get(serving['pooling'], 'as the engine does')}."
    if serving.get("normalize"):
        yield "Vectors are brought to length 1. A score is the dot product of two vectors, so their cosine."
    else:
        yield "Vectors keep their length. A score is the dot product of two vectors."
    yield f"Training divided scores by the temperature {number(serving.get('temperature'))}; order does not change."


def _classifier(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG001
    n = len(serving.get("columns") or ()) or int(serving.get("n_outputs") or 1)
    yield f"One input in, {number(n)} {'logits' if n > 1 else 'logit'} of a trained head out."
    if serving.get("columns"):
        yield (
            f"The head has {number(serving.get('n_outputs'))} outputs, of several tasks: this one's are columns "
            f"{', '.join(map(str, serving['columns']))}, counted from 0."
        )


def _answers(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG001
    yield (
        "One prompt in. The numbers are the logits of the answers' tokens at the prompt's last real token; nothing is "
        "generated."
    )


def _likelihood(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:  # noqa: ARG001
    yield (
        "A prompt and a continuation in; out come the sum of log p of the continuation's tokens, its end token "
        "included, and how many tokens these are."
    )
    yield "Prompt and continuation are tokenized apart and joined."


_SHAPES = {"embedding": _embedding, "classifier": _classifier, "answers": _answers, "likelihood": _likelihood}


def _texts(serving: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[str]:
    head, most = serving["head"], number(serving["max_tokens"])
    if head == "embedding" or (head == "classifier" and "between" not in task):
        yield f"A text is cut after {most} tokens, special tokens included."
    elif head == "likelihood":
        yield f"Both together have at most {most} tokens: the prompt loses its start."
    elif serving["kind"] == "encoder":
        yield (
            f"Two parts are the base's two segments, together at most {most} tokens, special tokens included: the "
            "first part is cut, the second only beyond three quarters of the room."
        )
    else:
        yield (
            f"Two parts are joined into one string of at most {most} tokens: the first part is cut, the second, which "
            "ends with the question, only beyond three quarters of the room."
        )
    yield f"Padding stands on the {serving.get('padding_side', 'right')}."
    if serving.get("chat"):
        yield "A prompt goes through the tokenizer's chat template, up to where the reply begins."
    for key, where in _PROMPTS.items():
        # Towers read other settings than those who read two parts together.
        if task.get(key) and key.endswith("_prompt") == (head == "embedding"):
            yield f"{_code(task[key])} stands {where}."


def _labels(serving: Mapping[str, Any]) -> Iterator[str]:
    labels, ids = serving.get("labels") or (), serving.get("label_ids") or ()
    if not labels:
        return
    shown = list(labels)[:MOST_LABELS]
    named = [f"{_code(label)} (token {ids[place]})" if ids else _code(label) for place, label in enumerate(shown)]
    more = f" and {len(labels) - len(shown)} more, see `recft-export.json`" if len(labels) > len(shown) else ""
    yield f"Outputs in order: {', '.join(named)}{more}."


def _probabilities(serving: Mapping[str, Any]) -> Iterator[str]:
    found = serving.get("calibration")
    if not found:
        if serving["head"] in ("classifier", "answers"):
            yield "Probabilities are not calibrated."
        return
    if found.get("kind") == "temperature":
        yield (
            "Probabilities were calibrated on validation: divide log-odds (of several classes the logits) by the "
            f"temperature {float(found['temperature']):.4g}, then sigmoid (softmax). Order does not change."
        )
        return
    yield (
        "Probabilities were calibrated on validation by isotonic regression: a line through "
        f"{len(found['from'])} points (`serving.calibration` of `recft-export.json`) takes each to its corrected one."
    )


def _code(text: object) -> str:
    """Exactly this text, spaces and line ends to be seen, as code."""
    line = json.dumps(str(text), ensure_ascii=False)
    ticks = "``" if "`" in line else "`"
    return f"{ticks} {line} {ticks}" if ticks == "``" else f"{ticks}{line}{ticks}"
