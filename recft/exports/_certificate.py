"""The certificate: how far an artefact in its engine is from the tuned model, on held-out rows.

Rows are texts with the reference's outputs beside them, so that an export can be certified again with nothing else.
For ranking, scores are products of context and item vectors; for labels, they are the outputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft.exports._base import Engine
from recft.models.text_model import Serving, remembering
from recft.run import atomic_file, without_nan
from recft.schema import Tolerances

__all__ = [
    "Rows",
    "certify",
    "compare",
    "judge",
    "kl_divergence",
    "reference_scores",
    "scores_by",
    "served",
    "worst_rows",
]

Text = str | tuple[str, str]
Encode = Callable[[Sequence[Text]], np.ndarray]
TOP = 10


@dataclass(frozen=True)
class Rows:
    """Held-out inputs and what the reference makes of them.

    Attributes:
        contexts: R texts (of ranking: queries or histories; of labels: whole prompts).
        items: C texts of the catalogue; none for labels.
        context_outputs: the reference's, (R, K) float32.
        item_outputs: the reference's, (C, K) float32.
    """

    contexts: Sequence[Text]
    items: Sequence[Text]
    context_outputs: np.ndarray
    item_outputs: np.ndarray

    def write(self, path: Path) -> None:
        """Writes the rows as Parquet; (body, tail) texts in two columns."""
        texts = [*self.contexts, *self.items]
        outputs = np.concatenate([self.context_outputs, self.item_outputs]) if len(self.items) else self.context_outputs
        frame = pl.DataFrame(
            {
                "part": ["context"] * len(self.contexts) + ["item"] * len(self.items),
                "text": [text if isinstance(text, str) else text[0] for text in texts],
                "tail": [None if isinstance(text, str) else text[1] for text in texts],
                "outputs": outputs.tolist(),
            },
            schema={"part": pl.String, "text": pl.String, "tail": pl.String, "outputs": pl.List(pl.Float32)},
        )
        with atomic_file(path) as draft:
            frame.write_parquet(draft)

    @classmethod
    def read(cls, path: Path) -> Rows:
        """The reverse of `write`."""
        parts: dict[str, tuple[list[Text], np.ndarray]] = {}
        frame = pl.read_parquet(path)
        for part in ("context", "item"):
            chosen = frame.filter(pl.col("part") == part)
            texts: list[Text] = [
                text if tail is None else (text, tail)
                for text, tail in zip(chosen["text"].to_list(), chosen["tail"].to_list(), strict=True)
            ]
            outputs = chosen["outputs"].to_list()
            parts[part] = texts, np.array(outputs, np.float32).reshape(len(texts), len(outputs[0]) if outputs else 0)
        return cls(parts["context"][0], parts["item"][0], parts["context"][1], parts["item"][1])


def scores_by(rows: Rows, encode: Callable[[Sequence[Text]], np.ndarray], head: str) -> np.ndarray:
    """The scores that `encode` gives the rows, (R, C), or their outputs where there are no items, (R, K).

    Of a likelihood it is log p a token, (R, 1): a long reply's sum would magnify rounding.
    """
    return _scores(encode(rows.contexts), encode(rows.items) if len(rows.items) else None, head)


def reference_scores(rows: Rows, head: str) -> np.ndarray:
    """The same of the reference."""
    return _scores(rows.context_outputs, rows.item_outputs if len(rows.items) else None, head)


def _scores(contexts: np.ndarray, items: np.ndarray | None, head: str) -> np.ndarray:
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


def compare(reference: np.ndarray, other: np.ndarray, temperature: float, rounding: float = 1e-6) -> dict[str, Any]:
    """The distances between two score matrices of the same rows; scores nearer than `rounding` may change places."""
    difference = np.abs(reference - other)
    return {
        "rows": len(reference),
        "largest_score_difference": float(difference.max(initial=0)),
        "mean_score_difference": float(difference.mean()) if difference.size else 0.0,
        "kl": kl_divergence(reference, other, temperature),
        "top_k_agreement": _agreement(reference, other, rounding),
    }


def _agreement(reference: np.ndarray, other: np.ndarray, rounding: float) -> float:
    """The share of the reference's first ten that the other has too; near-equal scores may change places.

    A column that the other ranks tenth or better counts where the reference's own score for it is not below its
    tenth by more than rounding.
    """
    depth = min(TOP, reference.shape[1])
    if reference.shape[1] <= 1:
        return 1.0
    theirs = np.argpartition(-other, depth - 1, axis=1)[:, :depth]
    tenth = -np.sort(-reference, axis=1)[:, depth - 1 : depth]
    return float((np.take_along_axis(reference, theirs, axis=1) >= tenth - rounding).mean())


def judge(found: Mapping[str, Any], tolerances: Tolerances, effect_kl: float, is_float32: bool) -> list[str]:
    """What is wrong with an artefact, in words; nothing where it passes.

    A float32 artefact must score as the reference does; one in a smaller dtype may be off by 1% of what the
    adapter itself changes.
    """
    wrong = []
    if is_float32 and not found["largest_score_difference"] <= tolerances.score:
        wrong.append(
            f"scores differ by {found['largest_score_difference']:.2e} "
            f"(export.tolerances.score: {tolerances.score:.0e})"
        )
    if not is_float32 and not found["kl"] <= max(0.01 * effect_kl, 1e-9):
        wrong.append(f"KL {found['kl']:.2e} is above 1% of the adapter's own effect, {effect_kl:.2e}")
    if not found["top_k_agreement"] >= tolerances.top_k_agreement:
        wrong.append(
            f"the first {TOP} agree in {found['top_k_agreement']:.2%} "
            f"(export.tolerances.top_k_agreement: {tolerances.top_k_agreement:.0%})"
        )
    if found["tokenization_differs"]:
        wrong.append(f"{found['tokenization_differs']} texts are tokenized differently")
    if not found["batch_change"] <= (tolerances.score if is_float32 else 0.05):
        wrong.append(f"scores change by {found['batch_change']:.2e} with the batch size")
    if (change := found.get("metric_change")) is not None and not abs(change) <= tolerances.metric:
        wrong.append(f"{found['metric']} changes by {change:+.4f} (export.tolerances.metric: {tolerances.metric})")
    return wrong


def worst_rows(rows: Rows, reference: np.ndarray, other: np.ndarray, n: int = 5) -> list[str]:
    """The first of the rows that differ most, for people."""
    worst = np.argsort(-np.abs(reference - other).max(axis=1))[:n]
    lines = []
    for row in worst:
        column = int(np.abs(reference[row] - other[row]).argmax())
        text = rows.contexts[row] if isinstance(rows.contexts[row], str) else " | ".join(rows.contexts[row])
        lines.append(f"{text[:60]!r}: {reference[row, column]:.6f} tuned, {other[row, column]:.6f} served")
    return lines


def served(engine: Engine, serving: Serving, texts: Any) -> np.ndarray:
    """The engine's outputs for texts of any length: (body, tail) texts are cut as recft cuts them."""
    return engine.encode(serving.cut(engine.tokenizer, texts))


def certify(
    engine: Engine, rows: Rows, serving: Serving, tokenizer: Any, tolerances: Tolerances, effect_kl: float
) -> dict[str, Any]:
    """The distances between the engine's scores and the rows' reference, and a verdict on them."""
    plain = partial(served, engine, serving)
    encoder = remembering(plain)
    expected, found_scores = reference_scores(rows, serving.head), scores_by(rows, encoder, serving.head)
    found: dict[str, Any] = {"engine": engine.name, "version": engine.version, "dtype": engine.dtype}
    # A smaller dtype keeps 8 (bfloat16) or 11 bits of a score: nearer ones have no order.
    rounding = 1e-6 if engine.dtype == "float32" else 2**-7 * float(np.abs(expected).max(initial=0))
    found |= compare(expected, found_scores, serving.temperature, rounding)
    together = encoder(rows.contexts)
    # Texts of other lengths beside it must not change a row: each of a few is passed alone.
    few = rows.contexts[:8]
    alone = [np.abs(_scores(plain([text]) - together[row : row + 1], None, "")).max() for row, text in enumerate(few)]
    found["batch_change"] = float(max(alone, default=0.0))
    texts = serving.cut(tokenizer, [*rows.contexts])
    ours, theirs = (serving.tokens(t, texts) for t in (tokenizer, engine.tokenizer))
    found["tokenization_differs"] = sum(a["input_ids"] != b["input_ids"] for a, b in zip(ours, theirs, strict=True))
    found["worst_rows"] = worst_rows(rows, expected, found_scores)
    found["wrong"] = judge(found, tolerances, effect_kl, engine.dtype == "float32")
    found["verdict"] = "failed" if found["wrong"] else "passed"
    return dict(without_nan(found))
