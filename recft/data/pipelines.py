"""From raw tables to records: one function for each table that records can come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recft.data.audit import audit_events, audit_order, audit_queries, audit_texts
from recft.data.card import CountTokens, label_card, length_card, text_length_card
from recft.data.interactions import read_interactions
from recft.data.items import Catalogue, read_items
from recft.data.judgements import read_judgements
from recft.data.labels import event_records, query_records, text_records
from recft.data.ledger import Ledger
from recft.data.order import CACHED_ROWS, different
from recft.data.query_splits import split_queries
from recft.data.reviews import with_reviews
from recft.data.splits import split_events, time_cuts
from recft.data.store import SPLITS, Log, Records, Split, Table
from recft.data.text import normalise
from recft.data.text_splits import shared_texts, split_texts
from recft.data.texts import Texts, read_texts
from recft.data.triples import with_triples
from recft.data.users import read_users
from recft.errors import RecipeError, problem
from recft.run import Listener
from recft.schema import DataSettings

__all__ = ["PIPELINES", "Made"]

Facts = dict[str, Any]


@dataclass(frozen=True)
class Made:
    """What a table has become.

    Attributes:
        items: id, text, title and kept columns.
        records: of each split.
        facts: what the card says; `counts` and `split` are joined with what is known of every table.
        lengths: the card's lengths, once a tokenizer is there.
        log: the interactions, where there are any.
        users: id, text and kept columns, with a log.
    """

    items: pl.DataFrame
    records: dict[Split, Records]
    facts: Facts
    lengths: Callable[[CountTokens, int], Facts]
    log: Log | None = None
    users: pl.DataFrame | None = None


def from_interactions(data: DataSettings, ledger: Ledger, listen: Listener) -> Made:
    """The records of a log: what a user did next.

    Raises:
        DataError: rows, files or splits that break a rule.
    """
    if data.interactions is None:
        raise RecipeError(problem("data.interactions", "missing", "this task reads interactions", "map it"))
    listen("stage", {"stage": "items"})
    catalogue = read_items(data, ledger)
    log, user_ids, kept = read_interactions(data.interactions, catalogue, ledger, listen)
    users, profiles = read_users(data.users, user_ids, ledger)
    by = data.split.by or "time"
    # The cut is a quantile of a large array: it is taken here only where a table needs it before the split does.
    dated = data.reviews is not None and data.reviews.time is not None
    until = time_cuts(log, data.split)[0] if by == "time" and dated else None
    catalogue, added = _enriched(data, catalogue, until, ledger, listen)
    ledger.settle()
    listen("stage", {"stage": "split", "rows": len(log)})
    drafts = split_events(log, data.split, data.labels.at_least is not None or data.labels.stars)
    records = event_records(log, drafts, data.labels, data.split.seed, user_ids, catalogue.frame.height, kept)
    listen("stage", {"stage": "audit"})
    audit_events(log, drafts.splits, records, by)
    facts: Facts = {
        "counts": {"items": catalogue.frame.height, "users": len(user_ids), "interactions": len(log)},
        "split": {"by": by, "seed": data.split.seed, **drafts.card},
        "repeat_share": _repeat_share(log),
        "time_span": [int(log.times.min()), int(log.times.max())],
        "order": audit_order(records),
        **added,
        **_label_source(data),
    }
    if profiles is not None:
        facts["users"] = profiles
    left = log if drafts.kept.all() else log.kept(drafts.kept)
    return Made(catalogue.frame, records, facts, _lengths(catalogue, records), left, users)


def _label_source(data: DataSettings) -> Facts:
    if data.labels.negatives is not None:
        drawn = "by popularity in training, from items not bought up to and including the target basket"
        source = {"source": "sampled", "negatives_a_target": data.labels.negatives, "drawn": drawn}
        return {"labels": {**source, "seed": data.split.seed}}
    if data.labels.stars:
        return {"labels": {"source": "rating", "stars": True}}
    if data.labels.at_least is not None:
        return {"labels": {"source": "rating", "yes_at_least": data.labels.at_least}}
    return {}


def _repeat_share(log: Log) -> float:
    """The share of events whose user had met the item before."""
    width = int(log.items.max(initial=0)) + 1

    def keys(part: slice) -> NDArray[np.int64]:
        made: NDArray[np.int64] = (log.users[part].astype(np.int64) - log.users[part.start]) * width + log.items[part]
        return made

    return round(1 - different(log.chunks(CACHED_ROWS), keys) / max(len(log), 1), 4)


def from_queries(data: DataSettings, ledger: Ledger, listen: Listener) -> Made:
    """The records of judged queries.

    Raises:
        DataError: rows, files or splits that break a rule.
    """
    listen("stage", {"stage": "items"})
    catalogue = read_items(data, ledger)
    listen("stage", {"stage": "judgements"})
    judgements = read_judgements(data, catalogue, ledger)
    catalogue, added = _enriched(data, catalogue, None, ledger, listen)
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
            "items": catalogue.frame.height,
            "queries": len(judgements.keys),
            "judgements": len(judgements.items),
            "judged_items": len(np.unique(judgements.items)),
            "by_grade": {f"{grade:g}": int(count) for grade, count in zip(grades, counts, strict=True)},
        },
        "split": split,
        "order": audit_order(records),
        **added,
    }
    return Made(catalogue.frame, records, facts, _lengths(catalogue, records))


def _enriched(
    data: DataSettings, catalogue: Catalogue, until: int | None, ledger: Ledger, listen: Listener
) -> tuple[Catalogue, Facts]:
    """The catalogue with all that other tables say of its items, and the card's words on it."""
    facts: Facts = {}
    if data.triples is not None:
        listen("stage", {"stage": "triples"})
        catalogue, facts["triples"] = with_triples(catalogue, data.triples, ledger)
    if data.reviews is not None:
        listen("stage", {"stage": "reviews"})
        catalogue, facts["reviews"] = with_reviews(catalogue, data.reviews, until, ledger)
    return catalogue, facts


def _lengths(catalogue: Catalogue, records: Mapping[Split, Records]) -> Callable[[CountTokens, int], Facts]:
    queries = [query for split in SPLITS for query in records[split].queries or []]
    return lambda count, most: length_card(catalogue, queries, count, most)


def from_texts(data: DataSettings, ledger: Ledger, listen: Listener) -> Made:
    """The records of texts with labels, replies or preferences.

    Raises:
        DataError: rows, files or splits that break a rule.
    """
    listen("stage", {"stage": "texts"})
    texts = read_texts(data, ledger)
    ledger.settle()
    listen("stage", {"stage": "split", "rows": len(texts)})
    draft, split = split_texts(texts, data.split)
    records = {name: text_records(texts, rows) for name, rows in draft.items()}
    audit_texts(records, texts.given, grouped=texts.key != "text")
    names = pl.Series(texts.names, dtype=pl.String)
    ids = names if texts.target == "label" else pl.Series([f"r{number}" for number in range(len(names))])
    items = pl.DataFrame({"id": ids, "text": names, "title": names.str.replace_all(r"\s+", " ")})
    facts: Facts = {
        "counts": {
            "texts": len(texts),
            "different_texts": texts.frame["text_key"].n_unique(),
            "groups": texts.frame["key"].n_unique(),
            "labels" if texts.target == "label" else "replies": len(names),
        },
        "split": split,
        "texts": _text_facts(texts, records),
        "order": audit_order(records, numbers=False),
    }
    shared = shared_texts(texts, draft)
    if shared:
        facts["texts"]["in_two_splits"] = shared
    if texts.key != "text" and (divided := shared_texts(texts, draft, "key")):
        facts["texts"]["groups_in_two_splits"] = divided
    return Made(items, records, facts, lambda count, most: text_length_card(texts, count, most))


def _text_facts(texts: Texts, records: Mapping[Split, Records]) -> Facts:
    """What the card says of the texts: what they are answered with, and where they disagree."""
    facts: Facts = {"target": texts.target, "key": texts.key}
    if texts.target == "label":
        facts["by_label"] = label_card(records, texts.names)
        owner = pl.DataFrame({"key": texts.frame["text_key"], "label": texts.items})
        clash = owner.group_by("key").agg(pl.col("label").n_unique(), pl.len()).filter(pl.col("label") > 1)
        if clash.height:
            facts["conflicts"] = {"texts_with_several_labels": clash.height, "rows": int(clash["len"].sum())}
        alike: dict[str, list[str]] = {}
        for name in texts.names:
            alike.setdefault(normalise(name), []).append(name)
        if twins := [names for names in alike.values() if len(names) > 1]:
            facts["labels_written_differently"] = twins
    else:
        sizes, counts = np.unique(np.diff(texts.offsets), return_counts=True)
        facts["candidates_a_text"] = {str(size): int(n) for size, n in zip(sizes.tolist(), counts, strict=True)}
    return facts


Pipeline = Callable[[DataSettings, Ledger, Listener], Made]
PIPELINES: Mapping[Table, Pipeline] = {
    "interactions": from_interactions,
    "queries": from_queries,
    "texts": from_texts,
}
