"""`prepare`: raw tables become checked, split, audited data with a card."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recft import registry
from recft.data.card import split_card
from recft.data.ledger import Ledger
from recft.data.mapping import table_of
from recft.data.pipelines import PIPELINES, Made
from recft.data.sources import existing
from recft.data.store import SPLITS, Store, Table, kept_in, write_log, write_records
from recft.errors import DataError, RecftError, problem
from recft.recipe import Recipe
from recft.run import Listener, atomic_folder, hash_bytes, hash_file, hash_folder, read_json, silent, write_json

__all__ = ["prepare"]

# Raised whenever the same settings would give other prepared data than before.
_FORMAT = 2

_BESIDE = 3
_LARGE_BYTES = 1 << 26


def prepare(recipe: Recipe, out: Path | str | None = None, force: bool = False, listen: Listener = silent) -> Store:
    """The prepared data of a recipe, made or, where nothing that decides it has changed, reused.

    Of a recipe with several tasks it is the first one's; each task has a folder of its own in `out`.

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
    if recipe.tasks:
        first, *_ = [prepare(part, folder / part.task.name, force, listen) for part in recipe.parts()]
        return first
    recipe = _with_stars(recipe)
    table = _table(recipe)
    files = _files(recipe)
    started = time.monotonic()
    # What waits for a disk, or works in a library's own threads, goes on beside the rest.
    with ThreadPoolExecutor(_BESIDE) as beside:
        listen("stage", {"stage": "hashing"})
        origin = beside.submit(_origin, recipe, files)
        if _reusable(folder, origin.result, force):
            listen("stage", {"stage": "reused", "folder": str(folder)})
            return Store.open(folder)
        with atomic_folder(folder) as draft:
            card = _make(recipe, table, draft, origin, beside, listen)
            write_json(draft / "card.json", card)
    listen("prepared", {"folder": str(folder), "seconds": round(time.monotonic() - started, 2), "card": card})
    return Store.open(folder)


def _make(
    recipe: Recipe, table: Table, draft: Path, origin: Future[dict[str, Any]], beside: Executor, listen: Listener
) -> dict[str, Any]:
    """The card, once all else lies in the draft."""
    tokenizer = _Tokenizer(recipe, beside if _is_large(recipe) else None)
    with Ledger(recipe.data.on_error, draft / "quarantine.jsonl") as ledger:
        made = PIPELINES[table](recipe.data, ledger, listen)
    listen("stage", {"stage": "lengths"})
    written = beside.submit(_write, made, draft)
    lengths = beside.submit(made.lengths, tokenizer.count, recipe.tune.max_tokens)
    facts = dict(made.facts)
    card = {
        "table": table,
        "counts": facts.pop("counts"),
        "split": {**facts.pop("split"), **split_card(made.records, made.items.height, made.log)},
        **facts,
        "dropped": {name: count for name, count in sorted(ledger.dropped.items()) if count},
        "quarantined": {"rows": ledger.by_rule.total(), "by_rule": dict(ledger.by_rule.most_common())},
        "lengths": lengths.result(),
        "origin": origin.result(),
    }
    written.result()
    return card | {"data_sha256": hash_folder(draft, "*.parquet")}


def _with_stars(recipe: Recipe) -> Recipe:
    """The recipe with ratings as grades, where its task predicts them."""
    if recipe.task.name not in registry.names("recft.tasks"):
        return recipe
    if registry.load("recft.tasks", recipe.task.name).output != "values":
        return recipe
    labels = recipe.data.labels.model_copy(update={"stars": True})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"labels": labels})})


def _table(recipe: Recipe) -> Table:
    """Which table the records come from, of those that the recipe's task reads.

    Raises:
        RecipeError: the tables do not go together, or the task reads none of them.
    """
    readable: Sequence[str] | None = None
    if recipe.task.name in registry.names("recft.tasks"):
        member = registry.load("recft.tasks", recipe.task.name)
        readable = getattr(member, "tables", None) or (member.table,)
    return table_of(recipe.data, recipe.task.name, readable)


def _files(recipe: Recipe) -> dict[str, Path]:
    """The recipe's input files by key.

    Raises:
        DataError: with every missing file at once.
    """
    missing: list[str] = []
    files = {key: Path(name) for key, name in recipe.data.files().items()}
    for key, path in files.items():
        table, setting = key.split(".")
        try:
            existing(path, f"data.{table}", setting)
        except DataError as error:
            missing.append(str(error))
    if missing:
        raise DataError("\n".join(missing))
    return files


def _is_large(recipe: Recipe) -> bool:
    return sum(Path(name).stat().st_size for name in recipe.data.files().values()) > _LARGE_BYTES


def _origin(recipe: Recipe, paths: Mapping[str, Path]) -> dict[str, Any]:
    """All that decides the prepared data, by content: where a file lies does not matter."""
    settings = recipe.data.model_dump(mode="json")
    files: dict[str, Any] = {}
    for key, path in paths.items():
        table, setting = key.split(".")
        settings[table].pop(setting)
        place = key.removesuffix(".path")
        files[place] = {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}
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


def _reusable(folder: Path, origin: Callable[[], Mapping[str, Any]], force: bool) -> bool:
    """Whether the folder holds just this data, whole; the origin is asked for only where there is something.

    Raises:
        DataError: it holds something else, and may not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "card.json").is_file():
        # What a recipe of several tasks has left there, a folder for each.
        if force and folder.is_dir() and all((part / "card.json").is_file() for part in folder.iterdir()):
            return False
        raise DataError(
            problem(
                str(folder), "is no folder of prepared data", "only prepared data is replaced", "choose another --out"
            )
        )
    try:
        card = read_json(folder / "card.json")
        if card.get("origin") == origin():
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


def _write(made: Made, draft: Path) -> None:
    """Everything but the card."""
    if made.log is not None:
        write_log(draft / "interactions.parquet", made.log)
    if made.users is not None:
        made.users.write_parquet(draft / "users.parquet")
    made.items.select("id", "text", "title", *kept_in(made.items)).write_parquet(draft / "items.parquet")
    for split in SPLITS:
        write_records(draft / "records" / f"{split}.parquet", made.records[split])


class _Tokenizer:
    """The base's own tokenizer, opened where it is first needed, or at once beside the rest.

    Args:
        recipe: names the base.
        beside: opens it at once; for a small table the rest is done before that would help, and a mistake in the data
            is told sooner without.
    """

    def __init__(self, recipe: Recipe, beside: Executor | None) -> None:
        self._settings = recipe.model
        self._opened = None if beside is None else beside.submit(self._open)

    def count(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text, special tokens included."""
        from recft.models.token_cache import lengths

        if self._opened is None:
            self._opened = Future()
            self._opened.set_result(self._open())
        return lengths(self._opened.result(), texts)

    def _open(self) -> Any:
        from recft.models.base import tokenizer_of

        return tokenizer_of(self._settings)
