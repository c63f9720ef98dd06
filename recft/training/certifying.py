"""Certifying: an artefact in its engine against the tuned model's outputs, figure by figure, and a verdict.

The same function serves `export` and `verify`: it needs the engine, the rows and what was asked, and nothing else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from recft import registry
from recft.errors import ExportError, problem
from recft.exports import _certificate as certificate
from recft.exports._base import Engine
from recft.exports._certificate import served
from recft.exports._rows import Rows
from recft.exports._tokenization import same_tokens
from recft.metrics import _base as metrics
from recft.metrics._intervals import paired, pointwise_paired
from recft.models.encoder import remembering
from recft.models.text_model import Serving
from recft.models.tokens import Text
from recft.schema import TaskSettings, Tolerances
from recft.training.held_out import lists_of, scored_rows
from recft.training.scoring import Scored, pointwise

__all__ = ["Asked", "certify"]

FEW = 8
"""Texts that are passed again: alone, all lengths together, in batches of another size, padded on the other side."""

OTHER_BATCH = 3

ROUGHLY = 0.05
"""A score of few bits moves so far by rounding alone."""


@dataclass(frozen=True)
class Asked:
    """What an artefact is certified for; it travels in the certificate.

    Attributes:
        serving: how texts become numbers.
        task: the task's settings.
        metrics: what both models are scored by.
        metric: the one that is judged.
        gain: of grades.
        tolerances: the recipe's.
        effect_kl: what the adapter itself changes, as KL.
        distilled: whether the weights were fitted to the tuned model's outputs.
    """

    serving: Serving
    task: TaskSettings
    metrics: tuple[str, ...]
    metric: str
    gain: str
    tolerances: Tolerances
    effect_kl: float
    distilled: bool = False

    def to_json(self) -> dict[str, Any]:
        """A plain mapping; `from_json` of it is equal to this one."""
        return {
            "serving": self.serving.to_json(),
            "task": self.task.model_dump(mode="json"),
            "metrics": list(self.metrics),
            "metric": self.metric,
            "gain": self.gain,
            "tolerances": self.tolerances.model_dump(),
            "effect_kl": self.effect_kl,
            "distilled": self.distilled,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Asked:
        """The reverse of `to_json`."""
        settings = registry.load("recft.tasks", value["task"]["name"]).Config
        return cls(
            serving=Serving.from_json(value["serving"]),
            task=settings.model_validate(value["task"]),
            metrics=tuple(value["metrics"]),
            metric=value["metric"],
            gain=value["gain"],
            tolerances=Tolerances.model_validate(value["tolerances"]),
            effect_kl=float(value["effect_kl"] or 0.0),
            distilled=bool(value["distilled"]),
        )


def certify(engine: Engine, rows: Rows, asked: Asked) -> dict[str, Any]:
    """The certificate: how far the engine's numbers are from the rows', what was judged, and the verdict.

    An engine that gives no numbers, or others than asked, fails in words; nothing is compared with NaN.

    Raises:
        ExportError: there are no rows.
    """
    if not len(rows.contexts):
        raise ExportError(
            problem("certificate", "there are no rows", "an export is certified on held-out rows", "prepare more data")
        )
    return _Certifying(engine, rows, asked).found()


class _Certifying:
    """One artefact on its way to a verdict; every text is computed once, and a few of them again in other company."""

    def __init__(self, engine: Engine, rows: Rows, asked: Asked) -> None:
        self.engine, self.rows, self.asked = engine, rows, asked
        self.head = asked.serving.head
        self.plain = partial(served, engine, asked.serving)

    def found(self) -> dict[str, Any]:
        """The whole certificate."""
        asked = self.asked
        found: dict[str, Any] = {
            "engine": self.engine.name,
            "version": self.engine.version,
            "dtype": self.engine.dtype,
            "rows": len(self.rows.contexts),
            "items": len(self.rows.items),
            "metric": asked.metric,
            "effect_kl": asked.effect_kl,
            "tolerances": asked.tolerances.model_dump(),
            "distilled": asked.distilled,
        }
        of_tokens, wrong = same_tokens(self.engine, self.rows, asked.serving)
        found |= of_tokens
        if unfit := self._unfit():
            bounds, wrong = [], [unfit, *wrong]
            found["worst_rows"] = self._without_numbers()
        else:
            self._distances(found)
            wrong += self._company(found)
            self._metrics(found)
            bounds = self._bounds()
            wrong = [*certificate.judge(found, bounds), *wrong]
            if self.engine.own is not None:
                found["own"], own_wrong = self.engine.own(self.rows)
                wrong += own_wrong
        found["judged"] = [dataclasses.asdict(bound) for bound in bounds]
        found["wrong"], found["verdict"] = wrong, "failed" if wrong else "passed"
        cleaned: dict[str, Any] = _finite(found)
        return cleaned

    @cached_property
    def outputs(self) -> tuple[np.ndarray, np.ndarray, float]:
        """The engine's numbers for contexts (R, K) and items (C, K), and texts a second."""
        self.plain(self.rows.contexts[:1])  # what an engine sets up at first is no part of its speed
        encode = remembering(self.plain)
        start = time.perf_counter()
        contexts, items = encode(self.rows.contexts), encode(self.rows.items)
        seconds = time.perf_counter() - start
        different = len(dict.fromkeys([*self.rows.contexts, *self.rows.items]))
        return contexts, items, different / max(seconds, 1e-9)

    @cached_property
    def expected(self) -> np.ndarray:
        """The tuned model's scores."""
        return certificate.reference_scores(self.rows, self.head)

    @cached_property
    def scores(self) -> np.ndarray:
        """The engine's scores."""
        return self._scored(self.outputs[0])

    def _scored(self, contexts: np.ndarray) -> np.ndarray:
        return certificate.scores_of(contexts, self.outputs[1] if len(self.rows.items) else None, self.head)

    def _unfit(self) -> str:
        """Why the engine's outputs cannot be compared at all; nothing where they can."""
        both = zip(
            (self.rows.contexts, self.rows.items),
            (self.rows.context_outputs, self.rows.item_outputs),
            self.outputs[:2],
            strict=True,
        )
        for texts, ours, theirs in both:
            if not len(texts):
                continue
            if ours.shape != theirs.shape:
                return (
                    f"the engine gives {theirs.shape[-1]} numbers a text, the tuned model {ours.shape[-1]}: "
                    "its head or its pooling is lost (export again, or to another target)"
                )
            for outputs, whose in ((ours, "tuned model"), (theirs, "engine")):
                bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
                if len(bad):
                    return (
                        f"{len(bad)} of {len(texts)} texts get no number from the {whose} (NaN or infinite), the "
                        f"first {certificate.shown(texts[bad[0]])} (set export.dtype: float32, or to another target)"
                    )
        return ""

    def _without_numbers(self) -> list[str]:
        """The first texts for which the engine gives no numbers."""
        outputs = self.outputs[0]
        bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))[:5].tolist() if outputs.ndim == 2 else []
        return [f"{certificate.shown(self.rows.contexts[row])}: {outputs[row][:3].tolist()} served" for row in bad]

    def _distances(self, found: dict[str, Any]) -> None:
        """Scores, KL, first places."""
        rows, dtype = self.rows, self.engine.dtype
        found |= certificate.compare(self.expected, self.scores, self.asked.serving.temperature)
        ours = lists_of(rows, self.asked.task, rows.context_outputs, rows.item_outputs)
        theirs = lists_of(rows, self.asked.task, *self.outputs[:2])
        classes = registry.load("recft.tasks", self.asked.task.name).output == "classes"
        agree = partial(certificate.agreement, ours, theirs, top=1 if classes else certificate.TOP)
        found["top_k_agreement"] = agree(certificate.near(ours, dtype))
        found["top_k_agreement_exact"] = agree(certificate.near(ours, "float32"))
        found["worst_rows"] = certificate.worst_rows(rows, self.expected, self.scores)

    def _company(self, found: dict[str, Any]) -> list[str]:
        """What other texts in the batch and the side of the padding change, and how fast the engine is."""
        few = _of_all_lengths(self.rows.contexts)
        texts = [self.rows.contexts[row] for row in few]
        together = self.scores[few]
        alone, seconds = [], []
        for text in texts:
            start = time.perf_counter()
            alone.append(self.plain([text]))
            seconds.append(time.perf_counter() - start)
        ragged = self.plain(texts)
        thirds = [self.plain(texts[start : start + OTHER_BATCH]) for start in range(0, len(texts), OTHER_BATCH)]
        tried = {"alone": np.concatenate(alone), "in a ragged batch": ragged, "in threes": np.concatenate(thirds)}
        found["batch_change"] = float(np.max([self._change(together, outputs) for outputs in tried.values()]))
        found["padding_change"], found["padding_matters"] = None, None
        if self.engine.other_side is not None:
            other = self.engine.other_side(self.asked.serving.cut(self.engine.tokenizer, texts))
            found["padding_change"] = self._change(self._scored(ragged), other)
            rounding = [bound.limit for bound in self._bounds() if bound.figure == "batch_change"]
            found["padding_matters"] = not found["padding_change"] <= max(rounding, default=ROUGHLY)
        speed = {"one_ms": 1000 * float(np.median(seconds)), "texts_per_second": self.outputs[2]}
        found["latency"] = {name: float(f"{value:.4g}") for name, value in speed.items()}
        return [
            f"texts passed {how} get no number from the engine (NaN or infinite) (export to another target)"
            for how, outputs in tried.items()
            if not np.isfinite(outputs).all()
        ]

    def _change(self, scores: np.ndarray, outputs: np.ndarray) -> float:
        """How far the scores of some outputs are from scores of the same texts."""
        return float(np.abs(self._scored(outputs) - scores).max(initial=0))

    def _metrics(self, found: dict[str, Any]) -> None:
        """The task's metrics of both models and the paired change of the judged one."""
        rows, asked = self.rows, self.asked
        names = tuple(dict.fromkeys((*asked.metrics, asked.metric)))
        score = partial(scored_rows, rows, asked.task, names, asked.gain)
        before = score(rows.context_outputs, rows.item_outputs, calibration=asked.serving.calibration)
        after = score(*self.outputs[:2], calibration=asked.serving.calibration)
        found["metrics"] = {"reference": before.values, "served": after.values}
        change = after.values[asked.metric] - before.values[asked.metric]
        # Where the rows have no answer (one class alone), the tuned model has no score either.
        found["metric_change"] = None if np.isnan(before.values[asked.metric]) else change
        interval = None if found["metric_change"] is None else _interval(asked, before, after, rows.clusters)
        found["metric_interval"] = None if interval is None else list(interval)

    def _bounds(self) -> list[certificate.Bound]:
        asked, largest = self.asked, float(np.abs(self.expected).max(initial=0))
        return certificate.bounds_of(self.engine.dtype, asked.tolerances, asked.effect_kl, asked.distilled, largest)


def _of_all_lengths(texts: Sequence[Text]) -> list[int]:
    """A few of the texts, short ones and long ones in turn."""
    order = sorted(range(len(texts)), key=lambda row: sum(map(len, texts[row])))
    chosen = [order[place] for place in np.linspace(0, len(order) - 1, min(FEW, len(order))).astype(int)]
    return [chosen[place // 2] if place % 2 == 0 else chosen[-(place // 2) - 1] for place in range(len(chosen))]


def _interval(asked: Asked, before: Scored, after: Scored, clusters: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of the metric's change, paired by record, or by pair for labels."""
    if asked.metric in after.per_record:
        return paired(after.per_record[asked.metric], before.per_record[asked.metric], clusters).interval
    if after.labels is None or before.labels is None:
        return None
    output = registry.load("recft.tasks", asked.task.name).output
    metric: metrics.Metric = pointwise(asked.metric, output)
    if metric.pointwise is None:
        return None
    return pointwise_paired(metric.pointwise, after.labels, before.labels).interval


def _finite(value: Any) -> Any:
    """The value with None for every number that is none: JSON knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
