"""What the tasks write for a model to read: golden texts, and what a cut takes away."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from history_toys import ITEMS, RECORDS

from recft import registry
from recft.data.store import Records
from recft.models.base import tokenizer_of
from recft.models.tokens import cut, tokenize
from recft.schema import ModelSettings

GOLDEN = Path(__file__).with_name("prompts.json")
ASKED = replace(
    RECORDS,
    queries=["红色 椅子?", '[{"role":"user","content":"hi 🎒"},{"role":"assistant","content":"yes?"}]'],
    users=None,
    starts=None,
    cuts=None,
    log_items=None,
    log_ratings=None,
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "purchase": ("purchase", {}),
    "purchase, liked from 4": ("purchase", {"liked_from": 4}),
    "purchase, two items": ("purchase", {"history_items": 2}),
    "purchase, other words": ("purchase", {"before": "买过：", "between": " 会买吗：", "after": "？"}),
    "next-item": ("next-item", {}),
    "next-item, two items": ("next-item", {"history_items": 2, "query_prompt": "history: ", "item_prompt": "item: "}),
    "next-item, written": ("next-item", {"score_by": "likelihood"}),
    "next-item, written, three events": ("next-item", {"score_by": "likelihood", "history_items": 3}),
    "next-item, written, stepped": ("next-item", {"score_by": "likelihood", "history_items": 3, "window": "stepped"}),
    "relevance": ("relevance", {}),
    "relevance, query first": (
        "relevance",
        {"query_first": True, "before": "", "between": "", "after": ""},
    ),
    "rating": ("rating", {"range": (0, 5)}),
    "rating, two items": (
        "rating",
        {
            "range": (0, 5),
            "history_items": 2,
            "before": "评分：",
            "between": " 下一个：",
            "after": " 几星？",
            "mean": "均分{mean}（{count}）",
        },
    ),
    "classify": ("classify", {"before": "意图："}),
    "reply": ("reply", {}),
    "reply, plain": ("reply", {"chat": False, "before": "Q: ", "after": "\nA: "}),
    "preference": ("preference", {}),
    "preference, plain": ("preference", {"chat": False}),
    "preference of items": ("preference", {}),
    "preference of items, other words": ("preference", {"history_items": 2, "before": "买过：", "after": "，下一个："}),
}


def records_of(case: str) -> Records:
    """Queries and texts for the tasks that read them, the log for the others."""
    asks = case.startswith(("relevance", "classify", "reply", "preference")) and "of items" not in case
    return ASKED if asks else RECORDS


def rendered(task_name: str, settings: dict[str, Any], records: Records = RECORDS) -> list[Any]:
    task = registry.load("recft.tasks", task_name)
    config = task.Config(**settings)
    rows = np.arange(2)
    reads = task.reads(config)
    if reads == "pairs":
        return [list(pair) for pair in task.pairs(config, records, rows, ITEMS)]
    contexts = task.contexts(config, records, rows, ITEMS)
    return contexts if reads == "contexts" else [*contexts, *task.candidates(config, ITEMS[:1])]


def test_rendered_prompts_are_the_golden_ones() -> None:
    """To change them on purpose: write `found` to the file, and read the difference."""
    found = {name: rendered(*case, records_of(name)) for name, case in CASES.items()}
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_history_is_newest_first_each_item_once() -> None:
    body, tail = rendered("purchase", {"before": ""})[0]
    assert body == "ＵＳＢ cable 🎒; red chair; 黑色 打印机 墨盒" and "oak desk" in tail


@pytest.mark.parametrize("case", CASES)
def test_training_reads_the_same_texts_as_scoring(case: str) -> None:
    name, settings = CASES[case]
    task, records = registry.load("recft.tasks", name), records_of(case)
    config, rows = task.Config(**settings), np.arange(2)
    trained = task.batch(config, records, rows, ITEMS, np.random.default_rng(0)).texts
    reads = task.reads(config)
    scored = (task.pairs if reads == "pairs" else task.contexts)(config, records, rows, ITEMS)
    if reads == "towers":
        scored += task.candidates(config, ITEMS)
    assert trained and set(trained) <= set(scored)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_cut_takes_the_oldest_items_and_leaves_candidate_and_question(
    kind: str, tiny_bert: Path, tiny_llama: Path
) -> None:
    tokenizer = tokenizer_of(ModelSettings(base=str({"bert": tiny_bert, "llama": tiny_llama}[kind])))
    pair = ("history: oak desk, red chair, usb cable, office lamp, 黑色 桌子", " item: 打印机 墨盒 answer:")
    limit = len(tokenize(tokenizer, [pair], 1000)[0]["input_ids"]) - 4
    (fitted,) = cut(tokenizer, [pair], limit)
    text = fitted if isinstance(fitted, str) else "".join(fitted)
    assert text.startswith("history: oak desk") and text.endswith(pair[1])
    assert "黑色 桌子" not in text
    (ids,) = tokenize(tokenizer, [pair], limit)
    assert len(ids["input_ids"]) <= limit
