"""`evaluate`: scores of the untuned base, the tuned model and the classic baselines on one split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import polars as pl

from recft import registry
from recft.data.store import Split, Store
from recft.errors import DataError, GateError, ModelError, problem
from recft.metrics import _intervals as intervals
from recft.models.text_model import encode
from recft.recipe import Recipe
from recft.reports import gates as gate_rules
from recft.run import Listener, RunFolder, atomic_file, hash_file, read_json, silent, without_nan, write_json
from recft.training.assemble import Tuned, check, open_adapter
from recft.training.scoring import Exam, Scored, few_records, pointwise, score_model, score_rows

__all__ = ["evaluate", "exam_of", "open_run", "refuse_no_effect"]

NO_EFFECT = 1e-7


def open_run(run: Path) -> tuple[RunFolder, Recipe, Store]:
    """A run's folder, its resolved recipe and its prepared data.

    Raises:
        RecipeError, DataError: a part is missing.
    """
    folder = RunFolder(run)
    if not folder.recipe.is_file():
        raise DataError(
            problem(
                str(run), "is no run folder: it has no recipe.yaml", "a folder made by `recft tune`", "check the path"
            )
        )
    return folder, Recipe.load(folder.recipe), Store.open(folder.data)


def exam_of(recipe: Recipe, store: Store, split: str, names: tuple[str, ...] | None = None) -> Exam:
    """The exam that a recipe sets on a split."""
    task = registry.load("recft.tasks", recipe.task.name)
    chosen = names or recipe.eval.metrics or task.metrics
    return Exam(task, recipe.task, store.records(cast("Split", split)), store.item_texts, chosen, recipe.eval)


def evaluate(
    run: Path | str,
    split: Literal["valid", "test"] = "test",
    gates: Sequence[str] = (),
    reference: Path | str | None = None,
    listen: Listener = silent,
) -> dict[str, Any]:
    """The report of a run on one split, which is also written to `eval/<split>.json`.

    Args:
        run: the run folder.
        split: which records.
        gates: expressions such as `ndcg@10 >= base + 0.01`.
        reference: another report that gates may name.
        listen: hears of stages.

    Raises:
        GateError: a gate does not hold; the report is written all the same.
        ModelError: the adapter has no effect.
        RecipeError: a gate or a metric that cannot be understood.
    """
    folder, recipe, store = open_run(Path(run))
    check(recipe)
    wanted = [gate_rules.parse(gate) for gate in gates]  # a slip of the pen is told before minutes of scoring
    other = read_json(Path(reference)) if reference else None
    whole = exam_of(recipe, store, split)
    exam = few_records(whole, recipe.eval.records) if recipe.eval.records else whole
    started = time.perf_counter()
    tuned = open_adapter(recipe, folder.adapter)
    refuse_no_effect(tuned, exam)
    rows = _score_all(exam, tuned, store, recipe, listen)
    report = _report(rows, exam, recipe, store, split)
    if len(exam.records) < len(whole.records):
        report["protocol"]["subset"] = f"{len(exam.records):,} of {len(whole.records):,} records, spread over the split"
    report["seconds"] = round(time.perf_counter() - started, 2)
    predictions = folder.predictions(split)
    _write_predictions(predictions, rows, exam, store)
    report["predictions"] = {"path": predictions.name, "sha256": hash_file(predictions)}
    report = dict(without_nan(report))
    checked = [gate_rules.check(gate, report, other) for gate in wanted]
    report["gates"] = [
        {"gate": gate, "passed": passed, "line": line} for gate, (passed, line) in zip(gates, checked, strict=True)
    ]
    write_json(folder.report(split), report)
    broken = [line for passed, line in checked if not passed]
    if broken:
        error = GateError("\n".join(broken))
        error.report = report  # type: ignore[attr-defined]  # the command line still shows the table
        raise error
    return report


def refuse_no_effect(tuned: Tuned, exam: Exam) -> None:
    """Nothing, where switching the adapter off (and keeping the head) changes some output.

    Raises:
        ModelError: the adapter changes nothing: the run scores the base under another name.
    """
    rows = np.arange(min(len(exam.records), 16))
    find = exam.task.pairs if exam.task.output == "labels" else exam.task.contexts
    texts = find(exam.config, exam.records, rows, exam.items)[:32]
    ours = encode(tuned.model, tuned.tokenizer, texts)
    with tuned.attached.disabled():
        without = encode(tuned.model, tuned.tokenizer, texts)
    change = float(np.abs(ours - without).max(initial=0))
    if not change > NO_EFFECT:
        raise ModelError(
            problem(
                "adapter",
                f"switching it off changes outputs by {change:.1e} at most",
                f"an adapter that was tuned changes them by more than {NO_EFFECT:.0e}",
                "check that tuning ran: learning rate, steps, method.layers",
            )
        )


def _score_all(exam: Exam, tuned: Tuned, store: Store, recipe: Recipe, listen: Listener) -> dict[str, Scored]:
    """The rows of the table, by name: `base`, `tuned`, then baselines."""
    encoder = partial(encode, tuned.model, tuned.tokenizer, chunk_tokens=recipe.eval.batch_tokens)
    listen("stage", {"name": "scoring the untuned base"})
    with tuned.as_base():
        rows = {"base": score_model(exam, encoder)}
    listen("stage", {"name": "scoring the tuned model"})
    rows["tuned"] = score_model(exam, encoder)
    for name in recipe.eval.baselines:
        listen("stage", {"name": f"scoring {name}"})
        baseline = registry.load("recft.baselines", name)
        if store.table not in baseline.tables:
            raise DataError(
                problem(
                    "eval.baselines",
                    f"{name} on {store.table}",
                    f"it is for {', '.join(baseline.tables)}",
                    "leave it out",
                )
            )
        rows[name] = score_rows(exam, baseline.fit(store))
    return rows


def _report(rows: dict[str, Scored], exam: Exam, recipe: Recipe, store: Store, split: str) -> dict[str, Any]:
    n_draws, seed = recipe.eval.bootstrap, recipe.seed
    base, tuned = rows["base"], rows["tuned"]
    baselines = {name: row.values for name, row in rows.items() if name not in ("base", "tuned")}
    ci = {name: _intervals(row, exam, n_draws, seed) for name, row in rows.items()}
    paired = {
        f"tuned - {name}": _differences(tuned, row, exam, n_draws, seed)
        for name, row in rows.items()
        if name != "tuned"
    }
    return {
        "name": recipe.name,
        "task": recipe.task.name,
        "n": tuned.n,
        "base": base.values,
        "tuned": tuned.values,
        "baselines": baselines,
        "ci": ci,
        "paired": paired,
        "protocol": _protocol(tuned, exam, store, split),
    }


def _protocol(tuned: Scored, exam: Exam, store: Store, split: str) -> dict[str, Any]:
    """What a figure means: every table and every file says it."""
    ranking = exam.task.output == "ranking"
    labels = store.card.get("labels") or {}
    return {
        "split": split,
        "split_by": store.card.get("split", {}).get("by"),
        "n": tuned.n,
        "counted": "records" if ranking else "pairs",
        "left_out": tuned.left_out,
        "candidates": exam.settings.candidates if ranking else "pairs",
        "n_candidates": len(exam.items) if ranking and exam.settings.candidates == "all" else None,
        "sampled": labels.get("source") == "sampled",
        "history_masked": bool(ranking and exam.settings.mask_history),
        "gain": "linear",
        "ties": "expected value over random order",
        "interval": "95%, bootstrap clustered by " + ("query" if store.table == "queries" else "user"),
        "data": store.card["data_sha256"],
    }


def _clusters(exam: Exam) -> np.ndarray:
    return np.asarray(exam.records.keys, dtype=object).astype(str)


def _intervals(row: Scored, exam: Exam, n: int, seed: int) -> dict[str, list[float] | None]:
    if row.labels is not None:
        found = {
            name: intervals.pointwise_interval(pointwise(name).pointwise, row.labels, n, seed)
            for name, value in row.values.items()
            if not np.isnan(value)
        }
    else:
        clusters = _clusters(exam)
        found = {name: intervals.interval(scores, clusters, n, seed) for name, scores in row.per_record.items()}
    return {name: list(interval) if interval else None for name, interval in found.items()}


def _differences(ours: Scored, theirs: Scored, exam: Exam, n: int, seed: int) -> dict[str, dict[str, Any]]:
    differences = {}
    for name in ours.values:
        if np.isnan(ours.values[name]) or np.isnan(theirs.values[name]):
            continue
        if ours.labels is not None and theirs.labels is not None:
            found = intervals.pointwise_paired(pointwise(name).pointwise, ours.labels, theirs.labels, n, seed)
        else:
            found = intervals.paired(ours.per_record[name], theirs.per_record[name], _clusters(exam), n, seed)
        differences[name] = {"mean": found.mean, "ci": list(found.interval) if found.interval else None, "n": found.n}
    return differences


def _write_predictions(path: Path, rows: dict[str, Scored], exam: Exam, store: Store) -> None:
    """One row a record (rankings) or a pair (labels): what every row of the table scored, and its first places."""
    records = exam.records
    if exam.task.output == "labels":
        owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
        columns: dict[str, Any] = {
            "record": owners,
            "key": [records.keys[owner] for owner in owners],
            "item": [store.item_ids[item] for item in records.items],
            "label": records.grades,
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
        pl.DataFrame(columns).write_parquet(draft)
