"""The report of one task of a run: every system scored on one exam, and what the scores say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft.data.slices import slices
from recft.data.store import Split, Store
from recft.errors import DataError, RecipeError, problem
from recft.models.encoder import Encoder
from recft.perturbations._spoilt import spoilt_task
from recft.perturbations._words import built_in, read_words
from recft.recipe import Recipe
from recft.reports import findings, judge
from recft.reports.evidence import slice_columns
from recft.run import (
    Listener,
    atomic_file,
    hash_file,
    without_nan,
)
from recft.tasks._base import Task
from recft.training import classics
from recft.training.assemble import Tuned, open_adapter
from recft.training.calibration import calibrated
from recft.training.exam import Exam, System, corrected, few_records, model_system
from recft.training.explanation import explain
from recft.training.fusion import Fusion, fit_fusion
from recft.training.item_vectors import finished
from recft.training.opened import Opened, exam_of, open_run, refuse_no_effect
from recft.training.scoring import Scored, score, score_all

__all__ = ["TaskReport"]

MOST_EXPLAINED = 3
SPOIL_SEED = 7

RULE = (
    "sum of weight x term; a system's term is its score with mean 0 and deviation 1 among a record's candidates, "
    "<system>:rank is -log(10 + rank); of labels log-odds, of classes log p, of values the number, plus the intercept"
)


@dataclass(frozen=True)
class TaskReport:
    """The report of one task of a run."""

    opened: Opened
    recipe: Recipe
    store: Store
    split: Split
    listen: Listener

    def refuse_nothing(self) -> None:
        """Nothing, where the split has records, and every way to spoil them is known.

        Raises:
            DataError: it has none.
            RecipeError: there is no such way.
        """
        if not len(self.whole.records):
            value = f"the {self.split} split of {self.recipe.task.name} is empty"
            fix = f"prepare and tune with a larger data.split.{self.split}, or name another --split"
            raise DataError(problem("--split", value, "there is something to score", fix))
        _ = self.spoilt

    @cached_property
    def spoilt(self) -> dict[str, Task]:
        """The task with contexts spoilt, by the way they are.

        Raises:
            RecipeError: there is no such way.
        """
        settings, task = self.recipe.eval, self.whole.task
        if not settings.robustness:
            return {}
        words = read_words(settings.synonyms) if settings.synonyms else built_in()
        return {
            name: spoilt_task(task, {name: share}, SPOIL_SEED, words=words)
            for name, share in settings.robustness.items()
        }

    @cached_property
    def whole(self) -> Exam:
        """The exam on all records of the split."""
        return exam_of(self.recipe, self.store, self.split)

    @cached_property
    def exam(self) -> Exam:
        """The exam on the records that the recipe asks for."""
        wanted = self.recipe.eval.records
        return few_records(self.whole, wanted) if wanted else self.whole

    @cached_property
    def valid(self) -> Exam:
        """The exam by which classic rows are chosen and sums are fitted."""
        exam = exam_of(self.recipe, self.store, "valid", (self.whole.task.monitor,))
        return few_records(exam, self.recipe.eval.records) if self.recipe.eval.records else exam

    @cached_property
    def classic_names(self) -> list[str]:
        """The classic rows of this table."""
        return classics.fitting(self.recipe.eval.baselines, self.store, self.whole.task.output)

    @cached_property
    def others(self) -> dict[str, Opened]:
        """Other runs whose models join the table, by name: those with a task over this task's data.

        Raises:
            DataError: one is over other data altogether, or its name is taken.
        """
        found: dict[str, Opened] = {}
        own = {store.card["data_sha256"] for _, store in self.opened.parts}
        for path in self.recipe.eval.beside:
            opened = open_run(Path(path))
            name = opened.recipe.name
            theirs = {store.card["data_sha256"] for _, store in opened.parts}
            if theirs & own and self.store.card["data_sha256"] not in theirs:
                continue  # it belongs beside another task of this run
            if not theirs & own or name in (*found, *self.classic_names, *findings.MODELS):
                raise DataError(
                    problem(
                        "eval.beside",
                        f"{path} ({name})",
                        "a run of another name over the same prepared data",
                        "tune it with this recipe's data settings",
                    )
                )
            found[name] = opened
        return found

    @property
    def row_names(self) -> list[str]:
        """The rows that will have scores, without the tuned one."""
        fused = ["fused", "fused_without_model"] if self._fuses else []
        return ["base", *self.classic_names, *self.others, *fused]

    @property
    def _fuses(self) -> bool:
        """Whether there is a sum: something to add, something to fit it on, and not the very records of the fit."""
        able = self.whole.task.output != "likelihood" and self.split != "valid"
        return self.recipe.eval.fuse and able and bool(self.classic_names) and len(self.valid.records) > 0

    @cached_property
    def protocol_before(self) -> dict[str, Any]:
        """What a figure means, as far as it is known before anything is scored."""
        exam, store, card = self.exam, self.store, self.store.card
        ranking, ranked = exam.task.output == "ranking", exam.candidates != "judged"
        drawn = int(exam.candidates.split()[1]) if exam.candidates.startswith("sampled") else len(exam.items)
        n_candidates = min(drawn, len(exam.items))
        written = ranking and ranked and exam.task.reads(exam.config) == "pairs" and hasattr(exam.task, "contexts")
        subset = f"{len(exam.records):,} of {len(self.whole.records):,} records, spread over the split"
        return {
            "split": self.split,
            **({"chosen_on_it": True} if self.split == "valid" else {}),
            "split_by": card.get("split", {}).get("by"),
            "counted": "records" if ranking or exam.task.output == "classes" else "pairs",
            "candidates": exam.candidates if ranking else "pairs",
            "n_candidates": n_candidates if ranking and ranked else None,
            "sampled": (card.get("labels") or {}).get("source") == "sampled" or exam.candidates.startswith("sampled"),
            "history_masked": bool(ranking and ranked and exam.settings.mask_history),
            "gain": exam.settings.gain,
            "ties": "expected value over random order",
            "interval": "95%, bootstrap clustered by "
            + {"interactions": "user", "queries": "query"}.get(store.table, "text or group"),
            "data": card["data_sha256"],
            **({"decoding": exam.settings.decoding} if written and exam.settings.decoding != "exact" else {}),
            **({"subset": subset} if len(exam.records) < len(self.whole.records) else {}),
        }

    @property
    def prospect(self) -> judge.Prospect:
        """What gates can be held against before anything is scored."""
        names = list(slices(self.store, self.exam.records, self.recipe.eval.slices))
        return judge.Prospect(self.recipe.task.name, self.exam.names, self.row_names, self.protocol_before, names)

    def report(self, tuned: Tuned) -> dict[str, Any]:
        """Everything that is known of this task's scores."""
        refuse_no_effect(tuned, self.exam)
        exam, seed = self.exam, self.recipe.seed
        wanted = self.recipe.eval.slices
        # A wrong name is told before anything is scored.
        parts = slices(self.store, exam.records, wanted) if wanted else {}
        systems = self._systems(tuned)
        fusions = self._fused(tuned, systems) if self._fuses else {}
        self.listen("stage", {"name": "computing metrics and intervals"})
        rows = score_all(exam, systems)
        classic = [name for name in rows if name not in findings.MODELS]
        report: dict[str, Any] = {
            "format": 2,
            "name": self.recipe.name,
            "task": self.recipe.task.name,
            "n": rows["tuned"].n,
            **{name: row.values for name, row in rows.items() if name in findings.MODELS},
            "baselines": {name: rows[name].values for name in classic},
            "ci": {name: findings.intervals_of(row, exam, seed) for name, row in rows.items()},
            "paired": self._paired(rows, classic),
            "protocol": self.protocol_before | {"n": rows["tuned"].n, "left_out": rows["tuned"].left_out},
            "data": self._data_facts(),
        }
        if self.others:
            report["beside"] = list(self.others)
        if fusions:
            report["fusion"] = _fusion_facts(fusions) | {
                "settings": {name: dict(self._classic(name).settings) for name in self.classic_names}
            }
        if parts:
            report["slices"] = findings.sliced(rows, exam, parts, seed)
            report["gaps"] = findings.gaps(report["slices"])
        report |= self._details(tuned, rows)
        if self.recipe.eval.robustness:
            report["robustness"] = self._robustness(tuned, rows)
        report = dict(without_nan(report))
        report["verdicts"] = findings.verdicts(report)
        several = len(self.opened.parts) > 1
        path = self.opened.folder.predictions(f"{self.split}.{self.recipe.task.name}" if several else self.split)
        _write_predictions(path, rows, exam, self.store, slice_columns(rows, exam, parts))
        report["predictions"] = {"path": path.name, "sha256": hash_file(path)}
        return report

    def _encoder(self, tuned: Tuned, opened: Opened | None = None) -> Callable[[Sequence[Any]], np.ndarray]:
        """The model with what is known of its items: as a run's adapter tunes it, or the base where none is named."""
        encoder = Encoder(tuned.model, tuned.tokenizer, self.recipe.eval.batch_tokens)
        return finished(encoder, (opened or self.opened).recipe, opened.folder.adapter if opened else None)

    def _model(self, tuned: Tuned, exam: Exam, encoder: Callable[[Sequence[Any]], np.ndarray]) -> System:
        """The tuned model as a system, its probabilities calibrated."""
        return corrected(model_system(exam, encoder), partial(calibrated, tuned.model.serving.calibration))

    def _systems(self, tuned: Tuned) -> dict[str, System]:
        """The systems of the table by row: base, tuned, then classic rows and other runs."""
        exam = self.exam
        self.listen("stage", {"name": "scoring the untuned base"})
        with tuned.as_base():
            systems = {"base": model_system(exam, self._encoder(tuned))}
        self.listen("stage", {"name": "scoring the tuned model"})
        systems["tuned"] = self._model(tuned, exam, self._encoder(tuned, self.opened))
        for name in self.classic_names:
            self.listen("stage", {"name": f"fitting and scoring {name}"})
            systems[name] = self._classic(name).system(exam, self.split)
        for name, opened in self.others.items():
            self.listen("stage", {"name": f"scoring {name}"})
            systems[name] = self._other(opened, self.split)
        return systems

    def _classic(self, name: str) -> classics.Classic:
        return classics.chosen(name, self.store, self.valid, self.whole.task.monitor, self.listen)

    def _other(self, opened: Opened, split: Split) -> System:
        """Another run's model on the same records."""
        same = [part for part in opened.parts if part[1].card["data_sha256"] == self.store.card["data_sha256"]]
        recipe, store = next((part for part in same if part[0].task.name == self.recipe.task.name), same[0])
        mine = self.exam if split == self.split else self.valid
        theirs = replace(exam_of(recipe, store, split), candidates=mine.candidates, records=mine.records)
        if theirs.task.output != mine.task.output:
            raise RecipeError(
                problem(
                    "eval.beside",
                    f"{opened.recipe.name} scores {theirs.task.output}",
                    f"this table is of {mine.task.output}",
                    "leave it out",
                )
            )
        tuned = open_adapter(opened.recipe, opened.folder.adapter).of(recipe.task.name)
        return self._model(tuned, theirs, self._encoder(tuned, opened))

    def _fused(self, tuned: Tuned, systems: dict[str, System]) -> dict[str, Fusion]:
        """Adds the weighted sums to the systems; their weights are fitted on validation."""
        self.listen("stage", {"name": "fitting the sum of model and classic rows on validation"})
        before = {"tuned": self._model(tuned, self.valid, self._encoder(tuned, self.opened))}
        before |= {name: self._classic(name).system(self.valid, "valid") for name in self.classic_names}
        before |= {name: self._other(opened, "valid") for name, opened in self.others.items()}
        without = {name: system for name, system in before.items() if name in self.classic_names}
        fusions = {"fused": fit_fusion(self.valid, before), "fused_without_model": fit_fusion(self.valid, without)}
        for name, fusion in fusions.items():
            systems[name] = fusion.system(self.exam, systems)
        return fusions

    def _paired(self, rows: Mapping[str, Scored], classic: Sequence[str]) -> dict[str, Any]:
        pairs = [("tuned", name) for name in ("base", *classic)]
        if "fused" in rows:
            pairs += [("fused", "tuned"), ("fused", "fused_without_model")]
            pairs += [("fused", name) for name in classic]
        seed = self.recipe.seed
        return {
            f"{ours} - {theirs}": findings.differences(rows[ours], rows[theirs], self.exam, seed)
            for ours, theirs in pairs
        }

    def _details(self, tuned: Tuned, rows: Mapping[str, Scored]) -> dict[str, Any]:
        """Calibration, classes and examples, where the output has them."""
        exam = self.exam
        found: dict[str, Any] = {}
        if exam.task.output in ("labels", "classes"):
            serving = tuned.model.serving
            shown = {"tuned": rows["tuned"]}
            if serving.calibration:
                shown["uncalibrated"] = score(exam, model_system(exam, self._encoder(tuned, self.opened)))
            kind = serving.calibration["kind"] if serving.calibration else "none"
            found["calibration"] = findings.calibration(shown, kind)
        if exam.task.output == "classes":
            found["classes"] = findings.classes({name: rows[name] for name in ("base", "tuned")}, self.store.item_ids)
        if exam.task.output == "ranking":
            numbers = np.arange(len(exam.records))
            contexts = [self._context(int(row)) for row in numbers]
            found["examples"] = findings.examples(rows, exam, contexts, self.store.item_titles, exam.names[0])
            found["explanations"] = self._explanations(tuned, rows, found["examples"])
        return found

    def _explanations(
        self, tuned: Tuned, rows: Mapping[str, Scored], examples: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Why the tuned model's first item stands first, on the first examples: leave-one-out."""
        exam, top, scores = self.exam, rows["tuned"].top, rows["tuned"].top_scores
        assert top is not None and scores is not None  # noqa: S101  # rankings have both
        found = []
        for example in examples[:MOST_EXPLAINED]:
            row, item = example["record"], int(top[example["record"], 0])
            records = exam.records
            history = [exam.items[number] for number in records.history(row)]
            context: str | list[str] = records.queries[row] if records.queries is not None else history
            if item < 0 or not context:
                continue
            own = records.take(np.array([row]))
            parts = explain(
                exam.task, exam.config, self._encoder(tuned, self.opened), exam.items, [item], context, record=own
            )[0]
            found.append(
                {
                    "key": example["key"],
                    "context": example["context"],
                    "item": self.store.item_ids[item],
                    "title": self.store.item_titles[item],
                    "score": float(scores[row, 0]),
                    "method": "leave-one-out",
                    "parts": [{"text": part.text, "effect": part.effect} for part in parts],
                }
            )
        return found

    def _context(self, row: int) -> str:
        """What a person would call a record's context: the query, or the titles of the newest items."""
        records = self.exam.records
        if records.queries is not None:
            return records.queries[row]
        newest = records.history(row, 10)[::-1]
        return "; ".join(dict.fromkeys(self.store.item_titles[item] for item in newest))

    def _robustness(self, tuned: Tuned, rows: Mapping[str, Scored]) -> dict[str, Any]:
        """The same exam with contexts spoilt, one way at a time."""
        settings, exam = self.recipe.eval, self.exam
        found: dict[str, Any] = {}
        for name, share in settings.robustness.items():
            self.listen("stage", {"name": f"scoring with {name}"})
            harmed = replace(exam, task=self.spoilt[name])
            with tuned.as_base():
                base = score(harmed, model_system(harmed, self._encoder(tuned)))
            spoilt = score(harmed, self._model(tuned, harmed, self._encoder(tuned, self.opened)))
            found[name] = {
                "share": share,
                "rows": {"base": base.values, "tuned": spoilt.values},
                "paired": {
                    f"{row}: {name} - clean": findings.differences(ours, rows[row], exam, self.recipe.seed)
                    for row, ours in (("base", base), ("tuned", spoilt))
                },
            }
        return found

    def _data_facts(self) -> dict[str, Any]:
        card = self.store.card
        kept = ("lengths", "order", "dropped", "quarantined", "counts", "duplicates")
        sizes = {name: (card.get("split") or {}).get(name, {}).get("records") for name in ("train", "valid", "test")}
        return {
            "items": len(self.store.item_ids),
            "records": sizes,
            **{name: card[name] for name in kept if name in card},
        }


def _fusion_facts(fusions: Mapping[str, Fusion]) -> dict[str, Any]:
    fused, without = fusions["fused"], fusions["fused_without_model"]
    return {
        # A system may count with a second term, `<system>:rank`.
        "systems": list(dict.fromkeys(name.partition(":")[0] for name in fused.weights)),
        "weights": dict(fused.weights),
        "weights_without_model": dict(without.weights),
        "intercept": fused.intercept,
        "fitted_on": "valid",
        "rule": RULE,
        "scales": {name: list(scale) for name, scale in fused.scales.items()},
        "n": fused.n,
    }


def _write_predictions(
    path: Path, rows: Mapping[str, Scored], exam: Exam, store: Store, more: Mapping[str, np.ndarray]
) -> None:
    """One row a record (rankings) or a pair (all else): what every row of the table scored, and its first places."""
    records, tuned = exam.records, rows["tuned"]
    if tuned.labels is not None and tuned.pairs is not None:
        owners = np.searchsorted(records.offsets, tuned.pairs, side="right") - 1
        columns: dict[str, Any] = {
            "record": owners,
            "key": [records.keys[owner] for owner in owners],
            "item": [store.item_ids[item] for item in records.items[tuned.pairs]],
            "label": tuned.labels.labels,
        }
        columns |= {f"{name}:score": row.labels.scores for name, row in rows.items() if row.labels is not None}
    else:
        columns = {"record": np.arange(len(records)), "key": records.keys}
        for name, row in rows.items():
            columns |= {f"{name}:{metric}": scores for metric, scores in row.per_record.items()}
            if row.top is not None and row.top_scores is not None:
                columns[f"{name}:top"] = [[store.item_ids[item] for item in best if item >= 0] for best in row.top]
                columns[f"{name}:top_scores"] = [
                    scores[best >= 0].tolist() for best, scores in zip(row.top, row.top_scores, strict=True)
                ]
    with atomic_file(path) as draft:
        pl.DataFrame({**columns, **more}).write_parquet(draft)
