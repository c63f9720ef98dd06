"""What the tasks write for a model to read: golden texts, and what a cut takes away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.data.store import Records
from recft.models.base import tokenizer_of
from recft.models.text_model import cut, tokenize
from recft.schema import ModelSettings

GOLDEN = Path(__file__).with_name("prompts.json")
ITEMS = ["red chair", "黑色 打印机 墨盒", "ＵＳＢ cable 🎒", "oak desk", "oak desk"]
RECORDS = Records(
    keys=["u0", "u1"],
    queries=None,
    users=np.array([0, 1], np.int32),
    starts=np.array([0, 5]),
    cuts=np.array([4, 5]),
    times=np.array([9, 9]),
    offsets=np.array([0, 2, 3]),
    items=np.array([4, 1, 0], np.int32),
    grades=np.array([1, 0, 1], np.float32),
    log_items=np.array([0, 1, 0, 2, 4, 3], np.int32),
    log_times=np.arange(6),
    log_ratings=np.array([5, 2, 1, 4, 5, 3], np.float32),
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "purchase": ("purchase", {}),
    "purchase, liked from 4": ("purchase", {"liked_from": 4}),
    "purchase, two items": ("purchase", {"history_items": 2}),
    "purchase, other words": ("purchase", {"before": "买过：", "between": " 会买吗：", "after": "？"}),
    "next-item": ("next-item", {}),
    "next-item, two items": ("next-item", {"history_items": 2, "query_prompt": "history: ", "item_prompt": "item: "}),
}


def rendered(task_name: str, settings: dict[str, Any]) -> list[Any]:
    task = registry.load("recft.tasks", task_name)
    config = task.Config(**settings)
    rows = np.arange(2)
    if task.output == "labels":
        return [list(pair) for pair in task.pairs(config, RECORDS, rows, ITEMS)]
    return [*task.contexts(config, RECORDS, rows, ITEMS), *task.candidates(config, ITEMS[:1])]


def test_rendered_prompts_are_the_golden_ones() -> None:
    """To change them on purpose: write `found` to the file, and read the difference."""
    found = {name: rendered(*case) for name, case in CASES.items()}
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_history_is_newest_first_each_item_once() -> None:
    body, tail = rendered("purchase", {"before": ""})[0]
    assert body == "ＵＳＢ cable 🎒; red chair; 黑色 打印机 墨盒" and "oak desk" in tail


def test_training_reads_the_same_texts_as_scoring() -> None:
    for name in ("purchase", "next-item"):
        task = registry.load("recft.tasks", name)
        config = task.Config()
        batch = task.batch(config, RECORDS, np.arange(2), ITEMS, np.random.default_rng(0))
        read = task.pairs if task.output == "labels" else task.contexts
        assert list(batch.texts)[: len(RECORDS.items) if task.output == "labels" else 2] == read(
            config, RECORDS, np.arange(2), ITEMS
        )


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
