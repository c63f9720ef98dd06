"""The Online Retail reference figures, reached by the members through the package's own preparation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recft import registry
from recft.baselines._base import Known, known
from recft.data.store import Store
from recft.metrics import ndcg, recall
from recft.metrics._base import Ranks, mean
from recft.metrics._ranks import concat, ranks_of
from recft.prepare import prepare
from recft.recipe import Recipe

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("RECFT_DATA") or ROOT.parent / "shared" / "data") / "online-retail"

PLAIN_KNN = {"shrinkage": 0.0, "recent_pairs": False}
# NDCG@10 and Recall@20 with repeats allowed (1,027 records) and with history masked (889).
FIGURES: list[tuple[str, dict[str, Any], tuple[float, float], tuple[float, float] | None]] = [
    ("popularity", {"of": "users", "decay_days": None}, (0.0586, 0.0640), (0.0253, 0.0365)),
    ("item-knn", {"decay_days": None, **PLAIN_KNN}, (0.1361, 0.1349), (0.0482, 0.0711)),
    ("item-knn", {"decay_days": 60, **PLAIN_KNN}, (0.1470, 0.1412), (0.0565, 0.0772)),
    ("ease", {"regularisation": 200.0}, (0.2119, 0.2157), (0.0808, 0.1158)),
    ("repeat", {"decay_days": 60}, (0.2673, 0.2737), None),
]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """All that is known before the test split."""
    if not (FOLDER / "interactions.csv.gz").is_file():
        pytest.skip(f"no Online Retail files in {FOLDER}: set RECFT_DATA")
    files = {"items": "items.csv", "interactions": "interactions.csv.gz"}
    paths = [f"data.{table}.path={FOLDER / file}" for table, file in files.items()]
    recipe = Recipe.load(ROOT / "recipes" / "next_item" / "online-retail-lora.yaml", paths)
    store: Store = prepare(recipe, out=tmp_path_factory.mktemp("figures") / "data")
    return known(store, "test")


Scores = tuple[float, float, int]


def score(before: Known, name: str, settings: dict[str, Any]) -> tuple[Scores, Scores]:
    """NDCG@10, Recall@20 and the number of records, with repeats allowed and with history masked."""
    member, records = registry.load("recft.baselines", name), before.store.records("test")
    arrays = member.fit(before, settings)
    repeats, masked = [], []
    for start in range(0, len(records), 512):
        rows = np.arange(start, min(start + 512, len(records)))
        block = member.scores(arrays, before.store, records, rows)
        excluded = np.zeros(block.shape, bool)
        for row, record in enumerate(rows.tolist()):
            excluded[row, records.history(record)] = True
        offsets = records.offsets[start : rows[-1] + 2]
        repeats.append(ranks_of(block, offsets, records.items, records.grades))
        masked.append(ranks_of(block, offsets, records.items, records.grades, np.nonzero(excluded)))
    return _figures(repeats), _figures(masked)


def _figures(parts: list[Ranks]) -> Scores:
    ranks = concat(parts)
    first, n = mean(ndcg.ranking(ranks, 10))
    return first, mean(recall.ranking(ranks, 20))[0], n


@pytest.mark.parametrize(("name", "settings", "repeats", "masked"), FIGURES)
def test_reference_figures(
    before: Known,
    name: str,
    settings: dict[str, Any],
    repeats: tuple[float, float],
    masked: tuple[float, float] | None,
) -> None:
    assert settings in registry.load("recft.baselines", name).grid
    allowed, novel = score(before, name, settings)
    assert allowed[:2] == pytest.approx(repeats, abs=6e-5)
    assert allowed[2] == 1027
    if masked is not None:
        assert novel[:2] == pytest.approx(masked, abs=6e-5)
        assert novel[2] == 889
