"""`evaluate`: scores of the untuned base, the tuned model and the classic rows on one split, and what they mean."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recft.data.store import Split
from recft.reports import judge
from recft.reports.gates import read as read_gates
from recft.reports.page import page
from recft.reports.report import TaskReport
from recft.run import (
    Listener,
    read_json,
    silent,
    without_nan,
    write_json,
    write_text,
)
from recft.training.asked import settled
from recft.training.assemble import check, open_adapter
from recft.training.opened import Opened, open_run

__all__ = ["evaluate"]


def evaluate(
    run: Path | str,
    split: Split = "test",
    gates: Sequence[str] = (),
    reference: Path | str | None = None,
    gates_file: Path | str | None = None,
    listen: Listener = silent,
) -> dict[str, Any]:
    """The report of a run on one split, which is also written to `eval/<split>.json` and `report.html`.

    Args:
        run: the run folder.
        split: which records.
        gates: expressions such as `ndcg@10 >= base + 0.01`.
        reference: another report that gates may name.
        gates_file: gates, one a line.
        listen: hears of stages.

    Raises:
        GateError: a gate does not hold; the report is written all the same.
        ModelError: the adapter has no effect.
        RecipeError: a gate or a metric that cannot be understood.
    """
    opened = open_run(Path(run))
    check(opened.recipe)
    wanted = read_gates(gates, Path(gates_file) if gates_file else None)
    other = judge.open_reference(Path(reference) if reference else None, wanted)
    started = time.perf_counter()
    works = [TaskReport(opened, recipe, store, split, listen) for recipe, store in settled(opened.parts, split)]
    for work in works:
        work.refuse_nothing()
    # A slip of the pen is told before minutes of scoring.
    judge.foresee(wanted, other, [work.prospect for work in works])
    tuned = open_adapter(opened.recipe, opened.folder.adapter)
    reports = {work.recipe.task.name: work.report(tuned.of(work.recipe.task.name)) for work in works}
    report = dict(next(iter(reports.values())))
    if len(reports) > 1:
        report["tasks"] = reports
    report["run"] = _run_facts(opened)
    report["seconds"] = round(time.perf_counter() - started, 2)
    report = dict(without_nan(report))
    path = opened.folder.report(split)
    report["gates"] = judge.judge(wanted, report, path, other)
    write_json(path, report)
    write_text(opened.folder.page, page(report))
    judge.insist(report)
    return report


def _run_facts(opened: Opened) -> dict[str, Any]:
    """What was tuned, and what it cost."""
    manifest = read_json(opened.folder.manifest) if opened.folder.manifest.is_file() else {}
    kept = ("trainable_parameters", "head_parameters", "steps", "seconds", "peak_memory_bytes", "compute_dtype")
    return {
        "base": opened.recipe.model.base,
        "quantization": opened.recipe.model.quantization,
        "method": opened.recipe.method.name,
        **{name: manifest[name] for name in (*kept, "versions", "hardware", "hashes") if name in manifest},
    }
