"""`recft prepare`: raw tables to checked, split data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recft.cli._base import Command
from recft.cli._options import Force, JsonFile, Overrides, Quiet, RecipeFile
from recft.cli._progress import listening
from recft.cli._shell import deliver
from recft.reports.tables import Sheet, facts, number

__all__ = ["MEMBER", "card_sheets"]


def run(
    recipe: RecipeFile,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to; runs/<name>/data where absent.")
    ] = None,
    overrides: Overrides = None,
    force: Force = False,
    quiet: Quiet = False,
    json: JsonFile = None,
) -> None:
    """Check, split and audit raw tables; write a data card."""
    import recft
    from recft.data.store import Store

    read = recft.Recipe.load(recipe, overrides or ())
    with listening(quiet) as listen:
        store = recft.prepare(read, out=out, force=force, listen=listen)
    found: dict[str, Any] = {"folder": str(store.folder), "card": store.card}
    shown: list[Sheet | str] = [*card_sheets(store.card), f"data: {store.folder}"]
    if read.tasks:
        # Each task has prepared data of its own, and the first one's card says nothing of the others'.
        stores = {task.name: Store.open(store.folder.parent / task.name) for task in read.tasks}
        found["tasks"] = {name: {"folder": str(one.folder), "card": one.card} for name, one in stores.items()}
        shown = []
        for name, one in stores.items():
            shown += [*card_sheets(one.card), f"{name}: {one.folder}"]
    deliver(found, json, *shown)


def card_sheets(card: dict[str, Any]) -> list[Sheet]:
    """What a data card says, as far as people read it first."""
    splits = {
        name: part for name, part in card.get("split", {}).items() if isinstance(part, dict) and "records" in part
    }
    columns = list(dict.fromkeys(key for part in splits.values() for key in part))
    by = card.get("split", {}).get("by", "?")
    sheets = [
        facts("counts", card.get("counts", {})),
        *_findings(card),
        Sheet(
            columns=("split", *(column.replace("_", " ") for column in columns)),
            rows=[(name, *(number(part.get(column)) for column in columns)) for name, part in splits.items()],
            notes=[f"split by {by}"],
        ),
    ]
    lengths = card.get("lengths", {})
    if lengths:
        losing = {name: part["rows_losing_tokens"] for name, part in lengths.get("columns", {}).items()}
        sheets.append(facts(f"rows losing tokens at {lengths.get('max_tokens')}", losing))
    quarantined = card.get("quarantined", {}).get("rows", 0)
    aside = {**card.get("dropped", {}), **({"set aside in quarantine.jsonl": quarantined} if quarantined else {})}
    return [*sheets, facts("rows left out", aside)] if aside else sheets


def _findings(card: dict[str, Any]) -> list[Sheet]:
    """What a reader of the scores must know: texts with several labels or in two splits, reviews from later."""
    texts, reviews = card.get("texts", {}), card.get("reviews", {})
    kept = {name: texts[name] for name in ("conflicts", "in_two_splits", "groups_in_two_splits") if texts.get(name)}
    kept |= {"reviews": reviews["leakage"]} if reviews.get("leakage") else {}
    return [facts("to know", kept)] if kept else []


MEMBER = Command(
    run, "recft prepare recipes/retrieval/chorus.yaml --out prepared --set data.on_error=quarantine", place=0
)
