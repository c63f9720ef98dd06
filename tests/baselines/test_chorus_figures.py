"""The Chorus reference figures, computed with our words, our BM25 and our NDCG."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from recft.baselines.bm25 import Index
from recft.metrics import ndcg
from recft.metrics._base import mean
from recft.metrics._ranks import ranks_of, ranks_of_pairs

FOLDER = Path(os.environ.get("RECFT_DATA") or Path(__file__).parents[3] / "shared" / "data") / "chorus"

Judged = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def chorus() -> tuple[list[str], Judged]:
    if not (FOLDER / "products_compact.jsonl.gz").is_file():
        pytest.skip(f"no Chorus files in {FOLDER}: set RECFT_DATA")
    with gzip.open(FOLDER / "products_compact.jsonl.gz", "rt", encoding="utf-8") as lines:
        products = [json.loads(line) for line in lines]
    number = {str(product["id"]): i for i, product in enumerate(products)}
    judged: Judged = {}
    seen = set()
    with (FOLDER / "Broad_Query_Set_rated.csv").open(encoding="utf-8", newline="") as rows:
        for row in csv.DictReader(rows):
            if (row["query"], row["docid"]) not in seen:
                seen.add((row["query"], row["docid"]))
                judged.setdefault(row["query"], []).append((number[row["docid"]], float(row["rating"])))
    return [f"{product['title'] or ''} {product['short_description'] or ''}" for product in products], judged


def test_constant_scorer(chorus: tuple[list[str], Judged]) -> None:
    values = [
        ndcg.ranking(ranks_of_pairs(np.zeros(len(pairs)), [grade for _, grade in pairs]), 10)[0]
        for pairs in chorus[1].values()
    ]
    assert len(values) == 135
    score, n_defined = mean(np.array(values))
    assert n_defined == 116
    assert score == pytest.approx(0.6007, abs=5e-5)


def test_bm25(chorus: tuple[list[str], Judged]) -> None:
    texts, judged = chorus
    scores = Index.build(texts).scores(list(judged))  # (R, N)
    pairs = list(judged.values())
    offsets = np.cumsum([0, *map(len, pairs)])
    items = np.array([item for own in pairs for item, _ in own])
    grades = np.array([grade for own in pairs for _, grade in own])
    excluded = np.ones(scores.shape, dtype=bool)
    excluded[np.repeat(np.arange(len(pairs)), np.diff(offsets)), items] = False
    score, n_defined = mean(ndcg.ranking(ranks_of(scores, offsets, items, grades, np.nonzero(excluded)), 10))
    assert n_defined == 116
    assert score == pytest.approx(0.8200, abs=1e-4)
