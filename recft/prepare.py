"""`prepare`: raw tables become checked, split, audited data with a card."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recft import registry
from recft.data.audit import audit_events, audit_order, audit_queries
from recft.data.card import CountTokens, length_card, split_card
from recft.data.interactions import read_interactions
from recft.data.items import Catalogue, read_items
from recft.data.judgements import read_judgements
from recft.data.labels import event_records, query_records
from recft.data.ledger import Ledger
from recft.data.sources import existing
from recft.data.splits import split_events, split_queries
from recft.data.store import SPLITS, Log, Records, Split, Store, Table, write_records
from recft.errors import DataError, RecftError, RecipeError, problem
from recft.recipe import Recipe
from recft.run import Listener, atomic_folder, hash_bytes, hash_file, hash_folder, read_json, silent, write_json
from recft.schema import DataSettings

__all__ = ["prepare"]

# Raised whenever the same settings would give other prepared data than before.
_FORMAT = 1
_TABLES = ("items", "interactions", "queries", "grades")


def prepare(recipe: Recipe, out: Path | str | None = None, force: bool = False, listen: Listener = silent) -> Store:
    """The prepared data of a recipe, made or, where nothing that decides it has changed, reused.

    Args:
        recipe: its `data` settings, and of the model only what the length audit needs.
        out: `runs/<name>/data` where absent; written whole or not at all.
        force: replace prepared data that other settings or files have made.
        listen: hears `stage` at the start of every stage.

    Raises:
        RecipeError: settings that cannot work together.
        DataError: rows, files or splits that break a rule; nothing is written then.
    """
    folder = Path(out) if out is not None else Path("runs") / recipe.name / "data"
    table = _table(recipe)
    origin = _origin(recipe, listen)
    if _reusable(folder, origin, force):
        listen("stage", {"stage": "reused", "folder": str(folder)})
        return Store.open(folder)
    started = time.monotonic()
    with atomic_folder(folder) as draft:
        with Ledger(recipe.data.on_error, draft / "quarantine.jsonl") as ledger:
            listen("stage", {"stage": "items"})
            catalogue = read_items(recipe.data, ledger)
            write = _write_events if table == "interactions" else _write_queries
            records, facts = write(recipe.data, catalogue, ledger, draft, listen)
        catalogue.frame.select("id", "text", "title").write_parquet(draft / "items.parquet")
        for split in SPLITS:
            write_records(draft / "records" / f"{split}.parquet", records[split])
        listen("stage", {"stage": "lengths"})
        queries = [query for split in SPLITS for query in records[split].queries or []]
        card = {
            "table": table,
            "counts": {"items": catalogue.frame.height, **facts.pop("counts")},
            "split": {**facts.pop("split"), **split_card(records, catalogue.frame.height)},
            **facts,
            "dropped": {name: count for name, count in sorted(ledger.dropped.items()) if count},
            "quarantined": {"rows": ledger.by_rule.total(), "by_rule": dict(ledger.by_rule.most_common())},
            "lengths": length_card(catalogue, queries, _counter(recipe), recipe.tune.max_tokens),
            "origin": origin,
            "data_sha256": hash_folder(draft, "*.parquet"),
        }
        write_json(draft / "card.json", card)
    listen("prepared", {"folder": str(folder), "seconds": round(time.monotonic() - started, 2), "card": card})
    return Store.open(folder)


def _table(recipe: Recipe) -> Table:
    """Which table the records come from.

    Raises:
        RecipeError: none or both are mapped, or the task reads the other one.
    """
    data = recipe.data
    if (data.interactions is None) == (data.queries is None):
        state = "both are given" if data.interactions else "neither is given"
        raise RecipeError(
            problem("data", f"interactions and queries: {state}", "records come from one of the two", "map exactly one")
        )
    if data.grades is not None and data.queries is None:
        raise RecipeError(
            problem("data.grades", "given without data.queries", "grades belong to queries", "map data.queries")
        )
    table: Table = "interactions" if data.interactions is not None else "queries"
    if recipe.task.name in registry.names("recft.tasks"):
        wanted = registry.load("recft.tasks", recipe.task.name).table
        if wanted != table:
            raise RecipeError(
                problem(
                    f"data.{table}",
                    f"task {recipe.task.name} reads {wanted}",
                    f"map data.{wanted}",
                    "change the task or the data",
                )
            )
    if table == "queries" and (data.labels.at_least is not None or data.labels.negatives is not None):
        raise RecipeError(
            problem("data.labels", "given with queries", "labels are made from interactions", "remove it")
        )
    return table


def _origin(recipe: Recipe, listen: Listener) -> dict[str, Any]:
    """All that decides the prepared data, by content: where a file lies does not matter.

    Raises:
        DataError: with every missing file at once.
    """
    missing: list[str] = []
    files: dict[str, Any] = {}
    settings = recipe.data.model_dump(mode="json")
    listen("stage", {"stage": "hashing"})
    for key in _TABLES:
        table = settings[key]
        if table is None:
            continue
        path = Path(table.pop("path"))
        try:
            existing(path, f"data.{key}")
        except DataError as error:
            missing.append(str(error))
            continue
        files[key] = {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}
    if missing:
        raise DataError("\n".join(missing))
    settings_text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return {
        "format": _FORMAT,
        "settings_sha256": hash_bytes(settings_text.encode()),
        "lengths_by": {
            "base": recipe.model.base,
            "revision": recipe.model.revision,
            "max_tokens": recipe.tune.max_tokens,
        },
        "files": files,
    }


def _reusable(folder: Path, origin: Mapping[str, Any], force: bool) -> bool:
    """Whether the folder holds just this data, whole.

    Raises:
        DataError: it holds something else, and may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "card.json").is_file():
        raise DataError(
            problem(
                str(folder), "is no folder of prepared data", "only prepared data is replaced", "choose another --out"
            )
        )
    try:
        card = read_json(folder / "card.json")
        if card.get("origin") == origin:
            # The same settings give the same data: a folder that was damaged since is made again.
            return bool(card.get("data_sha256") == hash_folder(folder, "*.parquet"))
    except RecftError:
        return False
    if not force:
        raise DataError(
            problem(
                str(folder),
                "was prepared from other settings or files",
                "data is not overwritten unasked",
                "pass --force, or another --out",
            )
        )
    return False


Facts = dict[str, Any]


def _write_events(
    data: DataSettings, catalogue: Catalogue, ledger: Ledger, draft: Path, listen: Listener
) -> tuple[dict[Split, Records], Facts]:
    """The records of interactions; the log and the users are written."""
    if data.interactions is None:
        raise RecipeError(problem("data.interactions", "missing", "this task reads interactions", "map it"))
    log, user_ids = read_interactions(data.interactions, catalogue, ledger, listen)
    ledger.settle()
    listen("stage", {"stage": "split", "rows": len(log)})
    drafts = split_events(log, data.split, data.labels.at_least is not None)
    records = event_records(log, drafts, data.labels, data.split.seed, user_ids, catalogue.frame.height)
    by = data.split.by or "time"
    listen("stage", {"stage": "audit"})
    audit_events(log, drafts.splits, records, by)
    order = audit_order(records)
    kept = log if drafts.kept.all() else log.kept(drafts.kept)
    _write_log(kept, draft)
    pl.DataFrame({"id": pl.Series(user_ids, dtype=pl.String)}).write_parquet(draft / "users.parquet")
    facts: Facts = {
        "counts": {"users": len(user_ids), "interactions": len(log)},
        "split": {"by": by, "seed": data.split.seed, **drafts.card},
        "repeat_share": _repeat_share(log),
        "time_span": [int(log.times.min()), int(log.times.max())],
        "order": order,
    }
    if data.labels.negatives is not None:
        facts["labels"] = {
            "source": "sampled",
            "negatives_a_target": data.labels.negatives,
            "drawn": "by popularity in training, from items not bought up to and including the target basket",
            "seed": data.split.seed,
        }
    elif data.labels.at_least is not None:
        facts["labels"] = {"source": "rating", "yes_at_least": data.labels.at_least}
    return records, facts


def _write_log(log: Log, draft: Path) -> None:
    columns = {"user": log.users, "item": log.items, "time": log.times}
    if log.ratings is not None:
        columns["rating"] = log.ratings
    pl.DataFrame(columns).write_parquet(draft / "interactions.parquet")


def _repeat_share(log: Log) -> float:
    """The share of events whose user had met the item before."""
    width = int(log.items.max(initial=0)) + 1
    different = sum(len(np.unique(log.users[part].astype(np.int64) * width + log.items[part])) for part in log.chunks())
    return round(1 - different / max(len(log), 1), 4)


def _write_queries(
    data: DataSettings, catalogue: Catalogue, ledger: Ledger, _draft: Path, listen: Listener
) -> tuple[dict[Split, Records], Facts]:
    """The records of judged queries; no file besides the records is theirs."""
    listen("stage", {"stage": "judgements"})
    judgements = read_judgements(data, catalogue, ledger)
    ledger.settle()
    drafts = split_queries(judgements, data.split)
    records = {split: query_records(judgements, drafts[split], data.split.seed, split) for split in SPLITS}
    by = data.split.by or "query"
    audit_queries(records, by)
    grades, counts = np.unique(judgements.grades, return_counts=True)
    split: Facts = {"by": by, "seed": data.split.seed}
    if data.split.folds is not None:
        split |= {"folds": data.split.folds, "fold": data.split.fold}
    facts: Facts = {
        "counts": {
            "queries": len(judgements.keys),
            "judgements": len(judgements.items),
            "judged_items": len(np.unique(judgements.items)),
            "by_grade": {f"{grade:g}": int(count) for grade, count in zip(grades, counts, strict=True)},
        },
        "split": split,
        "order": audit_order(records),
    }
    return records, facts


def _counter(recipe: Recipe) -> CountTokens:
    """Counts tokens as the base's own tokenizer does, special tokens included."""
    from recft.models.base import tokenizer_of

    tokenizer = tokenizer_of(recipe.model)

    def count(texts: list[str]) -> list[int]:
        if not texts:
            return []
        return [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]

    return count
