"""`recommend`: a ranked list for one query, history or user, or many, from a run or from an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft import registry
from recft.data.store import Log, Records, Store
from recft.errors import DataError, RecipeError, problem
from recft.export import DESCRIPTION, ITEMS
from recft.exports._base import Opening
from recft.exports._tower import engine_hash
from recft.metrics._places import standing
from recft.models.encoder import Encoder
from recft.models.text_model import Serving
from recft.models.vector_cache import known_vectors
from recft.run import Listener, atomic_file, silent
from recft.schema import TaskSettings
from recft.tasks._base import Task, Text, scored
from recft.training.assemble import check, open_adapter
from recft.training.calibration import calibrated
from recft.training.exam import blocks, product
from recft.training.explanation import LEAVE_ONE_OUT, Part, explain
from recft.training.item_vectors import finished
from recft.training.opened import open_run
from recft.verify import open_export

__all__ = ["recommend", "recommend_file"]

BLOCK_ROWS = 256
"""Contexts that are read at a time."""

BLOCK_PAIRS = 1 << 18
"""Pairs of a context and an item that are read at a time, where items are read with their context."""


@dataclass(frozen=True)
class _Ranker:
    """What ranks: a catalogue, a task, and a function of texts.

    `likelihoods` gives log p of every item after each body, (B, N), as evaluation does it: all items after one and
    the same body, cut so that the longest of them fits. None where the task's rankings are no likelihoods.
    `search` gives the items nearest to vectors of contexts, where an export holds an index of them. `read_items` is
    `encode` of items, which knows those that it has read before.
    """

    task: Task
    config: TaskSettings
    ids: Sequence[str]
    texts: Sequence[str]
    titles: Sequence[str]
    encode: Callable[[Sequence[Text]], np.ndarray]
    read_items: Callable[[Sequence[Text]], np.ndarray]
    table: str
    calibration: Mapping[str, Any] | None
    store: Store | None
    likelihoods: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None = None

    def records(self, wanted: Sequence[tuple[str, Any]]) -> Records:
        """The contexts as records: ("query", text), ("history", item ids) or ("user", id)."""
        for kind, _ in wanted:
            self._fits(kind)
        queries = [str(value) if kind == "query" else "" for kind, value in wanted]
        histories = [self._history(kind, value) for kind, value in wanted]
        bounds = np.cumsum([0, *(len(history) for history in histories)]).astype(np.int64)
        nothing = np.zeros(0, np.int32)
        log = np.concatenate([nothing, *(np.array(history, np.int32) for history in histories)])
        return Records(
            keys=[str(value) for _, value in wanted],
            queries=None if self.table == "interactions" else queries,
            starts=bounds[:-1],
            cuts=bounds[1:],
            times=None,
            offsets=np.zeros(len(wanted) + 1, np.int64),
            items=nothing,
            grades=np.zeros(0, np.float32),
            log_items=log,
            **self._known([value for kind, value in wanted if kind == "user"], len(wanted)),
        )

    def _history(self, kind: str, value: Any) -> list[int]:
        return [] if kind == "query" else self._bought(value) if kind == "user" else self._items(value)

    def _known(self, users: Sequence[str], n: int) -> dict[str, Any]:
        """What the data says of users beyond their items: their stars, and their profiles, as tuning has read them."""
        if self.store is None or self.store.log is None or len(users) < n:
            return {"users": None}
        numbers = np.array([self._user_numbers[user] for user in users], np.int32)
        log, texts = self.store.log, self.store.user_texts
        stars = None if log.ratings is None else [log.ratings[_events(log, number)] for number in numbers]
        return {
            "users": numbers,
            "profiles": texts if any(texts) else None,
            "log_ratings": None if stars is None else np.concatenate([np.zeros(0, np.float32), *stars]),
        }

    def _fits(self, kind: str) -> None:
        expected = "history or user" if self.table == "interactions" else "query"
        if kind not in expected.split(" or "):
            raise RecipeError(
                problem(
                    f"--{kind}",
                    f"this model ranks for a {expected}",
                    f"its task is {self.config.name}",
                    f"give --{expected.split()[0]}",
                )
            )
        # Without stars every item of a history would be read unmarked, which no text of tuning was.
        if kind == "history" and (self.task.output == "values" or getattr(self.config, "liked_from", None) is not None):
            raise RecipeError(
                problem(
                    "--history",
                    "ids have no stars beside them",
                    f"{self.config.name} reads what a user has given to the items of a history",
                    "give --user, with the run folder",
                )
            )

    def _items(self, ids: Sequence[str]) -> list[int]:
        unknown = [name for name in ids if name not in self._item_numbers]
        if unknown or not ids:
            shown = repr(unknown[0]) if unknown else "an empty list"
            raise DataError(
                problem(
                    "--history", f"{shown} is no item of the catalogue", "item ids as in data.items", "correct the id"
                )
            )
        return [self._item_numbers[name] for name in ids]

    @cached_property
    def _item_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids)}

    @cached_property
    def _user_numbers(self) -> dict[str, int]:
        return {} if self.store is None else {name: number for number, name in enumerate(self.store.user_ids)}

    def _bought(self, user: str) -> list[int]:
        if self.store is None or self.store.log is None:
            raise DataError(
                problem(
                    "--user",
                    "an export holds no users",
                    "an export holds the catalogue alone",
                    "give --history, or the run folder",
                )
            )
        if user not in self._user_numbers:
            raise DataError(
                problem(
                    "--user", f"{user!r} is no user of the data", "a user id as in data.interactions", "correct the id"
                )
            )
        log = self.store.log
        return [int(item) for item in log.items[_events(log, self._user_numbers[user])]]

    def rank(
        self, wanted: Sequence[tuple[str, Any]], top: int, listen: Listener
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The first `top` item numbers and their scores, for each context."""
        records = self.records(wanted)
        depth = min(top, len(self.ids))
        first, size = self._way(records, depth, listen)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(wanted), size):
            found += first(np.arange(start, min(start + size, len(wanted))))
            listen("progress", {"name": "ranking", "done": len(found), "total": len(wanted), "unit": "lists"})
        return found

    def _way(
        self, records: Records, depth: int, listen: Listener
    ) -> tuple[Callable[[np.ndarray], list[tuple[np.ndarray, np.ndarray]]], int]:
        """What gives the first places of some of the records, and of how many at a time."""
        task, reads = self.task, self.task.reads(self.config)
        if reads == "pairs":
            together = max(1, min(BLOCK_ROWS, BLOCK_PAIRS // max(len(self.ids), 1)))
            return lambda rows: _first(self._pair_scores(records, rows), depth), together
        if reads == "contexts":
            return lambda rows: _first(
                self._scores(self.encode(task.contexts(self.config, records, rows, self.texts))), depth
            ), BLOCK_ROWS
        nearest = self.search or self._read_items(listen)

        def first(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
            vectors = self.encode(task.contexts(self.config, records, rows, self.texts))
            return _lists(*nearest(vectors, depth))

        return first, BLOCK_ROWS

    def _read_items(self, listen: Listener) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        """Exact search over the catalogue, which is read first: `search` where there is no index."""
        listen("stage", {"name": f"reading {len(self.texts):,} items"})
        multiply = product(self.read_items(self.task.candidates(self.config, self.texts)))

        def nearest(vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            found = [_top(multiply(vectors[part]), depth) for part in blocks(np.arange(len(vectors)), len(self.ids))]
            return np.concatenate([items for items, _ in found]), np.concatenate([scores for _, scores in found])

        return nearest

    def _pair_scores(self, records: Records, rows: np.ndarray) -> np.ndarray:
        """The score of every item of the catalogue as a candidate of some contexts, (B, N)."""
        if self.likelihoods is not None:
            bodies = self.task.contexts(self.config, records, rows, self.texts)
            return self.likelihoods([str(body) for body in bodies], self.texts)
        every, own = records.take(rows).with_every(len(self.ids)), np.arange(len(rows))
        outputs = self.encode(self.task.pairs(self.config, every, own, self.texts))
        scores = calibrated(self.calibration, scored(self.task, self.config, outputs, every, own))
        return np.asarray(scores[:, 0] if scores.ndim == 2 else scores).reshape(len(rows), -1)

    def explain(self, kind: str, value: Any, items: Sequence[int]) -> list[dict[str, Any]]:
        """Why each of these items, as `recommend` gives it.

        Raises:
            RecipeError: the task reads stars, which are left out with no item's words.
        """
        if self.task.output == "values":
            value, rule = f"a model of {self.config.name}", "what is left out are words and items, not their stars"
            raise RecipeError(problem("--explain", value, rule, "leave --explain out"))
        history = self._history(kind, value)
        context = str(value) if kind == "query" else [self.texts[item] for item in history]
        record = self.records([(kind, value)])
        found = explain(self.task, self.config, self.encode, self.texts, items, context, self._scores, record)
        return [
            {
                "method": LEAVE_ONE_OUT,
                "effect": "score of the whole - score without the part",
                "parts": [self._part(part, history) for part in parts],
            }
            for parts in found
        ]

    def _part(self, part: Part, history: Sequence[int]) -> dict[str, Any]:
        told = {"kind": part.kind, "text": part.text, "effect": part.effect, "start": part.start, "end": part.end}
        if part.item is None:
            return told
        return told | {"item": self.ids[history[part.item]], "title": self.titles[history[part.item]]}

    def _scores(self, outputs: np.ndarray) -> np.ndarray:
        return calibrated(self.calibration, self.task.scores(self.config, outputs))


def _events(log: Log, user: int) -> slice:
    """Where a user's events stand in the log, which is sorted by user."""
    return slice(*np.searchsorted(log.users, [user, user + 1]))


def _top(scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The first columns of each row, (B, depth), -1 where there are no more, and their scores."""
    import torch

    none = np.zeros(0, np.int64)
    found = standing(scores, none, none, depth, torch.get_num_threads())
    return found.top, found.top_scores


def _first(scores: np.ndarray, depth: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first columns of each row and their scores."""
    return _lists(*_top(scores, depth))


def _lists(items: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(row[row >= 0], values[row >= 0]) for row, values in zip(items, scores, strict=True)]


def _open(source: Path, name: str | None = None, items: Path | str | None = None, trust: bool = False) -> _Ranker:
    """A ranker from a run folder or an exported one."""
    if (source / DESCRIPTION).is_file():
        return _open_export(source, name, Path(items) if items else None, trust)
    if items is not None:
        raise RecipeError(
            problem(
                "--items", "beside a run folder", "a run has its own catalogue", "leave --items out, or name an export"
            )
        )
    opened = open_run(source)
    check(opened.recipe)
    recipe, store = opened.part(name)
    tuned = open_adapter(opened.recipe, opened.folder.adapter).of(recipe.task.name)
    encoder = finished(Encoder(tuned.model, tuned.tokenizer, recipe.eval.batch_tokens), recipe, opened.folder.adapter)
    task = registry.load("recft.tasks", recipe.task.name)
    return _Ranker(
        task,
        recipe.task,
        store.item_ids,
        store.item_texts,
        store.item_titles,
        encoder,
        getattr(encoder, "items", encoder),
        store.table,
        tuned.model.serving.calibration,
        store,
        encoder.catalogue if _ranks_by_likelihood(task, tuned.model.serving) else None,
    )


def _ranks_by_likelihood(task: Task, serving: Serving) -> bool:
    return task.output == "ranking" and serving.head == "likelihood" and hasattr(task, "contexts")


def _open_export(folder: Path, name: str | None, items: Path | None, trust: bool) -> _Ranker:
    description = open_export(folder)
    own = description["task"]["name"]
    if name is not None and name.replace("_", "-") != own:
        raise RecipeError(problem("--task", name, f"this export has {own}", "leave it out, or export that task"))
    task = registry.load("recft.tasks", description["task"]["name"])
    serving = Serving.from_json(description["serving"])
    engine = registry.load("recft.exports", description["target"]).open(folder, Opening(serving, trust=trust))
    catalogue = _catalogue(folder, items)

    def likelihoods(bodies: Sequence[str], tails: Sequence[str]) -> np.ndarray:
        longest = max(tails, key=lambda tail: len(engine.tokenizer(tail, verbose=False)["input_ids"]))
        fitted = [text[0] for text in serving.cut(engine.tokenizer, [(body, longest) for body in bodies])]
        found = engine.encode([(body, tail) for body in fitted for tail in tails])[:, 0]
        return np.asarray(found.reshape(len(bodies), len(tails)))

    def encode(texts: Sequence[Text]) -> np.ndarray:
        return np.asarray(engine.encode(serving.cut(engine.tokenizer, texts)))

    def read_items(texts: Sequence[Text]) -> np.ndarray:
        return known_vectors(engine_hash(folder, serving, engine), texts, encode)

    return _Ranker(
        task,
        task.Config.model_validate(description["task"]),
        catalogue["id"].to_list(),
        catalogue["text"].to_list(),
        catalogue["title"].to_list(),
        encode,
        read_items,
        description["table"],
        serving.calibration,
        None,
        likelihoods if _ranks_by_likelihood(task, serving) else None,
        # Of other items than the export's the index knows nothing: they are read.
        engine.search if list(engine.searched) == catalogue["id"].to_list() else None,
    )


def _catalogue(folder: Path, items: Path | None) -> pl.DataFrame:
    """The items to rank: those of the export, or of a table of people's own."""
    if items is None and not (folder / ITEMS).is_file():
        raise DataError(
            problem(
                str(folder),
                "was exported without its catalogue",
                "a list is ranked from items",
                "give --items, such as RUN/data/items.parquet: columns id, text and title",
            )
        )
    found = _read(items or folder / ITEMS, "--items")
    missing = [column for column in ("id", "text") if column not in found.columns]
    if missing:
        raise DataError(
            problem(
                str(items),
                f"has the columns {', '.join(found.columns)}",
                "id, text and, to be shown, title",
                "rename the columns",
            )
        )
    titles = found["title"] if "title" in found.columns else found["text"]
    return pl.DataFrame({"id": found["id"].cast(pl.String), "text": found["text"], "title": titles})


def recommend(
    source: Path | str,
    query: str | None = None,
    history: Sequence[str] | None = None,
    user: str | None = None,
    top: int = 10,
    task: str | None = None,
    explain: int = 0,
    items: Path | str | None = None,
    trust: bool = False,
    listen: Listener = silent,
) -> list[dict[str, Any]]:
    """The ranked list for one query, history or user: rank, item, score, title, and why, where asked for.

    Args:
        source: a run folder, or an exported one.
        query: what a customer types.
        history: item ids, oldest first.
        user: a user of the run's data, with all events of the log.
        top: how many places.
        task: which task of the run ranks, where it has several.
        explain: the first so many places carry `explanation`: how much each word and each history item moves the
            score, in reading order.
        items: of an export without a catalogue, a table of it: id, text, title.
        trust: whether model code that lies in the export may be run.
        listen: hears of stages.

    Raises:
        RecipeError: not exactly one of the three, or one that the task does not read.
        DataError: an unknown item or user.
    """
    given = [
        (kind, value) for kind, value in (("query", query), ("history", history), ("user", user)) if value is not None
    ]
    if len(given) != 1:
        raise RecipeError(
            problem("recommend", f"{len(given)} of query, history and user are given", "exactly one", "give one")
        )
    if query is not None and not query.strip():
        raise DataError(problem("--query", f"{query!r}", "a query has words", "say what is looked for"))
    ranker = _open(Path(source), task, items, trust)
    found, scores = ranker.rank(given, top, listen)[0]
    places: list[dict[str, Any]] = [
        {"rank": place, "item": ranker.ids[item], "score": float(score), "title": ranker.titles[item]}
        for place, (item, score) in enumerate(zip(found, scores, strict=True), start=1)
    ]
    if explain:
        listen("stage", {"name": f"leaving out one part at a time, for {min(explain, len(places))} places"})
        reasons = ranker.explain(*given[0], found[:explain].tolist())
        places[:explain] = [place | {"explanation": reason} for place, reason in zip(places, reasons, strict=False)]
    return places


def recommend_file(
    source: Path | str,
    table: Path | str,
    out: Path | str,
    top: int = 10,
    task: str | None = None,
    items: Path | str | None = None,
    trust: bool = False,
    listen: Listener = silent,
) -> dict[str, Any]:
    """Ranks for every row of a table and writes the lists; how many rows, and where, comes back.

    Args:
        source: a run folder, or an exported one.
        table: CSV, JSONL or Parquet with one of the columns query, history (ids by comma) and user.
        out: Parquet with the table's column and lists `items` and `scores`.
        top: how many places.
        task: which task of the run ranks, where it has several.
        items: of an export without a catalogue, a table of it: id, text, title.
        trust: whether model code that lies in the export may be run.
        listen: hears of stages and progress.

    Raises:
        DataError: the table cannot be read or has none of the columns.
    """
    table, out = Path(table), Path(out)
    frame = _read(table, "--input")
    kind = next((name for name in ("query", "history", "user") if name in frame.columns), None)
    if kind is None:
        raise DataError(
            problem(
                str(table),
                f"has the columns {', '.join(frame.columns)}",
                "one of query, history, user",
                "rename the column",
            )
        )
    values = frame[kind].cast(pl.String).fill_null("").to_list()
    empty = next((row for row, value in enumerate(values, start=1) if not value.strip()), None)
    if empty is not None:
        raise DataError(
            problem(f"{table}: row {empty}", f"an empty {kind}", "every row has one", "fill or remove the row")
        )
    wanted = [(kind, [part.strip() for part in value.split(",")] if kind == "history" else value) for value in values]
    ranker = _open(Path(source), task, items, trust)
    found = ranker.rank(wanted, top, listen)
    with atomic_file(out) as draft:
        pl.DataFrame(
            {
                kind: values,
                "items": [[ranker.ids[item] for item in items] for items, _ in found],
                "scores": [scores.astype(float).tolist() for _, scores in found],
            }
        ).write_parquet(draft)
    return {"rows": len(found), "out": str(out), "top": top}


def _read(table: Path, option: str) -> pl.DataFrame:
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".csv": partial(pl.read_csv, infer_schema=False),
        ".tsv": partial(pl.read_csv, infer_schema=False, separator="\t"),
        ".jsonl": pl.read_ndjson,
        ".parquet": pl.read_parquet,
    }
    if table.suffix not in readers:
        raise DataError(problem(option, f"'{table}'", f"a file ending in {', '.join(readers)}", "convert it"))
    try:
        return readers[table.suffix](table)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            problem(option, f"'{table}' cannot be read ({error})", "a table with a header", "check the file")
        ) from error
