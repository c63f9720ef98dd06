"""What a certificate asks: held-out records and the texts that they are about, few enough to travel with an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from recft import registry
from recft.data.store import Records
from recft.exports._rows import Rows
from recft.metrics import _base as metrics
from recft.models.text_model import Serving
from recft.schema import EvalSettings, TaskSettings
from recft.tasks._base import Task, Text, scored
from recft.tasks._batches import distinct
from recft.training.calibration import calibrated
from recft.training.exam import Exam, System, corrected, few_records, own_scores, places
from recft.training.scoring import Scored, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["held_out", "lists_of", "rows_of", "scored_rows"]

MOST_ITEMS = 1000
"""Items that a ranking's rows have: the targets of its records first, then others spread over the catalogue."""

PAIRS_A_RECORD = 10
"""Where an item is read together with its context, so many pairs of a record at most."""

FEW_RECORDS = 20
"""So many records are asked about where there is room for two pairs of each, before one gets more of them."""


def held_out(exam: Exam, most: int) -> Exam:
    """The exam on so many inputs: records, spread over the split, or for a task that reads pairs the pairs of some.

    Who would read the whole catalogue with each record is asked about its targets and a few other items, as if these
    had been judged.
    """
    if exam.task.reads(exam.config) != "pairs":
        return few_records(exam, most)
    fills = exam.task.output == "ranking" and exam.candidates != "judged"
    sizes = np.minimum(np.diff(exam.records.offsets), PAIRS_A_RECORD)
    typical = PAIRS_A_RECORD if fills or not len(sizes) else max(1.0, float(sizes.mean()))
    small = few_records(exam, max(1, int(most / typical), min(FEW_RECORDS, most // 2)))
    records, draw = small.records, np.random.default_rng(0)
    if fills:
        each = max(2, min(PAIRS_A_RECORD, most // max(len(records), 1)))
        parts = [_beside_others(records, row, each, len(exam.items), draw) for row in range(len(records))]
        return replace(small, records=_with_pairs(records, parts), candidates="judged")
    each = _pairs_each(np.diff(records.offsets), most)
    parts = [_spread(records, row, each) for row in range(len(records))]
    return replace(small, records=_with_pairs(records, parts))


def _pairs_each(sizes: np.ndarray, most: int) -> int:
    """How many pairs of a record there is room for."""
    for each in range(PAIRS_A_RECORD, 1, -1):
        if np.minimum(sizes, each).sum() <= most:
            return each
    return 1


def _spread(records: Records, row: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """So many of a record's own pairs, from the best grade to the worst."""
    own = slice(*records.offsets[row : row + 2])
    items, grades = records.items[own], records.grades[own]
    if len(items) > each:
        order = np.argsort(-grades, kind="stable")
        chosen = np.sort(order[np.linspace(0, len(items) - 1, each).astype(int)])
        items, grades = items[chosen], grades[chosen]
    return items, grades


def _beside_others(
    records: Records, row: int, each: int, n_items: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A record's best targets, and other items of the catalogue, graded 0."""
    own = slice(*records.offsets[row : row + 2])
    best = np.argsort(-records.grades[own], kind="stable")[: max(1, each // 2)]
    targets, grades = records.items[own][best], records.grades[own][best]
    drawn = draw.choice(n_items, min(n_items, each + len(records.items[own])), replace=False)
    others = drawn[~np.isin(drawn, records.items[own])][: each - len(targets)]
    return np.concatenate([targets, others]), np.concatenate([grades, np.zeros(len(others))])


def _with_pairs(records: Records, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Records:
    """The records with these (items, grades) in place of their own."""
    nothing = [np.zeros(0)]
    return replace(
        records,
        offsets=np.cumsum([0, *(len(items) for items, _ in parts)]).astype(np.int64),
        items=np.concatenate([*nothing, *(items for items, _ in parts)]).astype(np.int32),
        grades=np.concatenate([*nothing, *(grades for _, grades in parts)]).astype(np.float32),
    )


def rows_of(
    exam: Exam, encode: Callable[[Any], np.ndarray], serving: Serving, tokenizer: PreTrainedTokenizerBase
) -> Rows:
    """The rows of a small exam, with the tuned model's outputs and the run's tokens.

    Args:
        exam: from `held_out`.
        encode: the tuned model.
        serving: how its texts become numbers.
        tokenizer: the run's.
    """
    task, config, records = exam.task, exam.config, exam.records
    numbers, reads = np.arange(len(records)), task.reads(config)

    def ids(texts: Sequence[Text]) -> list[list[int]]:
        return [list(row["input_ids"]) for row in serving.tokens(tokenizer, texts)]

    whose = list(dict.fromkeys(records.keys))
    number = {key: place for place, key in enumerate(whose)}
    find = task.pairs if reads == "pairs" else task.contexts
    contexts, at = distinct(find(config, records, numbers, exam.items))
    rows = Rows(
        contexts=contexts,
        items=[],
        context_outputs=encode(contexts),
        item_outputs=np.zeros((0, 0), np.float32),
        context_tokens=ids(contexts),
        offsets=records.offsets.astype(np.int64),
        pairs=(at if reads == "pairs" else records.items).astype(np.int32),
        grades=records.grades.astype(np.float32),
        places=(at[:0] if reads == "pairs" else at).astype(np.int32),
        clusters=np.array([number[key] for key in records.keys], np.int32),
        stars=_stars(records) if task.output == "values" else [],
        judged=exam.candidates == "judged",
    )
    if reads != "towers":
        return rows
    chosen, kept = _items(records, len(exam.items))
    items = task.candidates(config, [exam.items[item] for item in chosen])
    sizes = np.bincount(np.repeat(numbers, np.diff(records.offsets))[kept], minlength=len(records))
    return replace(
        rows,
        items=items,
        item_outputs=encode(items),
        item_tokens=ids(items),
        item_numbers=chosen.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        pairs=np.searchsorted(chosen, records.items[kept]).astype(np.int32),
        grades=rows.grades[kept],
    )


def _stars(records: Records) -> list[np.ndarray]:
    """What each record's user has given before."""
    if records.log_ratings is None or records.starts is None or records.cuts is None:
        return [np.zeros(0, np.float32)] * len(records)
    bounds = zip(records.starts.tolist(), records.cuts.tolist(), strict=True)
    return [np.asarray(records.log_ratings[start:cut], np.float32) for start, cut in bounds]


def _items(records: Records, n_items: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the items that the rows have, ascending, and which pairs are of these, (P,).

    Every record's best target comes before any second one, so that none loses all of its own.
    """
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    by_grade = np.lexsort((-records.grades, owners))
    place = np.empty(len(owners), np.int64)
    place[by_grade] = np.arange(len(owners)) - records.offsets[owners]
    wanted = list(dict.fromkeys(records.items[np.lexsort((place, records.grades <= 0))].tolist()))[:MOST_ITEMS]
    others = np.linspace(0, max(n_items - 1, 0), min(MOST_ITEMS, n_items)).astype(int)
    room = np.setdiff1d(others, wanted)
    few = room[np.linspace(0, len(room) - 1, max(0, min(MOST_ITEMS - len(wanted), len(room)))).astype(int)]
    chosen = np.unique(np.concatenate([np.array(wanted, int), few.astype(int)]))
    return chosen, np.isin(records.items, chosen)


def scored_rows(
    rows: Rows,
    task_settings: TaskSettings,
    names: tuple[str, ...],
    gain: str,
    context_outputs: np.ndarray,
    item_outputs: np.ndarray,
    calibration: Mapping[str, Any] | None = None,
) -> Scored:
    """What these outputs for the rows' texts score: rankings among the rows' items, or of judged lists, or labels.

    Args:
        rows: what is asked.
        task_settings: of the task.
        names: metrics; those of the lists alone (coverage and the like) are left out: the items are a selection.
        gain: `linear` or `exponential`.
        context_outputs: (R, K).
        item_outputs: (C, K).
        calibration: how probabilities are corrected.

    Raises:
        ModelError: a score is not a number.
    """
    exam = _exam(rows, task_settings, names, gain)
    system = _system(exam, rows, context_outputs, item_outputs)
    if calibration is not None and exam.task.output in ("labels", "classes"):
        system = corrected(system, partial(calibrated, calibration))
    return score(exam, system)


def lists_of(
    rows: Rows, task_settings: TaskSettings, context_outputs: np.ndarray, item_outputs: np.ndarray
) -> list[np.ndarray]:
    """The score lists whose first places must agree: of each context, or of each record's own pairs.

    None where the task neither ranks nor chooses.
    """
    task: Task = registry.load("recft.tasks", task_settings.name)
    if task.output == "classes":
        return list(context_outputs)
    if task.output != "ranking":
        return []
    if len(rows.items):
        return list(context_outputs @ item_outputs.T)
    system = _system(_exam(rows, task_settings, (), "linear"), rows, context_outputs, item_outputs)
    return [system.pairs(np.array([record])) for record in range(rows.n_records)]


def _exam(rows: Rows, task_settings: TaskSettings, names: Sequence[str], gain: str) -> Exam:
    task: Task = registry.load("recft.tasks", task_settings.name)
    of_truth = tuple(name for name in names if _reads_truth(name))
    bounds = np.cumsum([0, *(len(stars) for stars in rows.stars)]).astype(np.int64)
    records = Records(
        keys=[str(number) for number in rows.clusters],
        queries=None,
        users=None,
        starts=bounds[:-1] if len(rows.stars) else None,
        cuts=bounds[1:] if len(rows.stars) else None,
        times=None,
        offsets=rows.offsets,
        items=rows.pairs,
        grades=rows.grades,
        log_ratings=np.concatenate([np.zeros(0, np.float32), *rows.stars]) if len(rows.stars) else None,
    )
    settings = EvalSettings.model_validate({"gain": gain})
    candidates = "judged" if rows.judged else "all"
    texts = [text if isinstance(text, str) else " ".join(text) for text in rows.items]
    return Exam(task, task_settings, records, texts, of_truth, settings, candidates)


def _reads_truth(name: str) -> bool:
    metric: metrics.Metric = registry.load(metrics.PACKAGE, metrics.parse(name)[0])
    return metric.lists is None


def _system(exam: Exam, rows: Rows, context_outputs: np.ndarray, item_outputs: np.ndarray) -> System:
    """Outputs as what scores an exam's records."""
    task, config, records = exam.task, exam.config, exam.records
    every = np.arange(len(records))
    if task.reads(config) == "pairs":
        found = scored(task, config, context_outputs[rows.pairs], records, every)  # (P,) or (P, 2)
        return System(None, lambda part: found[places(records, part)])
    own = context_outputs[rows.places]  # (Q, K)
    if task.reads(config) == "contexts":
        table = task.scores(config, own)  # (Q, C)
        return System(lambda part: table[part], lambda part: own_scores(records, part, table[part]))
    table = own @ item_outputs.T  # (Q, C)
    return System(lambda part: table[part], lambda part: own_scores(records, part, table[part]))
