"""The certificate's figures: how far an artefact in its engine is from the tuned model, and what of it is judged.

For ranking, scores are products of context and item vectors; for labels, they are the outputs themselves. What is
judged depends on what was written:

    float32           scores, first places, batch size, metric
    16 bits           KL beside the adapter's own effect, first places, batch size, metric
    8 or 4 bits       first places, metric (within `quantized_metric`); scores and KL are told
    a distilled model KL beside the adapter's own effect (`distilled`), metric

In 16 bits, where KL holds the scores, and of a distilled model a change of the metric whose paired interval holds 0
passes too: with few records one near tie that changes places is a change. In all of them tokens and the padding side
are those of the tuned model, and every output is a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recft.exports._base import Engine
from recft.exports._rows import Rows
from recft.models.text_model import Serving
from recft.models.tokens import Text
from recft.schema import Tolerances

__all__ = [
    "TOP",
    "Bound",
    "agreement",
    "bounds_of",
    "compare",
    "judge",
    "kl_divergence",
    "near",
    "reference_scores",
    "scores_by",
    "scores_of",
    "served",
    "shown",
    "worst_rows",
]

Encode = Callable[[Sequence[Text]], np.ndarray]

TOP = 10
"""Places that must agree."""

EXACT = ("float32", "float64")
HALF = ("bfloat16", "float16")

HALF_STEP = 2.0**-7
"""What bfloat16's 8 bits, or an 8-bit number's, keep apart: nearer than this share of a score there is no order."""


def served(engine: Engine, serving: Serving, texts: Sequence[Text]) -> np.ndarray:
    """The engine's outputs for texts of any length: (body, tail) texts are cut as recft cuts them."""
    return engine.encode(serving.cut(engine.tokenizer, texts))


def scores_by(rows: Rows, encode: Encode, head: str) -> np.ndarray:
    """The scores that `encode` gives the rows, (R, C), or their outputs where there are no items, (R, K).

    Of a likelihood it is log p a token, (R, 1): a long reply's sum would magnify rounding.
    """
    return scores_of(encode(rows.contexts), encode(rows.items) if len(rows.items) else None, head)


def reference_scores(rows: Rows, head: str) -> np.ndarray:
    """The same of the tuned model."""
    return scores_of(rows.context_outputs, rows.item_outputs if len(rows.items) else None, head)


def scores_of(contexts: np.ndarray, items: np.ndarray | None, head: str) -> np.ndarray:
    """The scores of outputs (R, K), and of the items' (C, K) where there are any."""
    if head == "likelihood":
        return np.asarray(contexts[:, :1] / contexts[:, 1:])
    return contexts if items is None else contexts @ items.T


def kl_divergence(reference: np.ndarray, other: np.ndarray, temperature: float) -> float:
    """KL(reference ‖ other) in nats, mean over rows, of softmax(score / temperature); one output is a logistic.

    >>> round(kl_divergence(np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]]), 1.0), 4)
    0.1201
    """
    if reference.shape[1] == 1:
        reference, other = (np.concatenate([scores, np.zeros_like(scores)], axis=1) for scores in (reference, other))
    p, q = (_log_softmax(scores.astype(np.float64) / temperature) for scores in (reference, other))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def compare(reference: np.ndarray, other: np.ndarray, temperature: float) -> dict[str, Any]:
    """The distances between two score matrices of the same rows."""
    difference = np.abs(reference.astype(np.float64) - other)
    return {
        "rows": len(reference),
        "largest_score_difference": float(difference.max(initial=0)),
        "mean_score_difference": float(difference.mean()) if difference.size else 0.0,
        "kl": kl_divergence(reference, other, temperature) if difference.size else 0.0,
    }


def near(reference: Sequence[np.ndarray], dtype: str) -> list[float]:
    """How near two of the tuned model's scores must be to count as equal in each list.

    In float32 that is 1e-6, the rounding of a product (of scores above 1, such as sums of log p, their share). In 16
    bits it is 2^-7 of the largest score of all lists: what bfloat16's eight bits keep apart. In 8 or 4 bits it is
    2^-7 of the list's own range, one step of an 8-bit scale laid over its scores. Noise of quantization is larger than
    that, and most of all in 4 bits, but it gets no wider allowance: the ruler must not grow coarser with what it
    measures. Places that such noise has exchanged count as wrong; `top_k_agreement_exact` is told beside it, by the
    ruler of float32.
    """
    largest = max((float(np.abs(scores).max(initial=0)) for scores in reference), default=0.0)
    if dtype in EXACT:
        return [1e-6 * max(1.0, largest)] * len(reference)
    if dtype in HALF:
        return [HALF_STEP * largest] * len(reference)
    return [max(1e-6, HALF_STEP * float(np.ptp(scores))) if len(scores) else 1e-6 for scores in reference]


def agreement(
    reference: Sequence[np.ndarray], other: Sequence[np.ndarray], rounding: Sequence[float], top: int = TOP
) -> float | None:
    """The share of the reference's first places that the other fills as well; None where no list has two entries.

    Of a list of L entries the first `top` are compared, and no more than L / 2: all of them agree by themselves. An
    entry that the other puts there counts where the reference's own score for it is not below its last place's by
    more than rounding.

    >>> agreement([np.array([3.0, 2.0, 1.0, 0.0])], [np.array([0.0, 2.0, 3.0, 1.0])], [1e-6])
    0.5
    """
    shares = []
    for ours, theirs, slack in zip(reference, other, rounding, strict=True):
        depth = min(top, len(ours) // 2)
        if depth:
            first = np.argpartition(-theirs, depth - 1)[:depth]
            last = -np.partition(-ours, depth - 1)[depth - 1]
            shares.append((ours[first] >= last - slack).mean())
    return float(np.mean(shares)) if shares else None


@dataclass(frozen=True)
class Bound:
    """One figure that is judged.

    Attributes:
        figure: its key in the certificate.
        limit: what its absolute value must not pass.
        key: the setting that holds the limit.
        fix: what to do where it fails.
        at_least: whether the limit is the least, not the most.
        or_interval: whether an interval that holds 0 passes too (of a change).
    """

    figure: str
    limit: float
    key: str
    fix: str
    at_least: bool = False
    or_interval: bool = False

    def passes(self, found: Mapping[str, Any]) -> bool:
        """Whether the figure is within its limit; what is not a number is not."""
        value = float(found[self.figure])
        if self.at_least:
            return value >= self.limit
        interval = found.get("metric_interval") if self.or_interval else None
        return abs(value) <= self.limit or (interval is not None and interval[0] <= 0 <= interval[1])


def bounds_of(
    dtype: str, tolerances: Tolerances, effect_kl: float, distilled: bool = False, largest: float = 1.0
) -> list[Bound]:
    """What is judged of an artefact that was written in `dtype`.

    Args:
        dtype: `float32`, `bfloat16`, `float16`, or one of fewer bits.
        tolerances: of the recipe.
        effect_kl: what the adapter itself changes.
        distilled: whether the weights were fitted to the tuned model's outputs.
        largest: the tuned model's largest score: what 16 bits round is a share of it.
    """
    again = "export again, or to another target"
    wider = "set export.dtype: float32, or loosen the tolerance"
    agree = Bound(
        "top_k_agreement",
        tolerances.top_k_agreement,
        "top_k_agreement",
        again if dtype in EXACT else wider,
        at_least=True,
    )
    exact = Bound("metric_change", tolerances.metric, "metric", again)
    metric = replace(exact, fix=wider, or_interval=True)
    # Of few bits nothing but places and the metric is judged: an interval of few records would let anything pass.
    rough = Bound("metric_change", tolerances.quantized_metric, "quantized_metric", wider)
    if dtype in EXACT:
        batch = [Bound("batch_change", tolerances.score, "score", "serve one text a batch, or another target")]
    elif dtype in HALF:
        limit = max(0.05, 2 * HALF_STEP * largest)
        batch = [Bound("batch_change", limit, "", "set export.dtype: float32")]
    else:
        batch = []
    if distilled:
        longer = "raise rank or steps of the fit (export.targets), or loosen the tolerance"
        effect = Bound("kl", max(tolerances.distilled * effect_kl, 1e-9), "distilled", longer)
        return [effect, *batch, replace(rough, fix=longer, or_interval=True)]
    if dtype in EXACT:
        return [Bound("largest_score_difference", tolerances.score, "score", again), agree, *batch, exact]
    if dtype in HALF:
        return [Bound("kl", max(tolerances.effect * effect_kl, 1e-9), "effect", wider), agree, *batch, metric]
    return [agree, *batch, rough]


def judge(found: Mapping[str, Any], bounds: Sequence[Bound]) -> list[str]:
    """What is wrong with an artefact, in words that name limit, setting and fix; nothing where it passes.

    A figure that there is none of (None) is not judged: a task that neither ranks nor chooses has no first places.
    """
    wrong = []
    for bound in bounds:
        if found.get(bound.figure) is not None and not bound.passes(found):
            named = f"export.tolerances.{bound.key}: {bound.limit:.3g}" if bound.key else f"at most {bound.limit:.3g}"
            wrong.append(f"{_words(found, bound)} ({named}; {bound.fix})")
    return wrong


def _words(found: Mapping[str, Any], bound: Bound) -> str:
    value = float(found[bound.figure])
    if bound.figure == "largest_score_difference":
        return f"scores differ by {value:.2e}, {found.get('mean_score_difference', 0.0):.2e} in the mean"
    if bound.figure == "kl":
        whose = f" of the adapter's own effect, {found.get('effect_kl', 0.0):.2e}"
        return f"KL {value:.2e} is above its share{whose}"
    if bound.figure == "top_k_agreement":
        return f"the first {TOP} agree in {value:.2%}"
    if bound.figure == "batch_change":
        return f"scores change by {value:.2e} with the batch size"
    interval = found.get("metric_interval")
    shown = f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""
    return f"{found.get('metric', 'the metric')} changes by {value:+.4f}{shown}"


def worst_rows(rows: Rows, reference: np.ndarray, other: np.ndarray, n: int = 5) -> list[str]:
    """The first of the rows that differ most, for people; what is not a number comes first."""
    apart = np.nan_to_num(np.abs(reference - other), nan=np.inf)  # (R, C)
    lines = []
    for row in np.argsort(-apart.max(axis=1, initial=0), kind="stable")[:n]:
        column = int(apart[row].argmax())
        of = f" for {shown(rows.items[column], 30)}" if len(rows.items) else ""
        ours, theirs = reference[row, column], other[row, column]
        lines.append(f"{shown(rows.contexts[row])}{of}: {ours:.6f} tuned, {theirs:.6f} served")
    return lines


def shown(text: Text, most: int = 60) -> str:
    """The beginning of a text, for people."""
    whole = text if isinstance(text, str) else " | ".join(text)
    return repr(whole[:most])
